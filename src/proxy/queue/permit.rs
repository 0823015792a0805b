//! What a turn is made of: a permit for one attempt and a slot for one job, both given back by drop.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::quota::feedback::Feedback;
use crate::proxy::quota::{Claim, Refused, Stamp};

use super::Account;
use super::shared::Place;

/// After a refusal for too many jobs, when one of ours can end, the next try comes no later than this.
const LONGEST_WITHOUT_ROOM: Duration = Duration::from_secs(30);
/// The same, when none of ours is live: doubled with each such refusal in a row.
const WITHOUT_ROOM_UNTOLD: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    Reserved,
    Sent(Option<Stamp>),
    Done,
    Unmetered,
}

/// Permission for one attempt. Dropped before the attempt is sent, it gives everything back; dropped after, the attempt keeps its place
/// in the window, for the upstream may have counted it.
#[must_use]
pub(crate) struct Permit {
    pub(super) account: Arc<Account>,
    /// Not a `usize`: every request's future has several of these.
    pub(super) client: u32,
    pub(super) claim: Claim,
    pub(super) stage: Stage,
    /// The store has granted it. Boxed: requests live long, and few have one.
    pub(super) place: Option<Box<Place>>,
    /// It is a create's.
    pub(super) starts_job: bool,
}

impl Permit {
    /// The attempt is counted.
    pub(crate) fn is_metered(&self) -> bool {
        !matches!(self.stage, Stage::Unmetered)
    }

    /// It was granted too long ago to be sent: give it back.
    pub(crate) fn is_stale(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.good_until <= Instant::now())
    }

    /// The head is being written.
    pub(crate) fn sent(&mut self) {
        if !self.is_metered() {
            return;
        }
        let now = Instant::now();
        let mut stamp = None;
        self.account.change(|book| {
            stamp = book.quota.sent(&mut self.claim, now);
            book.attempts += 1;
            if let Some(shared) = &mut book.shared {
                shared.sent(self.place.as_deref(), now);
            }
            if let Some(ring) = &mut book.ring {
                ring.record(now);
            }
        });
        self.stage = Stage::Sent(stamp);
    }

    /// The attempt provably never left, although `sent` was called: the permit is good for another connection.
    pub(crate) fn unsent(&mut self) {
        if let Stage::Sent(stamp) = self.stage {
            let mut book = self.account.book();
            book.quota.unsent(&mut self.claim, stamp);
            book.attempts -= 1;
            if let Some(shared) = &mut book.shared {
                shared.unsent(self.place.as_deref());
            }
            self.stage = Stage::Reserved;
        }
    }

    /// The response head arrived just now. True when this answer switched the account to pacing.
    pub(crate) fn answered(mut self, feedback: Feedback, refused: Option<Refused>, now: Instant) -> bool {
        let Stage::Sent(stamp) = std::mem::replace(&mut self.stage, Stage::Done) else {
            return false;
        };
        let mut switched = false;
        self.account.change(|book| {
            switched = book.quota.answered(self.claim, stamp, feedback, refused, now);
            if let Some(shared) = &mut book.shared {
                shared.answered(self.place.as_deref(), now);
                if let (Some(Refused::Window), Some(until)) = (refused, book.quota.closed_until()) {
                    shared.close(until, switched);
                }
            }
            if refused == Some(Refused::Jobs) {
                // The refused create's own slot is one of `live`.
                let others = book.live > 1;
                let grown =
                    WITHOUT_ROOM_UNTOLD.saturating_mul(1 << book.refused_for_jobs.min(5)).min(LONGEST_WITHOUT_ROOM);
                let least = if others { LONGEST_WITHOUT_ROOM } else { grown };
                book.no_room_until = Some(now + least.max(feedback.retry_after.unwrap_or_default()));
                book.refused_for_jobs += 1;
            } else if refused.is_none() && self.starts_job {
                book.refused_for_jobs = 0;
            }
        });
        switched
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if matches!(self.stage, Stage::Done | Stage::Unmetered) {
            return;
        }
        let now = Instant::now();
        self.account.change(|book| match self.stage {
            Stage::Reserved => {
                book.quota.release(self.claim, now);
                book.clients.refund(self.client as usize, self.claim.share);
                if let Some(shared) = &mut book.shared {
                    shared.given_back(self.place.as_deref(), now);
                }
            }
            Stage::Sent(_) => book.quota.lost(self.claim, now),
            Stage::Done | Stage::Unmetered => {}
        });
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({}, {:?})", self.account.name, self.stage)
    }
}

/// A unit of the plan's concurrent jobs. Whoever owns it holds it: first the call, then the job. Dropping it frees it.
#[must_use]
pub(crate) struct Slot {
    pub(super) account: Arc<Account>,
    /// Not a `usize`: every request's future has several of these.
    pub(super) client: u32,
    /// Its number among those that the store knows.
    pub(super) shared: Option<NonZeroU32>,
}

impl Slot {
    /// It is one of this account's.
    pub(crate) fn is_of(&self, account: &Arc<Account>) -> bool {
        Arc::ptr_eq(&self.account, account)
    }

    /// It is this job's from now on: the store is told, so that another replica can look at the job when this one is gone.
    pub(crate) fn bind(&self, job: &str, model: &str) {
        if let Some(slot) = self.shared {
            self.account.change(|book| {
                if let Some(shared) = &mut book.shared {
                    shared.bind(slot.get(), job, model);
                }
            });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.account.change(|book| {
            book.live = book.live.saturating_sub(1);
            let client = &mut book.clients.0[self.client as usize];
            client.live = client.live.saturating_sub(1);
            book.no_room_until = None;
            book.line.slot_freed(self.client as usize);
            if let (Some(shared), Some(slot)) = (&mut book.shared, self.shared) {
                shared.free_slot(slot.get());
            }
        });
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", self.account.name)
    }
}
