//! Creates whose outcome nobody knows. Each keeps its slot for `jobs.uncertain`, or until its job turns up.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::proxy::queue::Slot;

use super::{Due, Event, Job, Jobs, Owner};

/// A create without a known outcome, and the slot that it holds.
pub(super) struct Uncertain {
    pub(super) slot: Slot,
    pub(super) owner: Owner,
    pub(super) model: Arc<str>,
}

impl Jobs {
    pub(super) fn hold(&self, n: u64, held: Uncertain) {
        self.ledger.uncertain(n);
        self.keep(n, held, Instant::now() + self.terms.load().settings.uncertain);
    }

    /// The job of a create whose outcome was not known has turned up: it takes over the slot that is held for it.
    pub(crate) fn turned_up(&self, number: u64, id: &str) {
        let held = self.lock_uncertain().remove(&number);
        let Some(Uncertain { slot, owner, model }) = held else { return };
        drop(self.ledger.started(number, id));
        self.tell(Event::TurnedUp(number));
        let job = Job::new(owner, number, model, slot, "unknown".into(), None);
        if !self.insert(id, Job { seen_start: false, ..job }) {
            // Somebody asked for it before: it lives here already, under another number.
            self.tell(Event::NoEnd(number));
        }
    }

    pub(super) fn keep(&self, n: u64, held: Uncertain, until: Instant) {
        self.lock_uncertain().insert(n, held);
        self.schedule(until, Due::Certain(n));
    }

    pub(super) fn release(&self, n: u64) {
        // Its slot is dropped when the lock is free again: that may wake others.
        let held = self.lock_uncertain().remove(&n);
        if held.is_some() {
            self.ledger.given_up(n);
            self.tell(Event::NoEnd(n));
        }
    }

    fn lock_uncertain(&self) -> MutexGuard<'_, HashMap<u64, Uncertain>> {
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates whose outcome is unknown and that hold a slot.
    pub(crate) fn uncertain(&self) -> usize {
        self.lock_uncertain().len()
    }
}
