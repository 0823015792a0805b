//! When a delivery is tried again: a pure function of how often it was tried.

use std::time::Duration;

/// After the first attempt, the second and so on. With these eleven attempts are spread over 23 h; then the delivery is dead.
const WAITS_SECS: [u64; 10] = [1, 5, 30, 120, 600, 3_600, 7_200, 14_400, 28_800, 28_800];
/// The part of a wait that chance may take off, so that targets that were away together are not hit together.
const JITTER: f64 = 0.2;

/// The wait before the next attempt, after `attempts` that failed; `None`: it was the last. `dice` is uniform on `[0, 1)`. Counting attempts
/// rather than hours makes steps of the clock harmless.
pub(crate) fn wait(attempts: u32, dice: f64) -> Option<Duration> {
    let place = usize::try_from(attempts).ok()?.checked_sub(1)?;
    let longest = Duration::from_secs(*WAITS_SECS.get(place)?);
    Some(longest.mul_f64(1.0 - JITTER * dice))
}

/// What is left of a wait that began in an earlier process, by the wall clock; never longer than the wait itself.
pub(crate) fn left(attempts: u32, until_ms: u64, now_ms: u64) -> Duration {
    let longest = wait(attempts, 0.0).unwrap_or_default();
    Duration::from_millis(until_ms.saturating_sub(now_ms)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dice: f64) -> Vec<Duration> {
        (1..).map_while(|attempts| wait(attempts, dice)).collect()
    }

    #[test]
    fn the_first_come_soon_and_the_last_within_a_day() {
        let waits = all(0.0);
        assert_eq!(waits[..6].iter().map(Duration::as_secs).collect::<Vec<_>>(), [1, 5, 30, 120, 600, 3600]);
        let hours = waits.iter().sum::<Duration>().as_secs() / 3600;
        assert!((20..24).contains(&hours), "{hours}");
        assert!(waits.is_sorted());
        assert_eq!(wait(0, 0.0), None, "nothing failed");
        assert_eq!(wait(u32::MAX, 0.5), None);
    }

    #[test]
    fn chance_takes_a_fifth_at_most() {
        for (longest, jittered) in all(0.0).into_iter().zip(all(0.999)) {
            assert!(jittered < longest && jittered >= longest.mul_f64(0.8));
        }
    }

    #[test]
    fn a_step_of_the_clock_waits_no_longer() {
        assert_eq!(left(2, 5_000, 1_000), Duration::from_secs(4));
        assert_eq!(left(2, 5_000, 9_000), Duration::ZERO);
        assert_eq!(left(2, 86_400_000, 0), Duration::from_secs(5), "a day back");
        assert_eq!(left(0, 1_000, 0), Duration::ZERO);
    }
}
