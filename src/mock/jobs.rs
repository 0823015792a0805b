//! Jobs and their lives. A job ends by the clock at its exact instant, whether anyone looks or not.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::epoch::Epoch;
use super::options::Dialect;

/// Jobs remembered; older ones are forgotten, so a long load test does not grow without end.
const MEMORY: usize = 100_000;

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Success,
    Failure,
    Cancelled,
}

/// One accepted create.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: String,
    seq: u64,
    /// Index of the book whose slot it holds.
    pub(super) book: usize,
    model: String,
    version: String,
    /// Where its URLs begin.
    origin: String,
    input: Value,
    created: Instant,
    /// When it leaves `pending`.
    starts: Instant,
    pub(super) ends: Instant,
    pub(super) ending: Ending,
    /// Told when the end moves; `None`: nobody waits for it.
    pub(super) moved: Option<Arc<Notify>>,
}

impl Job {
    pub(super) fn finished(&self, now: Instant) -> bool {
        now >= self.ends
    }

    /// The word for the job's state at `now`.
    pub(super) fn status(&self, now: Instant, dialect: Dialect) -> &'static str {
        match (dialect, self.ending) {
            (Dialect::Replicate, _) if now < self.starts.min(self.ends) => "starting",
            _ if now < self.starts.min(self.ends) => "pending",
            (Dialect::A, _) if !self.finished(now) => "pending",
            (Dialect::B | Dialect::Replicate, _) if !self.finished(now) => "processing",
            (Dialect::A | Dialect::Replicate, Ending::Success) => "succeeded",
            (Dialect::B, Ending::Success) => "completed",
            (_, Ending::Failure) => "failed",
            (Dialect::A | Dialect::Replicate, Ending::Cancelled) => "canceled",
            (Dialect::B, Ending::Cancelled) => "cancelled",
        }
    }

    /// The answer to a create, a poll or a cancel at `now`.
    pub(super) fn body(&self, now: Instant, epoch: &Epoch, dialect: Dialect) -> Value {
        let status = self.status(now, dialect);
        let done = self.finished(now);
        let url = (done && self.ending == Ending::Success)
            .then(|| format!("https://cdn.example.test/{}/output.png", self.id));
        let error = (done && self.ending == Ending::Failure).then_some("the model failed, as asked");
        let created_at = epoch.timestamp(self.created);
        match dialect {
            Dialect::A => {
                let mut body = json!({
                    "id": self.id, "status": status, "model": self.model, "input": self.input,
                    "output": url.map(|url| [url]), "created_at": created_at,
                });
                if let Some(error) = error {
                    body["error"] = error.into();
                }
                if done {
                    let secs = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
                    body["metrics"] = json!({
                        "total_time": secs(self.created, self.ends),
                        "queue_time": secs(self.created, self.starts.min(self.ends)),
                        "run_time": secs(self.starts, self.ends),
                    });
                }
                body
            }
            Dialect::B => json!({
                "job_id": self.id, "status": status, "provider": "mock", "model": self.model,
                "created_at": created_at, "result": url, "public_url": null, "error": error,
            }),
            Dialect::Replicate => {
                let at = |instant: Instant| (now >= instant).then(|| epoch.exact_timestamp(instant));
                let prediction = format!("{}/v1/predictions/{}", self.origin, self.id);
                json!({
                    "id": self.id, "model": self.model, "version": self.version, "input": self.input, "logs": "",
                    "output": url.map(|_| [format!("https://replicate.delivery/mock/{}/out-0.png", self.id)]),
                    "data_removed": false, "error": error, "source": "api", "status": status, "created_at": at(self.created),
                    "started_at": at(self.starts), "completed_at": at(self.ends),
                    "metrics": { "predict_time": done.then(|| (self.ends - self.created).as_secs_f64()) },
                    "urls": {
                        "get": prediction, "cancel": format!("{prediction}/cancel"),
                        "stream": format!("{}/v1/streams/{}", self.origin, self.id),
                        "web": format!("https://replicate.com/p/{}", self.id),
                    },
                })
            }
        }
    }
}

/// What a create asks for.
#[derive(Debug)]
pub(super) struct NewJob {
    pub(super) model: String,
    /// Of the model; only Replicate has them.
    pub(super) version: String,
    /// Where URLs in answers begin; only Replicate's have any.
    pub(super) origin: String,
    pub(super) input: Value,
    pub(super) run_time: Duration,
    pub(super) ending: Ending,
    pub(super) watched: bool,
}

/// The latest jobs, by id.
#[derive(Debug)]
pub(super) struct Jobs {
    by_id: HashMap<String, Job>,
    order: VecDeque<String>,
    last: u64,
    /// Tells the ids of one mock from those of the next.
    tag: u64,
}

impl Jobs {
    pub(super) fn new(seed: u64) -> Self {
        Self { by_id: HashMap::new(), order: VecDeque::new(), last: 0, tag: seed & 0xffff }
    }

    /// Forgets all jobs; their ids are not used again.
    pub(super) fn clear(&mut self) {
        self.by_id.clear();
        self.order.clear();
    }

    /// Starts a job; the caller has checked the limit.
    pub(super) fn start(&mut self, book: usize, new: NewJob, now: Instant, dialect: Dialect) -> &Job {
        self.last += 1;
        let id = match dialect {
            Dialect::A => format!("pred_{:04x}{:06}", self.tag, self.last),
            Dialect::B => format!("job_{:04x}{:06}", self.tag, self.last),
            Dialect::Replicate => format!("r{:04x}{:06}x", self.tag, self.last),
        };
        if self.order.len() >= MEMORY
            && let Some(old) = self.order.pop_front()
        {
            self.by_id.remove(&old);
        }
        self.order.push_back(id.clone());
        let queued = (new.run_time / 10).min(Duration::from_millis(500));
        let job = Job {
            id: id.clone(),
            seq: self.last,
            book,
            model: new.model,
            version: new.version,
            origin: new.origin,
            input: new.input,
            created: now,
            starts: now + queued,
            ends: now + new.run_time,
            ending: new.ending,
            moved: new.watched.then(Arc::default),
        };
        self.by_id.entry(id).insert_entry(job).into_mut()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Job> {
        self.by_id.get(id)
    }

    /// Ends a job now, unless it has ended; `None` if there is no such job.
    pub(super) fn end(&mut self, id: &str, ending: Option<Ending>, now: Instant, live: &mut Live) -> Option<&Job> {
        let job = self.by_id.get_mut(id)?;
        if !job.finished(now) {
            live.remove(job);
            job.ends = now;
            job.ending = ending.unwrap_or(job.ending);
            if let Some(moved) = &job.moved {
                // All who wait, and one who is about to.
                moved.notify_waiters();
                moved.notify_one();
            }
        }
        Some(job)
    }

    /// Ids, oldest first.
    pub(super) fn ids(&self) -> Vec<String> {
        self.order.iter().cloned().collect()
    }
}

/// Ends of the unfinished jobs of one book.
#[derive(Debug, Default)]
pub(super) struct Live {
    ends: BTreeSet<(Instant, u64)>,
}

impl Live {
    pub(super) fn add(&mut self, job: &Job) {
        self.ends.insert((job.ends, job.seq));
    }

    fn remove(&mut self, job: &Job) {
        self.ends.remove(&(job.ends, job.seq));
    }

    /// Jobs that have not ended by `now`.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        while self.ends.first().is_some_and(|&(end, _)| end <= now) {
            self.ends.pop_first();
        }
        self.ends.len()
    }

    /// When the next job ends; a job that ended by the last count is not seen.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|&(end, _)| end)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn two_seconds() -> NewJob {
        NewJob {
            model: "m".into(),
            version: String::new(),
            origin: String::new(),
            input: json!({}),
            run_time: Duration::from_secs(2),
            ending: Ending::Success,
            watched: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_lives_by_the_clock() {
        let (mut jobs, mut live) = (Jobs::new(0), Live::default());
        let job = jobs.start(0, two_seconds(), Instant::now(), Dialect::B).clone();
        live.add(&job);
        assert_eq!(job.status(Instant::now(), Dialect::B), "pending");
        advance(Duration::from_secs(1)).await;
        assert_eq!(job.status(Instant::now(), Dialect::B), "processing");
        assert_eq!((job.status(Instant::now(), Dialect::A), live.count(Instant::now())), ("pending", 1));
        advance(Duration::from_secs(1)).await;
        assert_eq!(job.status(Instant::now(), Dialect::B), "completed");
        assert_eq!((job.status(Instant::now(), Dialect::A), live.count(Instant::now())), ("succeeded", 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_job_gives_its_slot_back_at_once() {
        let (mut jobs, mut live) = (Jobs::new(0), Live::default());
        let job = jobs.start(0, two_seconds(), Instant::now(), Dialect::A).clone();
        live.add(&job);
        let ended = jobs.end(&job.id, Some(Ending::Cancelled), Instant::now(), &mut live).expect("the job");
        assert_eq!(ended.status(Instant::now(), Dialect::A), "canceled");
        assert_eq!(live.count(Instant::now()), 0);
    }
}
