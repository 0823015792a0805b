//! The job slots that this replica holds, as the store knows them or will.

use tokio::time::Instant;

use crate::state::redis::wire::SlotEntry;

use super::{Mode, Shared};

/// A job slot of ours, as the store knows it or will.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) entry: SlotEntry,
    /// Another replica has it by now, or had the job before: it is not ours to free.
    pub(super) foreign: bool,
    /// What another replica has paid for it is to be refunded.
    pub(super) refund: bool,
}

impl Shared {
    /// May a job start? While the store cannot be asked nobody knows how many live.
    pub(in crate::proxy::queue) fn slots_open(&self, now: Instant) -> bool {
        self.mode == Mode::Up && self.slots_until.is_none_or(|until| until <= now)
    }

    /// When to ask for a slot again.
    pub(in crate::proxy::queue) fn slots_until(&self) -> Option<Instant> {
        self.slots_until
    }

    /// A slot that was not asked for: an earlier process', or of a job that was started past us.
    pub(in crate::proxy::queue) fn hold_slot(&mut self, client: usize, job: &str, model: &str) -> u32 {
        let n = self.new_slot(client);
        self.bind(n, job, model);
        n
    }

    pub(super) fn new_slot(&mut self, client: usize) -> u32 {
        self.next += 1;
        let entry = SlotEntry {
            slot: self.name(self.next),
            fence: 1,
            job: String::new(),
            model: String::new(),
            client: self.clients[client].clone(),
            account: self.account.clone(),
            paid: None,
        };
        self.keep_slot(entry)
    }

    pub(super) fn keep_slot(&mut self, entry: SlotEntry) -> u32 {
        self.next_slot += 1;
        self.slots.insert(self.next_slot, Held { entry, foreign: false, refund: false });
        self.next_slot
    }

    /// The slot is this job's.
    pub(in crate::proxy::queue) fn bind(&mut self, slot: u32, job: &str, model: &str) {
        let Some(held) = self.slots.get_mut(&slot) else { return };
        if held.entry.job == job && !job.is_empty() {
            return;
        }
        job.clone_into(&mut held.entry.job);
        model.clone_into(&mut held.entry.model);
        if !held.foreign {
            self.reports.slots.insert(slot);
            self.noted += 1;
        }
    }

    /// How many jobs' names were noted, and how many of these the store has.
    pub(in crate::proxy::queue) fn names(&self) -> (u64, u64) {
        (self.noted, self.named)
    }

    pub(in crate::proxy::queue) fn free_slot(&mut self, slot: u32) {
        self.reports.slots.remove(&slot);
        if let Some(held) = self.slots.remove(&slot).filter(|held| !held.foreign) {
            self.reports.freed.push((held.entry.slot, held.entry.fence, u8::from(held.refund)));
            self.slots_until = None;
        }
    }

    /// What was paid for this job is to be refunded, where another replica did: ours is in our own book.
    pub(in crate::proxy::queue) fn refund_slot_of(&mut self, job: &str) {
        for held in self.slots.values_mut().filter(|held| held.entry.job == job && !held.foreign) {
            held.refund = held.entry.paid.as_ref().is_some_and(|paid| paid.by != self.id);
        }
    }

    /// Whether the slot that we hold for this job is ours for the store too; `None` while that is not known.
    pub(in crate::proxy::queue) fn has_slot(&self, job: &str) -> Option<bool> {
        let (number, held) = self.slots.iter().find(|(_, held)| held.entry.job == job)?;
        let unsaid = self.reports.slots.contains(number) || self.on_the_way.slots.contains(number);
        let known = self.mode == Mode::Up && !self.must_join && !self.joining && !unsaid;
        if held.foreign { Some(false) } else { known.then_some(true) }
    }

    /// The client of this name, or the first.
    pub(in crate::proxy::queue) fn client(&self, name: &str) -> usize {
        self.clients.iter().position(|client| client == name).unwrap_or(0)
    }
}
