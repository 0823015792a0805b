//! Jobs that are found: what an earlier process left, and what another replica did.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::ledger;
use crate::ledger::jobs::{Known, Origin};
use crate::proxy::queue::Slot;
use crate::state::redis::wire::SlotEntry;

use super::{Held, Job, Jobs, Owner, Told, Uncertain};

impl Jobs {
    /// Takes up what an earlier process left. Jobs of accounts or clients that are gone from the configuration go to the first ones.
    pub(crate) fn restore(&self, known: Known) -> Result<(), ledger::Error> {
        let (now, moment, terms) = (Instant::now(), self.ledger.now(), self.terms.load_full());
        let owner = |origin: &Origin| Owner {
            account: terms.accounts.iter().position(|(name, _)| *name == origin.account).unwrap_or(0),
            client: terms.clients.iter().position(|name| *name == origin.client).unwrap_or(0),
        };
        self.models.restore(self.ledger.learned()?);
        for job in known.live {
            let owner = owner(&job.origin);
            // A clock that was set during a reboot must not end it before it was looked at for a while.
            let age = job.at.age(&moment).at_most_if_guessed(terms.settings.max_age / 2);
            let (started, seen_start) = now.checked_sub(age).map_or((now, false), |started| (started, true));
            let slot = self.queue(owner.account).adopt(owner.client, &job.id, &job.origin.model);
            let restored = Job::new(owner, job.number, job.origin.model.into(), slot, "unknown".into(), None);
            self.insert(&job.id, Job { started, seen_start, running: started, ..restored });
        }
        for create in known.uncertain {
            let owner = owner(&create.origin);
            let left = terms.settings.uncertain.saturating_sub(create.at.age(&moment).any());
            let slot = self.queue(owner.account).adopt(owner.client, "", &create.origin.model);
            let model = create.origin.model.into();
            self.keep(create.number, Uncertain { slot, owner, model }, now + left);
        }
        for job in known.ended {
            let ended = Job { number: job.number, ..Job::without_slot(owner(&job.origin), job.status) };
            self.table.insert(job.id.clone(), ended);
            self.remember(&job.id, 0);
        }
        Ok(())
    }

    /// As `adopt`; `told` is the last answer about the job.
    pub(super) fn take_over(&self, account: usize, entry: &SlotEntry, slot: Slot, told: Option<Told>) {
        let SlotEntry { job: id, model, client, .. } = entry;
        let (id, model) = (id.as_str(), model.as_str());
        let client = self.terms.load().clients.iter().position(|name| name == client).unwrap_or(0);
        let (owner, number) = (Owner { account, client }, self.ledger.number());
        if id.is_empty() {
            let until = Instant::now() + self.terms.load().settings.uncertain;
            return self.keep(number, Uncertain { slot, owner, model: model.into() }, until);
        }
        if let Some(mut job) = self.table.get_mut(id).filter(|job| job.slot.is_some()) {
            // Seen here before, when it was another's.
            let seen = job.slot.replace(Held::Here(slot));
            let is_new = matches!(seen, Some(Held::Elsewhere));
            if is_new && job.number == 0 {
                (job.owner, job.number) = (owner, number);
            }
            let (model, started, numbered) = (Arc::clone(&job.model), job.started, job.number == number);
            drop(job);
            drop(seen);
            if is_new {
                self.models.started(&model, started, id);
                self.plan(id, Duration::ZERO);
                self.watch_in_fleet(account, id);
            }
            if !numbered {
                return self.take_in_fleet(account, id);
            }
        } else {
            let job = Job::new(owner, number, model.into(), slot, "unknown".into(), told);
            self.insert(id, Job { seen_start: false, ..job });
        }
        self.take_in_fleet(account, id);
        self.ledger.seen(number, id, self.origin(owner, model));
    }
}
