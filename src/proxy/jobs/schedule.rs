//! The loop that looks at jobs when `plan` says so, and forgets what is to be forgotten. At most one look at a job is under way.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::protocol::End;

use super::models::Pace;
use super::plan::{self, Circumstances, Seen};
use super::{Due, Jobs, Owner};

/// The first interval for models that the configuration does not name.
const DEFAULT_POLL: Duration = Duration::from_secs(1);
/// What was learned is kept this often, and when the proxy stops.
const SAVED_EVERY: Duration = Duration::from_secs(30);
/// No two looks at a job are closer than this share of its model's first interval.
const CLOSEST: u32 = 20;

/// What the schedule needs from the rest of the proxy: one status request through the queue, whose answer reaches `Jobs::saw_status`.
pub(crate) trait Look: Send + Sync + 'static {
    /// Looks once; returns when the answer was seen or will not come. False if there was no turn for it.
    fn look(&self, id: String, owner: Owner) -> impl Future<Output = bool> + Send;
}

impl Jobs {
    /// Runs until dropped.
    pub(crate) async fn keep_looking<L: Look>(self: Arc<Self>, look: Arc<L>, tasks: TaskTracker) {
        self.schedule(Instant::now() + SAVED_EVERY, Due::Save);
        loop {
            let next = self.due.lock().unwrap_or_else(PoisonError::into_inner).peek().map(|Reverse((at, _))| *at);
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => self.run_due(&look, &tasks),
                () = self.kick.notified() => {}
            }
        }
    }

    fn run_due<L: Look>(self: &Arc<Self>, look: &Arc<L>, tasks: &TaskTracker) {
        let now = Instant::now();
        loop {
            let mut heap = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(Reverse((at, _))) = heap.peek() else { return };
            if *at > now {
                return;
            }
            let Some(Reverse((_, due))) = heap.pop() else { return };
            drop(heap);
            match due {
                Due::Certain(n) => self.release(n),
                Due::Forget => self.forget_old(now),
                Due::Save => {
                    self.save_learned();
                    self.schedule(now + SAVED_EVERY, Due::Save);
                }
                Due::Look(id) => self.look(id, look, tasks, now),
            }
        }
    }

    fn forget_old(&self, now: Instant) {
        let mut remembered = self.lock_remembered();
        let (ids, next) = (remembered.expire(now), remembered.next());
        drop(remembered);
        self.forget(&ids);
        if let Some(at) = next {
            self.schedule(at, Due::Forget);
        }
    }

    fn look<L: Look>(self: &Arc<Self>, id: String, look: &Arc<L>, tasks: &TaskTracker, now: Instant) {
        let Some(mut job) = self.table.get_mut(&id) else { return };
        // Planned anew meanwhile: that plan has an entry of its own.
        if job.slot.is_none() || job.looking || job.due > now {
            return;
        }
        job.looking = true;
        let (owner, last) = (job.owner, now >= job.started + self.settings.max_age);
        drop(job);
        let (jobs, look) = (Arc::clone(self), Arc::clone(look));
        tasks.spawn(async move {
            let looked = look.look(id.clone(), owner).await;
            if last && looked {
                return jobs.end(&id, End::Expired, "expired", None, false);
            }
            if let Some(mut job) = jobs.table.get_mut(&id) {
                job.looking = false;
                job.looks = job.looks.saturating_add(1);
            }
            jobs.plan(&id, if looked { Duration::ZERO } else { DEFAULT_POLL });
        });
    }

    /// Decides when this job is looked at next, not before `pause` from now.
    pub(super) fn plan(&self, id: &str, pause: Duration) {
        let Some(job) = self.table.get(id).filter(|job| job.slot.is_some() && !job.looking) else { return };
        let (model, owner, looks) = (Arc::clone(&job.model), job.owner, job.looks);
        let (started, running) = (job.started, job.running);
        let never_told = job.told.is_none() && looks == 0;
        drop(job);
        let now = Instant::now();
        let poll = self.poll_of(&model);
        let prices = self.circumstances(owner.account, now).prices();
        let running_at = running.saturating_duration_since(started);
        let (age, probe) = self.models.with(&model, id, |times, probe| {
            (plan::next_look(times, Seen { running_at, looks, poll, probe }, prices), probe)
        });
        let closest = if looks > 0 { poll / CLOSEST } else { Duration::ZERO };
        // A job restored without an answer is looked at now: somebody may ask.
        let planned = if never_told { now } else { started + age };
        let due = planned.min(started + self.settings.max_age).max(now + closest.max(pause));
        if probe {
            self.models.probe_at(&model, due);
        }
        if let Some(mut job) = self.table.get_mut(id) {
            job.due = due;
        }
        self.schedule(due, Due::Look(id.to_owned()));
    }

    /// The state of an account, as far as looks depend on it.
    pub(super) fn circumstances(&self, account: usize, now: Instant) -> Circumstances {
        let outlook = self.queues[account].outlook();
        let window = outlook.rate.map_or(Duration::from_secs(60), |(_, window)| window);
        let Pace { creates_per_sec, held_secs } = self.models.pace(account, window, now);
        Circumstances {
            rate: outlook.rate.map(|(limit, window)| (f64::from(limit), window.as_secs_f64())),
            slots: outlook.slots.map(f64::from),
            creates_per_sec,
            waiting: f64::from(outlook.creates_waiting),
            held_secs,
            quota_short: outlook.quota_short,
        }
    }

    pub(super) fn poll_of(&self, model: &str) -> Duration {
        self.configured_poll(model).unwrap_or(DEFAULT_POLL)
    }

    /// `models.NAME.poll`, where the configuration names the model.
    pub(crate) fn configured_poll(&self, model: &str) -> Option<Duration> {
        let short = model.rsplit('/').next().unwrap_or_default();
        self.polls.get(model).or_else(|| self.polls.get(short)).copied()
    }
}
