//! Places in the window, from their grant to the report of what became of them.

use tokio::time::Instant;

use crate::config::Amount;

use super::super::line::Need;
use super::{Mode, Shared};

/// Permission of the store to send one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) origin: Origin,
    /// The day and the millionths of a credit that came with it, until somebody has taken them.
    pub(in crate::proxy::queue) funded: Option<(i64, u64)>,
    /// The attempt must be sent by then: the place is not kept for longer.
    pub(crate) good_until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This replica's share, while it is cut off.
    Share,
    /// Asked for by itself, under this number.
    Asked(u64),
    /// One of a block.
    Block,
}

impl Place {
    fn number(&self) -> Option<u64> {
        if let Origin::Asked(n) = self.origin { Some(n) } else { None }
    }
}

impl Shared {
    /// A place that is asked of nobody: one of a block, or of our own share while we are cut off. `None`: the store has to be asked, for it or
    /// for what is needed beside it.
    pub(in crate::proxy::queue) fn take(&mut self, need: Need, price: Amount, now: Instant) -> Option<Place> {
        if !self.needs_no_call(need, price, now) {
            return None;
        }
        let of_block = self.at_hand(now) > 0;
        let (origin, good_until) = match &mut self.block {
            Some(block) if of_block => (Origin::Block, block.take(now)),
            _ => {
                // It may be sent after the next call, which would then be taken for an end of our share.
                self.must_join = true;
                (Origin::Share, now + self.terms.grant)
            }
        };
        Some(Place { origin, funded: None, good_until })
    }

    /// Whoever may go can go at once.
    pub(in crate::proxy::queue) fn needs_no_call(&self, need: Need, price: Amount, now: Instant) -> bool {
        let alone = need != Need::Slot && price == Amount::ZERO && self.at_hand(now) > 0;
        !self.asks() || alone
    }

    /// Attempts that were granted beforehand.
    pub(super) fn at_hand(&self, now: Instant) -> u32 {
        match &self.block {
            Some(block) if self.mode != Mode::Outside && !self.is_halted(now) => block.left(now),
            _ => 0,
        }
    }

    /// The store has refused until later.
    pub(super) fn is_closed(&self, now: Instant) -> bool {
        self.closed_until.is_some_and(|until| now < until)
    }

    /// For a reason that holds for what it had granted before, too.
    fn is_halted(&self, now: Instant) -> bool {
        let for_room = self.told.why.as_deref().is_none_or(|why| matches!(why, "window" | "pace"));
        !for_room && self.is_closed(now)
    }

    /// Attempts are evenly spaced: what is granted is not to be sent much later.
    pub(super) fn is_even(&self) -> bool {
        self.terms.paced || self.told.paced
    }

    /// A call for another block is worth its while; so many wait for one.
    pub(in crate::proxy::queue) fn wants_block(&self, waiting: usize, now: Instant) -> bool {
        let turn = self.closed_until.is_some();
        let is_low = self.block.as_ref().is_some_and(|block| block.is_low(waiting, self.is_even(), turn, now));
        is_low && self.mode == Mode::Up && !self.is_closed(now)
    }

    /// Attempts that were granted in blocks: those that are left, and those that were never sent. `None` where they are granted one by one.
    pub(in crate::proxy::queue) fn unspent(&self, now: Instant) -> Option<(u32, u64)> {
        self.block.as_ref().map(|block| (block.left(now), block.lapsed()))
    }

    /// The head of an attempt is being written; of our own share the store does not know yet.
    pub(in crate::proxy::queue) fn sent(&mut self, place: Option<&Place>, now: Instant) {
        match place.map(|place| place.origin) {
            Some(Origin::Asked(n)) => {
                self.flights.insert(n, now);
            }
            // The log has it.
            Some(Origin::Block) => {}
            Some(Origin::Share) | None => self.must_join = true,
        }
    }

    pub(in crate::proxy::queue) fn unsent(&mut self, place: Option<&Place>) {
        if let Some(n) = place.and_then(Place::number) {
            self.flights.remove(&n);
        }
    }

    pub(in crate::proxy::queue) fn answered(&mut self, place: Option<&Place>, now: Instant) {
        if let Some(n) = place.and_then(Place::number)
            && let Some(sent) = self.flights.remove(&n)
        {
            let counted_by = now.min(sent + self.terms.jitter);
            self.reports.ends.insert(n, counted_by + self.terms.window);
        }
    }

    /// Nothing was sent.
    pub(in crate::proxy::queue) fn given_back(&mut self, place: Option<&Place>, now: Instant) {
        let Some(place) = place else { return };
        if let (Some((day, amount)), Some(purse)) = (place.funded, &mut self.purse) {
            purse.changed(day, -i64::try_from(amount).unwrap_or(i64::MAX));
        }
        match (place.origin, &mut self.block) {
            (Origin::Asked(n), _) => {
                self.reports.ends.insert(n, now);
                self.hurry = true;
            }
            (Origin::Block, Some(block)) => block.put_back(1),
            (Origin::Block, None) | (Origin::Share, _) => {}
        }
    }

    /// The upstream has refused: nobody of the fleet asks it until then.
    pub(in crate::proxy::queue) fn close(&mut self, until: Instant, paced: bool) {
        self.reports.closed = self.reports.closed.max(Some(until));
        self.reports.paced |= paced;
    }
}
