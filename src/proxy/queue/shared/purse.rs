//! The day's budget among replicas, as one of them knows it: what it has taken itself, and what the store last said of all.
//!
//! Pure. What this replica has taken is told whole with every call: a lost answer, or a note that comes twice, changes nothing. What a store
//! that was emptied is told of the others is what they had when they were last heard of.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Amount;
use crate::state::redis::wire::{PurseReply, PurseTold, Row};

/// The budget does not last for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoFunds {
    pub(crate) needed: Amount,
    pub(crate) left: Amount,
    pub(crate) limit: Amount,
    /// Until the day's end, by the server's clock.
    pub(crate) resets_in: Duration,
}

/// What is known of all replicas' day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Funds {
    /// Since 1970, at `credits.utc_offset`, by the server's clock.
    pub(crate) day: i64,
    pub(crate) used: Amount,
    pub(crate) limit: Amount,
    /// Of `used`: this replica's own.
    pub(crate) own: Amount,
    /// What one has taken is not known: nothing is granted until it comes back, or the day ends.
    pub(crate) frozen: bool,
}

/// See the module. Amounts are millionths of a credit.
#[derive(Debug)]
pub(in crate::proxy::queue) struct Purse {
    budget: Amount,
    offset: i32,
    /// The day on which this replica has taken something last.
    day: i64,
    spent: u64,
    /// The same as it was told last.
    told: (i64, u64),
    heard: Option<Heard>,
    others: BTreeMap<String, Row>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    day: i64,
    used: u64,
    frozen: bool,
    until: Instant,
    /// What we had told by then.
    own: u64,
}

impl Purse {
    pub(in crate::proxy::queue) fn new((budget, offset): (Amount, i32)) -> Self {
        Self { budget, offset, day: i64::MIN / 2, spent: 0, told: (0, 0), heard: None, others: BTreeMap::new() }
    }

    /// What an earlier process has taken.
    pub(in crate::proxy::queue) fn restore(&mut self, day: i64, spent: u64) {
        (self.day, self.spent) = (day, spent);
    }

    /// For a call; `today` by this replica's calendar.
    pub(in crate::proxy::queue) fn tell(&mut self, today: i64, join: bool) -> PurseTold {
        self.told = (self.day, self.spent);
        PurseTold {
            budget: self.budget.micro(),
            offset: self.offset,
            day: today,
            seen: self.heard.map(|heard| heard.day),
            spent: self.spent,
            of: self.day,
            others: if join { self.others.clone() } else { BTreeMap::new() },
        }
    }

    /// The store's answer, before its grants are taken.
    pub(in crate::proxy::queue) fn heard(&mut self, reply: &PurseReply, now: Instant) {
        if reply.of > self.day {
            (self.day, self.spent) = (reply.of, 0);
        }
        let own = if self.told.0 == reply.of { self.told.1 } else { 0 };
        // At most a day and a step of the clock; never a panic from what the network says.
        let ends = Duration::try_from_secs_f64(reply.ends / 1e6).unwrap_or_default().min(Duration::from_secs(200_000));
        self.heard = Some(Heard { day: reply.day, used: reply.used, frozen: reply.frozen, until: now + ends, own });
        if !reply.others.is_empty() {
            self.others.clone_from(&reply.others);
        }
    }

    /// One of our asks was granted: the day on which it counts.
    pub(in crate::proxy::queue) fn granted(&mut self, amount: u64) -> i64 {
        self.spent = self.spent.saturating_add(amount);
        if let Some(heard) = &mut self.heard {
            heard.own = heard.own.saturating_add(amount);
        }
        self.day
    }

    /// What was taken on a day has become more or less. True if others may have what it is less.
    pub(in crate::proxy::queue) fn changed(&mut self, day: i64, by: i64) -> bool {
        if day != self.day {
            return false;
        }
        self.spent = self.spent.saturating_add_signed(by);
        by < 0
    }

    /// Whether it is worth asking the store: what it refused last is refused here until it says otherwise, or the day ends.
    pub(in crate::proxy::queue) fn check(&self, amount: Amount, now: Instant) -> Result<(), NoFunds> {
        let no = self.short_of(amount, now);
        if no.left >= amount { Ok(()) } else { Err(no) }
    }

    /// As the store has refused it.
    pub(in crate::proxy::queue) fn short_of(&self, needed: Amount, now: Instant) -> NoFunds {
        let heard = self.heard.filter(|heard| heard.until > now);
        let left = match heard {
            Some(heard) if heard.frozen => Amount::ZERO,
            Some(heard) => self.budget.less(Amount::from_micro(self.used(heard))),
            None => self.budget,
        };
        let resets_in = heard.map_or(Duration::ZERO, |heard| heard.until - now);
        NoFunds { needed, left, limit: self.budget, resets_in }
    }

    pub(in crate::proxy::queue) fn funds(&self, now: Instant) -> Funds {
        let heard = self.heard.filter(|heard| heard.until > now);
        let used = heard.map_or(self.spent, |heard| self.used(heard));
        let own = Amount::from_micro(self.spent);
        Funds {
            day: heard.map_or(self.day, |heard| heard.day),
            used: Amount::from_micro(used),
            limit: self.budget,
            own,
            frozen: heard.is_some_and(|heard| heard.frozen),
        }
    }

    /// What all have taken, with what became of our own since.
    fn used(&self, heard: Heard) -> u64 {
        heard.used.saturating_sub(heard.own).saturating_add(self.spent)
    }
}
