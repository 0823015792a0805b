//! Even spacing: a governor GCRA bucket whose rate and burst together stay under the plan in every window.
//!
//! `governor`'s own `per_minute(60)` lets 119 cells through in one minute (rate + burst - 1). Here burst and period are chosen so
//! that the sum stays at the limit even when every attempt is counted anywhere between its sending and `jitter` later.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// Cells usable at once: b = min(L, max(2, ⌊0.02·L⌋ + 1)).
pub(crate) fn burst(limit: NonZeroU32) -> NonZeroU32 {
    let share = limit.get() / 50 + 1;
    NonZeroU32::new(limit.get().min(share.max(2))).unwrap_or(NonZeroU32::MIN)
}

/// Time between cells: T = ⌈(W + J)/(L − b + 1)⌉, up to the next nanosecond (rounding down would break the bound).
pub(crate) fn period(limit: NonZeroU32, window: Duration, jitter: Duration) -> Duration {
    let cells = u128::from(limit.get() - burst(limit).get() + 1);
    let nanos = (window + jitter).as_nanos().div_ceil(cells);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A GCRA bucket on the caller's clock.
pub(crate) struct Pace {
    limiter: RateLimiter<NotKeyed, Tat, Now, StateInformationMiddleware>,
    tat: Tat,
    now: Now,
    epoch: Instant,
    burst: u32,
    period: Duration,
}

impl Pace {
    /// A bucket that is full at `epoch`.
    pub(crate) fn new(limit: NonZeroU32, window: Duration, jitter: Duration, epoch: Instant) -> Self {
        let (burst, period) = (burst(limit), period(limit, window, jitter));
        let (tat, now) = (Tat::default(), Now::default());
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| Quota::per_second(limit)) // a period of zero nanoseconds cannot come out of a division rounded up
            .allow_burst(burst);
        let limiter = RateLimiter::new(quota, tat.clone(), now.clone());
        Self { limiter, tat, now, epoch, burst: burst.get(), period }
    }

    /// Empties the bucket so that its next cell comes at `at`: the upstream's own has just run dry.
    pub(crate) fn exhaust(&mut self, at: Instant) {
        let next = nanos(at.saturating_duration_since(self.epoch));
        let tau = nanos(self.period).saturating_mul(u64::from(self.burst - 1));
        self.tat.0.store(next.saturating_add(tau), Ordering::Relaxed);
    }

    /// Takes a cell, or says when one can be had.
    pub(crate) fn take(&self, now: Instant) -> Result<(), Instant> {
        self.now.0.store(nanos(now.saturating_duration_since(self.epoch)), Ordering::Relaxed);
        match self.limiter.check() {
            Ok(_) => Ok(()),
            Err(not_until) => Err(self.epoch + not_until.earliest_possible()),
        }
    }

    /// Gives a cell back: nothing was sent.
    pub(crate) fn refund(&self) {
        let tat = self.tat.0.load(Ordering::Relaxed);
        self.tat.0.store(tat.saturating_sub(nanos(self.period)), Ordering::Relaxed);
    }

    /// Cells free at `now`, and when there will be one more.
    pub(crate) fn free(&self, now: Instant) -> (u32, Instant) {
        let t = nanos(self.period).max(1);
        let since = nanos(now.saturating_duration_since(self.epoch));
        let ahead = self.tat.0.load(Ordering::Relaxed).saturating_sub(since);
        let used = u32::try_from(ahead.div_ceil(t)).unwrap_or(u32::MAX);
        let next = if ahead == 0 { 0 } else { (ahead - 1) % t + 1 };
        (self.burst.saturating_sub(used), now + Duration::from_nanos(next))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The theoretical arrival time, in nanoseconds since the bucket's epoch. An atomic only because governor wants `&self`: the account's
/// lock already orders every access, so `Relaxed` is enough.
#[derive(Debug, Clone, Default)]
struct Tat(Arc<AtomicU64>);

impl StateStore for Tat {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let old = self.0.load(Ordering::Relaxed);
        let (answer, new) = f((old > 0).then(|| Nanos::new(old)))?;
        self.0.store(new.as_u64(), Ordering::Relaxed);
        Ok(answer)
    }
}

/// The instant handed to `take`, as governor wants to read it.
#[derive(Debug, Clone, Default)]
struct Now(Arc<AtomicU64>);

impl Clock for Now {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not zero")
    }

    #[test]
    fn free_plan_gets_a_burst_of_two_and_ninety_eight_percent() {
        let (w, j) = (Duration::from_secs(60), Duration::from_millis(1500));
        assert_eq!(burst(limit(60)).get(), 2);
        assert_eq!(period(limit(60), w, j), Duration::from_nanos(1_042_372_882));
        assert_eq!(burst(limit(300)).get(), 7);
    }

    proptest! {
        /// Greedy use of the bucket, each cell counted anywhere in `[taken, taken + J]`: no window holds more than the limit.
        #[test]
        fn greedy_use_stays_under_the_limit_in_any_window(
            l in 1_u32..400,
            window_ms in 100_u64..100_000,
            delays in prop::collection::vec(0.0_f64..=1.0, 1_000),
        ) {
            let window = Duration::from_millis(window_ms);
            let jitter = (window / 40).max(Duration::from_millis(100));
            let epoch = Instant::now();
            let pace = Pace::new(limit(l), window, jitter, epoch);
            let mut now = epoch;
            let mut counted = Vec::new();
            for delay in delays {
                if let Err(at) = pace.take(now) {
                    now = at;
                    prop_assert!(pace.take(now).is_ok(), "the promised instant holds");
                }
                counted.push(now + jitter.mul_f64(delay));
            }
            counted.sort();
            let most = counted.iter().enumerate().map(|(i, from)| {
                counted[i..].iter().take_while(|at| **at - *from < window).count()
            }).max().unwrap_or(0);
            prop_assert!(most <= l as usize, "{most} of {l}");
        }

        /// At L ≥ 40 spacing costs at most a twentieth of the plan.
        #[test]
        fn sustained_rate_is_at_least_ninety_five_percent(l in 40_u32..100_000) {
            let (w, j) = (Duration::from_secs(60), Duration::from_millis(1500));
            let used = w.as_secs_f64() / period(limit(l), w, j).as_secs_f64();
            prop_assert!(used >= 0.95 * f64::from(l), "{used} of {l}");
        }
    }

    #[test]
    fn a_refund_gives_the_cell_back() {
        let epoch = Instant::now();
        let pace = Pace::new(limit(60), Duration::from_secs(60), Duration::from_secs(1), epoch);
        assert_eq!(pace.free(epoch).0, 2);
        assert!(pace.take(epoch).is_ok());
        assert!(pace.take(epoch).is_ok());
        let next = pace.take(epoch).expect_err("the burst is used");
        assert_eq!(pace.free(epoch), (0, next));
        pace.refund();
        assert!(pace.take(epoch).is_ok());
    }

    #[test]
    fn an_exhausted_bucket_gives_its_next_cell_when_told() {
        let epoch = Instant::now();
        let mut pace = Pace::new(limit(60), Duration::from_secs(60), Duration::from_secs(1), epoch);
        let at = epoch + Duration::from_secs(7);
        pace.exhaust(at);
        assert_eq!(pace.take(epoch), Err(at));
        assert!(pace.take(at).is_ok());
        assert_eq!(pace.take(at), Err(at + pace.period));
    }
}
