//! Places in the window, from their grant to the report of what became of them.

use tokio::time::Instant;

use super::Shared;

/// A place that the store has granted, or one of this replica's own share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// `None`: of the share.
    pub(super) n: Option<u64>,
    /// The day and the millionths of a credit that came with it, until somebody has taken them.
    pub(in crate::proxy::queue) funded: Option<(i64, u64)>,
    /// The attempt must be sent by then: the place is not kept for longer.
    pub(crate) good_until: Instant,
}

impl Shared {
    /// A place of our own share, which is asked of nobody.
    pub(in crate::proxy::queue) fn own_place(&self, now: Instant) -> Place {
        Place { n: None, funded: None, good_until: now + self.terms.grant }
    }

    /// The head of an attempt is being written; without a place it spends our share.
    pub(in crate::proxy::queue) fn sent(&mut self, place: Option<&Place>, now: Instant) {
        match place.and_then(|place| place.n) {
            Some(n) => {
                self.flights.insert(n, now);
            }
            None => self.must_join = true,
        }
    }

    pub(in crate::proxy::queue) fn unsent(&mut self, place: Option<&Place>) {
        if let Some(n) = place.and_then(|place| place.n) {
            self.flights.remove(&n);
        }
    }

    pub(in crate::proxy::queue) fn answered(&mut self, place: Option<&Place>, now: Instant) {
        if let Some(n) = place.and_then(|place| place.n)
            && let Some(sent) = self.flights.remove(&n)
        {
            let counted_by = now.min(sent + self.terms.jitter);
            self.reports.ends.insert(n, counted_by + self.terms.window);
        }
    }

    /// Nothing was sent.
    pub(in crate::proxy::queue) fn given_back(&mut self, place: Option<&Place>, now: Instant) {
        if let (Some((day, amount)), Some(purse)) = (place.and_then(|place| place.funded), &mut self.purse) {
            purse.changed(day, -i64::try_from(amount).unwrap_or(i64::MAX));
        }
        if let Some(n) = place.and_then(|place| place.n) {
            self.reports.ends.insert(n, now);
            self.hurry = true;
        }
    }

    /// The upstream has refused: nobody of the fleet asks it until then.
    pub(in crate::proxy::queue) fn close(&mut self, until: Instant, paced: bool) {
        self.reports.closed = self.reports.closed.max(Some(until));
        self.reports.paced |= paced;
    }
}
