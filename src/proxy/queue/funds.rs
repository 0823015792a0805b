//! The day's credits where replicas share them: taken with an attempt's place, and changed by what becomes of it.

use tokio::time::Instant;

use crate::config::Amount;

use super::shared::purse::Purse;
use super::{Account, Permit};

use super::shared::purse::{Funds, NoFunds};

impl Account {
    /// Whether its credits are those of all replicas.
    pub(crate) fn shares_credits(&self) -> bool {
        self.book().shared.as_ref().is_some_and(|shared| shared.purse.is_some())
    }

    /// What an earlier process of this replica has taken of a day's budget. Before anything else is.
    pub(crate) fn restore_spent(&self, day: i64, spent: Amount) {
        self.with_purse(|purse| purse.restore(day, spent.micro()));
    }

    /// What this replica has taken on a day has become more or less, by millionths of a credit.
    pub(crate) fn spent_changed(&self, day: i64, by: i64) {
        let mut book = self.book();
        let urgent = book.shared.as_mut().is_some_and(|shared| shared.spent_changed(day, by));
        drop(book);
        if urgent {
            self.broker.notify_one();
        }
    }

    /// A job has ended and is to be refunded: where a replica that is gone has paid for it, that one's part shrinks when the slot comes free.
    pub(crate) fn refund_slot_of(&self, job: &str) {
        if let Some(shared) = &mut self.book().shared {
            shared.refund_slot_of(job);
        }
    }

    /// Whether the budget lasts for this, as far as the store has said.
    pub(crate) fn check_funds(&self, amount: Amount) -> Result<(), NoFunds> {
        let now = Instant::now();
        let book = self.book();
        let purse = book.shared.as_ref().and_then(|shared| shared.purse.as_ref());
        purse.map_or(Ok(()), |purse| purse.check(amount, now))
    }

    /// What all replicas have used of the day; `None` where credits are not shared.
    pub(crate) fn funds(&self) -> Option<Funds> {
        let now = Instant::now();
        let book = self.book();
        Some(book.shared.as_ref()?.purse.as_ref()?.funds(now))
    }

    fn with_purse(&self, change: impl FnOnce(&mut Purse)) {
        if let Some(purse) = self.book().shared.as_mut().and_then(|shared| shared.purse.as_mut()) {
            change(purse);
        }
    }
}

impl Permit {
    /// The day on which the credits count that came with it, if any did.
    pub(crate) fn funded(&self) -> Option<i64> {
        self.place.as_ref()?.funded.map(|(day, _)| day)
    }

    /// Its account's credits come with permits.
    pub(crate) fn wants_funds(&self) -> bool {
        self.account.shares_credits()
    }

    /// They are somebody else's to give back from now on.
    pub(crate) fn funds_taken(&mut self) {
        if let Some(place) = &mut self.place {
            place.funded = None;
        }
    }
}
