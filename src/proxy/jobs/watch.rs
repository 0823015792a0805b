//! The proxy's own looks at jobs that nobody polls, so that their slots come free.
//!
//! A job unseen for 10 s is looked at, then every 10 s. While creates wait for a slot, looks start at the model's own interval and grow by
//! half each time, up to 10 s. A job at `jobs.max_age` is looked at once more, then its slot is freed whatever it says.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::protocol::End;

use super::{Due, Jobs, Owner};

/// The first interval for models that the configuration does not name.
pub(crate) const DEFAULT_POLL: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// What to do about a job now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Look,
    /// One last look; then the slot is freed.
    LastLook,
    At(Instant),
}

/// Times of a job that the decision needs.
#[derive(Debug, Clone, Copy)]
struct Times {
    started: Instant,
    seen: Instant,
    looks: u32,
    poll: Duration,
    max_age: Duration,
}

/// How long after it was seen a job is worth another look while slots are short.
pub(crate) fn recheck(poll: Duration, looks: u32) -> Duration {
    let grown = poll.as_secs_f64() * 1.5_f64.powi(i32::try_from(looks.min(64)).unwrap_or(64));
    Duration::try_from_secs_f64(grown).unwrap_or(LONGEST).min(LONGEST)
}

fn next(times: Times, starved: bool, now: Instant) -> Next {
    let dies = times.started + times.max_age;
    if now >= dies {
        return Next::LastLook;
    }
    let short = recheck(times.poll, times.looks);
    if now >= times.seen + if starved { short } else { LONGEST } {
        return Next::Look;
    }
    // Slots may become short before the long interval ends: ask again in the short one.
    let again = times.seen + short;
    Next::At(if again > now { again } else { now + short }.min(times.seen + LONGEST).min(dies))
}

/// What the watch needs from the rest of the proxy: one status request through the queue, whose answer reaches `Jobs::saw_status`.
pub(crate) trait Look: Send + Sync + 'static {
    /// Looks once; returns when the answer was seen or will not come. False if there was no turn for it.
    fn look(&self, id: String, owner: Owner) -> impl Future<Output = bool> + Send;
    /// True when creates of this account wait for nothing but a slot.
    fn starved(&self, owner: Owner) -> bool;
}

impl Jobs {
    /// Watches until dropped.
    pub(crate) async fn watch<L: Look>(self: Arc<Self>, look: Arc<L>, tasks: TaskTracker) {
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
                Due::Forget(id) => drop(self.table.remove_if(&id, |_, job| job.slot.is_none())),
                Due::Look(id) => self.consider(id, look, tasks, now),
            }
        }
    }

    fn consider<L: Look>(self: &Arc<Self>, id: String, look: &Arc<L>, tasks: &TaskTracker, now: Instant) {
        let poll = self.poll_of(&id);
        let Some((owner, times)) = self.table.get(&id).filter(|job| job.slot.is_some()).map(|job| {
            let max_age = self.settings.max_age;
            (job.owner, Times { started: job.started, seen: job.seen, looks: job.looks, poll, max_age })
        }) else {
            return;
        };
        let last = match next(times, look.starved(owner), now) {
            Next::At(at) => return self.schedule(at, Due::Look(id)),
            Next::Look => false,
            Next::LastLook => true,
        };
        let (jobs, look) = (Arc::clone(self), Arc::clone(look));
        tasks.spawn(async move {
            let looked = look.look(id.clone(), owner).await;
            if last && looked {
                jobs.end(&id, End::Expired, "expired", None);
            } else {
                let now = Instant::now();
                jobs.schedule(now + recheck(poll, times.looks), Due::Look(id));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    fn times(now: Instant) -> Times {
        Times { started: now, seen: now, looks: 0, poll: secs(1.0), max_age: secs(1800.0) }
    }

    #[test]
    fn an_unseen_job_is_looked_at_after_ten_seconds() {
        let now = Instant::now();
        assert_eq!(next(times(now), false, now), Next::At(now + secs(1.0)));
        assert!(matches!(next(times(now), false, now + secs(9.5)), Next::At(at) if at == now + secs(10.0)));
        assert_eq!(next(times(now), false, now + secs(10.0)), Next::Look);
    }

    #[test]
    fn looks_come_sooner_while_creates_wait_for_slots() {
        let now = Instant::now();
        assert_eq!(next(times(now), true, now + secs(1.0)), Next::Look);
        let second = Times { looks: 1, ..times(now) };
        assert_eq!(next(second, true, now + secs(1.0)), Next::At(now + secs(1.5)));
        let late = Times { looks: 60, ..times(now) };
        assert_eq!(next(late, true, now + secs(9.0)), Next::At(now + secs(10.0)));
    }

    #[test]
    fn an_old_job_gets_one_last_look() {
        let now = Instant::now();
        assert_eq!(next(times(now), false, now + secs(1800.0)), Next::LastLook);
    }
}
