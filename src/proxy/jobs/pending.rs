//! A create between its first attempt and its outcome, and what the outcome means for slot and money.

use std::sync::Arc;

use http::StatusCode;

use crate::proxy::queue::Slot;

use super::{Job, Jobs, Owner, Sight, Told, Uncertain};

/// What became of a create, in terms of money: the `Sluicegate-Charge` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    /// Nothing left this proxy.
    NotSent,
    /// The upstream said no.
    Refused,
    /// A job runs, or has run.
    Accepted,
    /// It may have been carried out.
    Unknown,
}

impl Charge {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::Refused => "refused",
            Self::Accepted => "accepted",
            Self::Unknown => "unknown",
        }
    }
}

/// A create between its first attempt and its outcome. Dropped without one, it keeps its slot if something may have been carried out.
#[must_use]
pub(crate) struct Pending {
    pub(super) jobs: Arc<Jobs>,
    pub(super) slot: Option<Slot>,
    pub(super) n: u64,
    pub(super) owner: Owner,
    pub(super) model: Arc<str>,
    pub(super) unknown: bool,
    pub(super) doubt: bool,
    pub(super) sent: bool,
}

impl Pending {
    /// The next attempt is being written: from now on it may have been carried out.
    pub(crate) fn sending(&mut self) {
        // Tried again although the attempt before may have run: that doubt stays.
        self.doubt |= self.unknown;
        self.unknown = true;
        if self.sent {
            self.jobs.ledger.sent_again(self.n);
        }
        self.sent = true;
    }

    /// The last attempt was provably not carried out.
    pub(crate) fn not_done(&mut self) {
        self.unknown = self.doubt;
    }

    /// What can be said of the money while there is no answer.
    pub(crate) fn charge(&self) -> Charge {
        match (self.unknown, self.sent) {
            (true, _) => Charge::Unknown,
            (false, true) => Charge::Refused,
            (false, false) => Charge::NotSent,
        }
    }

    /// The upstream's final answer: what it means for the money, and the job that it started. Ready when a job's id is in the ledger:
    /// nobody hears of one that a crash would forget.
    pub(crate) async fn settle(mut self, told: &Told) -> (Charge, Option<String>) {
        if !told.status.is_success() {
            if !may_have_been_done(told.status) {
                self.not_done();
            }
            return (self.charge(), None);
        }
        let answer = self.jobs.protocol.read(&told.body);
        let Some((id, answer)) = answer.and_then(|answer| Some((answer.id.clone()?, answer))) else {
            tracing::warn!("a create was answered without a job id: its slot is held for jobs.uncertain");
            return (Charge::Unknown, None);
        };
        let Some(slot) = self.slot.take() else { return (Charge::Unknown, None) };
        self.unknown = false;
        let kept = self.jobs.ledger.started(self.n, &id);
        // The create's answer is the job's first state, and a poll is answered 200.
        let first = Told { status: StatusCode::OK, ..told.clone() };
        let status = answer.status.unwrap_or_else(|| "accepted".into());
        let model = Arc::clone(&self.model);
        let job = Job::new(self.owner, self.n, model, slot, status.clone(), Some(first.clone()));
        if !self.jobs.insert(&id, job) {
            self.jobs.repeated(&id, self.n);
        }
        if let Some(end) = answer.ended {
            self.jobs.end(&id, end, &status, Some(first), Sight::Seen(answer.took));
        }
        if let Err(error) = kept.await {
            tracing::debug!(job = id, %error, "after a crash this job would count as a create of unknown outcome");
        }
        self.jobs.queue(self.owner.account).jobs_are_told().await;
        self.jobs.told_in_fleet(self.owner.account).await;
        (Charge::Accepted, Some(id))
    }
}

/// After these a job may exist, although the upstream documents them as retryable.
pub(crate) fn may_have_been_done(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 500 | 502 | 504)
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        if self.unknown {
            self.jobs.hold(self.n, Uncertain { slot, owner: self.owner, model: Arc::clone(&self.model) });
        } else {
            self.jobs.ledger.refused(self.n);
            drop(slot);
        }
    }
}
