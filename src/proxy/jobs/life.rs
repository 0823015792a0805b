//! A job's place in the table: from where it is known to live until it is forgotten.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::mapref::entry::Entry;
use tokio::time::Instant;

use crate::protocol::End;

use super::models::Ran;
use super::remembered::Remembered;
use super::{Due, Ended, Event, Held, Job, Jobs, Owner, Sight, Told};

impl Jobs {
    /// False where the id is that of a live job: it is one job, and the slot it holds is enough.
    pub(super) fn insert(&self, id: &str, job: Job) -> bool {
        let (model, started, account) = (Arc::clone(&job.model), job.started, job.owner.account);
        if let Some(Held::Here(slot)) = &job.slot {
            slot.bind(id, &model);
        }
        let (replaced, is_new) = match self.table.entry(id.to_owned()) {
            Entry::Occupied(known) if matches!(known.get().slot, Some(Held::Here(_))) => (Some(job), false),
            Entry::Occupied(mut ended) => (Some(ended.insert(job)), true),
            Entry::Vacant(free) => {
                free.insert(job);
                (None, true)
            }
        };
        // Dropped here, when the table's shard is free again: a slot's drop may wake others.
        drop(replaced);
        if is_new {
            self.models.started(&model, started, id);
            self.plan(id, Duration::ZERO);
            self.watch_in_fleet(account, id);
        }
        is_new
    }

    /// A job that somebody still waits for is looked at now, unless it is known to be live: it may have ended unseen.
    pub(crate) fn look_again(&self, id: &str, owner: Owner) {
        if self.table.get(id).is_none_or(|job| job.slot.is_none()) {
            let known = self.table.get(id).map(|job| (job.number, Arc::clone(&job.model)));
            let (number, model) = known.unwrap_or_else(|| (0, "unknown".into()));
            let slot = self.queue(owner.account).adopt(owner.client, id, &model);
            let again = Job::new(owner, number, model, slot, "unknown".into(), None);
            self.insert(id, Job { seen_start: false, ..again });
        }
    }

    /// A create was answered with the id of a live job. The upstream took both: each is paid, and the job's end is told for the first.
    pub(super) fn repeated(&self, id: &str, number: u64) {
        let first = self.table.get_mut(id).is_some_and(|mut job| !std::mem::replace(&mut job.odd.repeated, true));
        if first {
            tracing::warn!(
                job = id,
                "several creates were answered with one job: it holds one slot, each create is paid"
            );
        }
        self.tell(Event::NoEnd(number));
    }

    /// A job that was never live here is remembered like one that was.
    pub(super) fn note_ended(&self, id: &str, owner: Owner) {
        let job = Job { slot: None, ..Job::without_slot(owner, "unknown".into()) };
        self.table.entry(id.to_owned()).or_insert(job);
    }

    /// The job holds its slot no longer.
    pub(super) fn end(&self, id: &str, end: End, status: &str, told: Option<Told>, sight: Sight) {
        let told = told.map(Arc::new);
        let Some(mut job) = self.table.get_mut(id).filter(|job| job.slot.is_some() || job.told.is_none()) else {
            return;
        };
        status.clone_into(&mut job.status);
        let size = told.as_ref().map_or(0, |told| told.body.len());
        job.told.clone_from(&told);
        job.trouble = None;
        job.ended = Some(end);
        let changed = job.changed.take();
        let (slot, owner, number, model) = (job.slot.take(), job.owner, job.number, Arc::clone(&job.model));
        let (started, running, seen_start) = (job.started, job.running, job.seen_start);
        drop(job);
        if let Some(changed) = changed {
            changed.send_replace(());
        }
        self.remember(id, size);
        if !matches!(sight, Sight::Heard(_)) {
            self.tell_fleet(owner.account, id);
        }
        let slot = match slot {
            None => return,
            // Its own replica settles what it left open.
            Some(Held::Elsewhere) if number == 0 => return,
            Some(Held::Elsewhere) => None,
            Some(Held::Here(slot)) => Some(slot),
        };
        let now = Instant::now();
        if slot.is_some() {
            let ran = match sight {
                Sight::Seen(told) | Sight::Heard(told) if seen_start => Some(Ran { running, told }),
                _ => None,
            };
            self.models.ended(&model, owner.account, id, started, ran, now);
            if let Some(held) = self.models.held(owner.account) {
                self.queue(owner.account).jobs_take(held);
            }
        }
        let answer = told.as_ref().map(|told| told.body.clone());
        let ended = Ended { id: id.to_owned(), number, end, answer };
        self.tell(Event::Ended(&ended));
        self.ledger.ended(number, status);
        drop(slot);
        tracing::debug!(job = id, status, end = end.name(), age_ms = (now - started).as_millis(), "job ended");
        self.plan_siblings(&model);
    }

    pub(super) fn remember(&self, id: &str, size: usize) {
        let (forgotten, forget_at) = self.lock_remembered().add(id, size, Instant::now());
        self.forget(&forgotten);
        if let Some(at) = forget_at {
            self.schedule(at, Due::Forget);
        }
    }

    pub(super) fn forget(&self, ids: &[String]) {
        for id in ids {
            self.table.remove_if(id, |_, job| job.slot.is_none());
        }
    }

    pub(super) fn lock_remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ended jobs that are remembered, and the bytes of their answers.
    pub(crate) fn remembered(&self) -> (usize, usize) {
        self.lock_remembered().size()
    }
}
