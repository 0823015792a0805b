//! Retries in the last 60 s stay below max(floor, share of first attempts), so that an outage is not multiplied.

use std::time::Duration;

use tokio::time::Instant;

const SLICES: usize = 60;
const SLICE: Duration = Duration::from_secs(1);

/// Counts of the last 60 s, in slices of one second.
#[derive(Debug)]
pub(crate) struct Budget {
    share: f64,
    floor: u32,
    slices: [Slice; SLICES],
    origin: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    second: u64,
    first: u32,
    retries: u32,
}

impl Budget {
    /// `share` of first attempts, but at least `floor` retries in 60 s.
    pub(crate) fn new(share: f64, floor: u32, now: Instant) -> Self {
        Self { share, floor, slices: [Slice::default(); SLICES], origin: now }
    }

    /// Another share and floor; what was counted stays.
    pub(crate) fn replan(&mut self, share: f64, floor: u32) {
        (self.share, self.floor) = (share, floor);
    }

    /// A call's first attempt.
    pub(crate) fn first(&mut self, now: Instant) {
        self.slice(now).first += 1;
    }

    /// Takes one retry out of the budget, if there is one.
    pub(crate) fn withdraw(&mut self, now: Instant) -> bool {
        let second = self.second(now);
        let recent = self.slices.iter().filter(|slice| slice.second + SLICES as u64 > second);
        let (first, retries) = recent.fold((0_u64, 0_u64), |(first, retries), slice| {
            (first + u64::from(slice.first), retries + u64::from(slice.retries))
        });
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let allowed = ((first as f64 * self.share) as u64).max(u64::from(self.floor)); // counts of one minute are exact in f64
        if retries >= allowed {
            return false;
        }
        self.slice(now).retries += 1;
        true
    }

    fn second(&self, now: Instant) -> u64 {
        // From 60 on, so that an untouched slice is never recent.
        SLICES as u64 + now.saturating_duration_since(self.origin).as_secs() / SLICE.as_secs()
    }

    fn slice(&mut self, now: Instant) -> &mut Slice {
        let second = self.second(now);
        let index = usize::try_from(second % SLICES as u64).unwrap_or_default();
        let slice = &mut self.slices[index];
        if slice.second != second {
            *slice = Slice { second, ..Slice::default() };
        }
        slice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_always_there_and_the_share_grows_with_calls() {
        let now = Instant::now();
        let mut budget = Budget::new(0.2, 10, now);
        assert_eq!((0..50).filter(|_| budget.withdraw(now)).count(), 10);
        (0..100).for_each(|_| budget.first(now));
        assert_eq!((0..50).filter(|_| budget.withdraw(now)).count(), 10, "20 in all");
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let now = Instant::now();
        let mut budget = Budget::new(0.2, 10, now);
        while budget.withdraw(now) {}
        assert!(!budget.withdraw(now + Duration::from_secs(59)));
        assert!(budget.withdraw(now + Duration::from_secs(61)));
    }
}
