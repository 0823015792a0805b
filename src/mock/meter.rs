//! Counts requests against a limit, one meter per key: the judge of the request quota.
//!
//! Pure: time comes in as the time since the mock's start. It shares nothing with the proxy's own limiter on purpose.

use std::collections::VecDeque;
use std::time::Duration;

use super::counter::Counter;

/// What the meter says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) allowed: bool,
    /// Requests that could still be made right now.
    pub(super) remaining: u32,
    /// When the window ends, or the next place in it becomes free; since the mock's start.
    pub(super) reset: Duration,
    /// How long a refused caller has to wait; zero when allowed.
    pub(super) wait: Duration,
}

/// A limit, a window and what was used of it.
#[derive(Debug)]
pub(super) struct Meter {
    limit: u32,
    window: Duration,
    count_refused: bool,
    books: Books,
}

#[derive(Debug)]
enum Books {
    /// Fixed and anchored windows; `aligned` is the epoch offset of the mock's start for fixed ones.
    Window { aligned: Option<Duration>, ends: Duration, used: u32 },
    /// Arrivals younger than the window, oldest first, and the short limit of two buckets.
    Log { arrivals: VecDeque<Duration>, short: Option<(u32, Duration)> },
    /// A cell costs `window` and `limit` come back per nanosecond, so that nothing is ever rounded.
    Bucket { credit: u128, capacity: u32, at: Duration },
}

impl Meter {
    /// `offset` is the time from a boundary of fixed windows (the epoch) to the mock's start.
    pub(super) fn new(counter: &Counter, limit: u32, window: Duration, offset: Duration, count_refused: bool) -> Self {
        let window = window.max(Duration::from_nanos(1));
        let books = match *counter {
            Counter::Fixed => Books::Window { aligned: Some(offset), ends: Duration::ZERO, used: 0 },
            Counter::Anchored => Books::Window { aligned: None, ends: Duration::ZERO, used: 0 },
            Counter::Sliding => Books::Log { arrivals: VecDeque::new(), short: None },
            Counter::TwoBucket { short_limit, short_window } => {
                Books::Log { arrivals: VecDeque::new(), short: Some((short_limit, short_window)) }
            }
            Counter::TokenBucket { capacity } => {
                let capacity = capacity.unwrap_or(limit);
                Books::Bucket { credit: u128::from(capacity) * window.as_nanos(), capacity, at: Duration::ZERO }
            }
        };
        Self { limit, window, count_refused, books }
    }

    /// Counts one request arriving at `now`.
    pub(super) fn hit(&mut self, now: Duration) -> Verdict {
        let before = self.look(now);
        if before.allowed || self.count_refused {
            self.take(now);
        }
        let after = self.look(now);
        if before.allowed { Verdict { allowed: true, wait: Duration::ZERO, ..after } } else { after }
    }

    /// What a request arriving at `now` would be told, without counting it.
    pub(super) fn look(&mut self, now: Duration) -> Verdict {
        let (limit, window) = (self.limit, self.window);
        match &mut self.books {
            Books::Window { aligned, ends, used } => {
                if now >= *ends {
                    *used = 0;
                }
                let reset = if now >= *ends { now + next_window(*aligned, window, now) } else { *ends };
                verdict(limit.saturating_sub(*used), reset, reset, now)
            }
            Books::Log { arrivals, short } => {
                while arrivals.front().is_some_and(|&at| at + window <= now) {
                    arrivals.pop_front();
                }
                look_at_log(arrivals, *short, limit, window, now)
            }
            Books::Bucket { credit, capacity, at } => {
                let cell = window.as_nanos();
                let full = u128::from(*capacity) * cell;
                *credit = full.min(*credit + now.saturating_sub(*at).as_nanos() * u128::from(limit));
                *at = now;
                let remaining = u32::try_from(*credit / cell).unwrap_or(u32::MAX);
                let until = |goal: u128| now + nanos(goal.saturating_sub(*credit).div_ceil(u128::from(limit.max(1))));
                verdict(remaining, until(full), until(cell), now)
            }
        }
    }

    fn take(&mut self, now: Duration) {
        let window = self.window;
        match &mut self.books {
            Books::Window { aligned, ends, used } => {
                if now >= *ends {
                    *ends = now + next_window(*aligned, window, now);
                    *used = 0;
                }
                *used = used.saturating_add(1);
            }
            Books::Log { arrivals, .. } => arrivals.push_back(now),
            // A refused request that counts takes what is left of the next cell.
            Books::Bucket { credit, .. } => *credit = credit.saturating_sub(window.as_nanos()),
        }
    }
}

fn look_at_log(
    arrivals: &VecDeque<Duration>,
    short: Option<(u32, Duration)>,
    limit: u32,
    window: Duration,
    now: Duration,
) -> Verdict {
    // The place that must leave the window before one more fits is the limit-th from the end.
    let leaves = |limit: u32, window: Duration| {
        let place = arrivals.len().checked_sub(limit as usize)?;
        arrivals.get(place).map(|&at| at + window)
    };
    let used = |window: Duration| arrivals.len() - arrivals.partition_point(|&at| at + window <= now);
    let left = |limit: u32, window: Duration| limit.saturating_sub(u32::try_from(used(window)).unwrap_or(u32::MAX));
    let remaining = short.map_or(u32::MAX, |(limit, window)| left(limit, window)).min(left(limit, window));
    let free = leaves(limit, window).max(short.and_then(|(limit, window)| leaves(limit, window))).unwrap_or(now);
    let reset = arrivals.front().map_or(now + window, |&at| at + window);
    verdict(remaining, if remaining == 0 { free } else { reset }, free, now)
}

fn verdict(remaining: u32, reset: Duration, free: Duration, now: Duration) -> Verdict {
    let allowed = remaining > 0;
    let wait = if allowed { Duration::ZERO } else { free.saturating_sub(now) };
    Verdict { allowed, remaining, reset, wait }
}

/// How long a window that starts with a request at `now` lasts: up to the next boundary, if they are aligned.
fn next_window(aligned: Option<Duration>, window: Duration, now: Duration) -> Duration {
    let Some(offset) = aligned else { return window };
    let epoch = offset + now;
    window.saturating_sub(nanos(epoch.as_nanos() % window.as_nanos()))
}

fn nanos(n: u128) -> Duration {
    Duration::from_nanos(u64::try_from(n).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: Duration = Duration::from_secs(60);

    fn meter(counter: &Counter, limit: u32) -> Meter {
        Meter::new(counter, limit, W, Duration::from_secs(50), false)
    }

    /// How many of `n` requests at `secs` are let through.
    fn admitted(meter: &mut Meter, n: u32, secs: f64) -> u32 {
        (0..n).map(|_| u32::from(meter.hit(Duration::from_secs_f64(secs)).allowed)).sum()
    }

    #[test]
    fn a_fixed_window_starts_again_at_its_boundary() {
        let mut m = meter(&Counter::Fixed, 6); // the boundary is 10 s after the start
        assert_eq!(admitted(&mut m, 9, 9.0), 6);
        let refused = m.hit(Duration::from_millis(9_500));
        assert_eq!((refused.remaining, refused.wait), (0, Duration::from_millis(500)));
        assert_eq!(admitted(&mut m, 9, 10.0), 6);
        assert_eq!(admitted(&mut m, 9, 69.9), 0);
    }

    #[test]
    fn an_anchored_window_starts_with_its_first_request() {
        let mut m = meter(&Counter::Anchored, 6);
        assert_eq!(admitted(&mut m, 1, 7.0), 1);
        assert_eq!(admitted(&mut m, 9, 66.0), 5);
        assert_eq!(admitted(&mut m, 9, 67.0), 6);
    }

    #[test]
    fn a_sliding_window_frees_each_place_after_one_window() {
        let mut m = meter(&Counter::Sliding, 2);
        assert_eq!(admitted(&mut m, 1, 0.0), 1);
        assert_eq!(admitted(&mut m, 2, 30.0), 1);
        assert_eq!(m.hit(Duration::from_secs(45)).wait, Duration::from_secs(15));
        assert_eq!(admitted(&mut m, 2, 60.0), 1);
        assert_eq!(admitted(&mut m, 2, 89.999), 0);
        assert_eq!(admitted(&mut m, 2, 90.0), 1);
    }

    #[test]
    fn a_bucket_refills_one_cell_at_a_time() {
        let mut m = meter(&Counter::TokenBucket { capacity: Some(3) }, 60);
        assert_eq!(admitted(&mut m, 9, 0.0), 3);
        assert_eq!(m.hit(Duration::from_millis(400)).wait, Duration::from_millis(600));
        assert_eq!(admitted(&mut m, 9, 2.0), 2);
        assert_eq!(admitted(&mut m, 9, 100.0), 3);
    }

    #[test]
    fn two_buckets_hold_both_limits() {
        let mut m = meter(&Counter::TwoBucket { short_limit: 2, short_window: Duration::from_secs(1) }, 5);
        assert_eq!(admitted(&mut m, 9, 0.0), 2);
        assert_eq!(m.hit(Duration::from_millis(250)).wait, Duration::from_millis(750));
        assert_eq!(admitted(&mut m, 9, 1.0), 2);
        assert_eq!(admitted(&mut m, 9, 2.0), 1);
        assert_eq!(m.hit(Duration::from_secs(3)).wait, Duration::from_secs(57));
    }

    #[test]
    fn refused_requests_count_only_where_asked() {
        let mut m = Meter::new(&Counter::Sliding, 1, W, Duration::ZERO, true);
        assert_eq!(admitted(&mut m, 1, 0.0) + admitted(&mut m, 1, 59.0), 1);
        assert_eq!(admitted(&mut m, 1, 60.0), 0);
    }
}
