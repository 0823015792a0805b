//! Answers to those who ask about a job: from its last state, at once, or held until it ends where that is near.
//!
//! However many ask, and however often, upstream polls are the schedule's alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fleet::READ_EVERY;
use super::{Held, Jobs, Told};

/// How long a look that is under way is waited for, where nothing else is known.
const LOOK_TAKES: Duration = Duration::from_secs(60);
/// How often it is seen whether it still is.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a caller is told about a job.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) told: Arc<Told>,
    /// How long ago the upstream said so.
    pub(crate) age: Duration,
    /// When there may be news; `None` when there will be none.
    pub(crate) next_in: Option<Duration>,
}

/// How long a caller waits for the end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// If the next look comes within this, until it has come.
    Hold(Duration),
    /// Until the end or this long, whatever is expected: `Prefer: wait`.
    Wait(Duration),
}

enum Now {
    /// Answer with this.
    Told(Answer),
    /// Wait for news until the instant, then ask again.
    Wait(watch::Receiver<()>, Instant),
    /// Nothing is known that could be told: ask the upstream.
    Ask,
    /// It is another replica's: read what that has told.
    Read,
}

impl Jobs {
    /// What is to be told of a job that is known here; `None` where only the upstream can tell.
    pub(crate) async fn ask(&self, id: &str, patience: Patience, drain: &CancellationToken) -> Option<Answer> {
        let begun = Instant::now();
        loop {
            // The end of the drain would cut who still waits: better the last state.
            let patience = if drain.is_cancelled() { Patience::Wait(Duration::ZERO) } else { patience };
            match self.now(id, patience, begun) {
                Now::Told(answer) => return Some(answer),
                Now::Ask => return None,
                // Boxed: all other polls would pay for its place.
                Now::Read if !Box::pin(self.read_in_fleet(id)).await => return None,
                Now::Read => {}
                Now::Wait(mut changed, until) => {
                    // An error means that the job has ended: the sender is gone.
                    let _ = tokio::time::timeout_at(until, drain.run_until_cancelled(changed.changed())).await;
                }
            }
        }
    }

    fn now(&self, id: &str, patience: Patience, begun: Instant) -> Now {
        let Some(mut job) = self.table.get_mut(id) else { return Now::Ask };
        let now = Instant::now();
        let ended = job.slot.is_none();
        let elsewhere = matches!(job.slot, Some(Held::Elsewhere));
        if elsewhere && job.kept.as_ref().is_none_or(|kept| !kept.is_fresh(now)) {
            return Now::Read;
        }
        if job.odd.unread && !ended {
            return Now::Ask;
        }
        let told = job.trouble.clone().or_else(|| job.told.clone());
        if elsewhere && told.is_none() {
            return Now::Ask;
        }
        let until = match patience {
            _ if ended => now,
            Patience::Wait(most) => begun + most,
            // Nothing was ever told about it: the first look is on its way, and a second poll beside it would tell nothing more.
            Patience::Hold(most) if told.is_none() => {
                let soon = begun + most.max(Duration::from_secs(1));
                if job.looking { soon.max(now + LOOK_AGAIN).min(begun + LOOK_TAKES) } else { soon }
            }
            Patience::Hold(most) if elsewhere => {
                if job.due <= begun + most {
                    begun + most
                } else {
                    now
                }
            }
            Patience::Hold(most) => {
                let soon = |at: Instant| at <= begun + most;
                let near = match self.models.news(&job.model) {
                    // What the probe of an unknown model finds tells of its siblings too; but who asks right at the start has a
                    // sleep of its own before it, and would only be kept from asking again in time.
                    Some(news) => soon(news) && now >= job.started + self.poll_of(&job.model),
                    None => job.looking || soon(job.due),
                };
                if near { begun + most } else { now }
            }
        };
        if until > now {
            let changed = job.changed.get_or_insert_with(|| Arc::new(watch::Sender::new(())));
            let until = if elsewhere { until.min(now + READ_EVERY) } else { until };
            return Now::Wait(changed.subscribe(), until);
        }
        let Some(told) = told else { return Now::Ask };
        let next_in = (!ended).then(|| job.due.saturating_duration_since(now));
        Now::Told(Answer { age: now - told.at, told, next_in })
    }
}
