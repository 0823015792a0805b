//! The loop that looks at jobs when `plan` says so, and forgets what is to be forgotten. At most one look at a job is under way.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::protocol::End;

use super::plan::{self, Seen};
use super::{Due, Held, Jobs, Owner, Sight};

/// The first interval for models that the configuration does not name.
const DEFAULT_POLL: Duration = Duration::from_secs(1);
/// What was learned is kept this often, and when the proxy stops.
const SAVED_EVERY: Duration = Duration::from_secs(30);
/// No two looks at a job are closer than this share of its model's first interval.
const CLOSEST: u32 = 20;
/// The other replicas hear of plans that have moved by more than this.
const TOLD_STEP: Duration = Duration::from_millis(250);

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
                biased;
                () = wait => self.run_due(&look, &tasks),
                () = self.kick.notified() => {}
            }
        }
    }

    fn run_due<L: Look>(self: &Arc<Self>, look: &Arc<L>, tasks: &TaskTracker) {
        let now = Instant::now();
        loop {
            let mut heap = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            if heap.peek().is_none_or(|Reverse((at, _))| *at > now) {
                return;
            }
            let Some(Reverse((at, due))) = heap.pop() else { return };
            drop(heap);
            match due {
                Due::Certain(n) => self.release(n),
                Due::Forget => self.forget_old(now),
                Due::Save => {
                    self.save_learned();
                    self.schedule(now + SAVED_EVERY, Due::Save);
                }
                Due::Look(id) => self.look(id, at, look, tasks),
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

    fn look<L: Look>(self: &Arc<Self>, id: String, at: Instant, look: &Arc<L>, tasks: &TaskTracker) {
        let Some(mut job) = self.table.get_mut(&id) else { return };
        if job.entry != Some(at) || !matches!(job.slot, Some(Held::Here(_))) || job.looking {
            return;
        }
        let now = Instant::now();
        if job.due > now {
            // Planned for later meanwhile.
            let due = job.due;
            job.entry = Some(due);
            drop(job);
            return self.schedule(due, Due::Look(id));
        }
        (job.looking, job.entry) = (true, None);
        job.vain = job.vain.saturating_add(1);
        let (owner, last) = (job.owner, now >= job.started + self.terms.load().settings.max_age);
        drop(job);
        let (looking, look) = (Looking { jobs: Arc::clone(self), id }, Arc::clone(look));
        tasks.spawn(async move {
            // What another replica has found out, or looks after, is not asked upstream.
            if looking.jobs.is_known_in_fleet(owner.account, &looking.id).await {
                return;
            }
            let looked = look.look(looking.id.clone(), owner).await;
            if last && looked {
                looking.jobs.end(&looking.id, End::Expired, "expired", None, Sight::None);
            }
        });
    }

    fn looked(&self, id: &str) {
        let Some(mut job) = self.table.get_mut(id) else { return };
        job.looking = false;
        job.looks = job.looks.saturating_add(1);
        let (vain, poll) = (job.vain, self.poll_of(&job.model));
        drop(job);
        // What does not tell its state is asked ever more rarely.
        self.plan(id, if vain > 0 { plan::grown(poll, vain) } else { Duration::ZERO });
    }

    /// Decides when this job is looked at next, not before `pause` from now.
    pub(super) fn plan(&self, id: &str, pause: Duration) {
        if let Some((model, job)) = self.to_plan(id) {
            self.decide(&model, &[(id, job)], pause);
        }
    }

    /// Decides anew for the live jobs of a model: what one has told serves the others.
    pub(super) fn plan_siblings(&self, model: &str) {
        let ids = self.models.live(model);
        let jobs: Vec<_> = ids.iter().filter_map(|id| Some((id.as_str(), self.to_plan(id)?.1))).collect();
        self.decide(model, &jobs, Duration::ZERO);
    }

    /// `None` where nothing is to be decided: the job has ended, or a look at it is under way.
    fn to_plan(&self, id: &str) -> Option<(Arc<str>, ToPlan)> {
        let job = self.table.get(id).filter(|job| matches!(job.slot, Some(Held::Here(_))) && !job.looking)?;
        let to_plan = ToPlan {
            account: job.owner.account,
            started: job.started,
            running: job.running,
            seen_start: job.seen_start,
            looks: job.looks,
            never_told: job.told.is_none() && job.looks == 0,
            planned: Some(job.due).filter(|due| job.entry.is_some_and(|entry| entry <= *due)),
        };
        Some((Arc::clone(&job.model), to_plan))
    }

    /// Decides for jobs of one model. What they share is asked for once.
    fn decide(&self, model: &str, jobs: &[(&str, ToPlan)], pause: Duration) {
        let (now, poll) = (Instant::now(), self.poll_of(model));
        let mut of_account: Option<(usize, f64)> = None;
        let prices: Vec<f64> = jobs
            .iter()
            .map(|(_, job)| match of_account {
                Some((account, price)) if account == job.account => price,
                _ => of_account.insert((job.account, plan::price(self.queue(job.account).usage()))).1,
            })
            .collect();
        let dues: Vec<(Instant, bool)> = self.models.with(model, |times, oldest, others| {
            let decided = jobs.iter().zip(prices).map(|((id, job), price)| {
                let first = oldest.is_none_or(|oldest| oldest == *id);
                // The probe tells nothing of jobs whose age is not known: they are looked at for themselves.
                let probe = first || !job.seen_start;
                let running_at = job.running.saturating_duration_since(job.started);
                let age = plan::next_look(times, Seen { running_at, looks: job.looks, poll, probe, others }, price);
                // A job restored without an answer is looked at now: somebody may ask.
                let at = if job.never_told { now } else { job.started + age };
                let closest = if job.looks > 0 { poll / CLOSEST } else { Duration::ZERO };
                (at.min(job.started + self.terms.load().settings.max_age).max(now + closest.max(pause)), first)
            });
            decided.collect()
        });
        for ((id, job), (due, first)) in jobs.iter().zip(dues) {
            if first {
                self.models.probe_at(model, due);
            }
            if job.planned != Some(due) {
                self.set_due(id, due);
            }
        }
    }

    pub(super) fn set_due(&self, id: &str, due: Instant) {
        let Some(mut job) = self.table.get_mut(id) else { return };
        let moved = job.due.max(due) - job.due.min(due);
        job.due = due;
        // An entry that comes too early finds the later plan; one that comes too late needs another before it.
        let early_enough = job.entry.is_some_and(|entry| entry <= due);
        if !early_enough {
            job.entry = Some(due);
        }
        let account = job.owner.account;
        drop(job);
        if moved > TOLD_STEP {
            self.tell_fleet(account, id);
        }
        if !early_enough {
            self.schedule(due, Due::Look(id.to_owned()));
        }
    }

    pub(super) fn poll_of(&self, model: &str) -> Duration {
        self.configured_poll(model).unwrap_or(DEFAULT_POLL)
    }

    /// `models.NAME.poll`, where the configuration names the model.
    pub(crate) fn configured_poll(&self, model: &str) -> Option<Duration> {
        let short = model.rsplit('/').next().unwrap_or_default();
        let polls = &self.terms.load().polls;
        polls.get(model).or_else(|| polls.get(short)).copied()
    }
}

/// What a decision needs of a job.
struct ToPlan {
    account: usize,
    started: Instant,
    running: Instant,
    seen_start: bool,
    looks: u32,
    never_told: bool,
    /// When it is looked at, if something is set to do so in time.
    planned: Option<Instant>,
}

/// A look under way. Its end, whatever it is, plans the next.
struct Looking {
    jobs: Arc<Jobs>,
    id: String,
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.jobs.looked(&self.id);
    }
}
