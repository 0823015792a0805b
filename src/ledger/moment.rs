//! When something happened. On the boot clock while the machine stays up, so that a step of the wall clock ages nothing; on the wall clock
//! across reboots.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{Row, ToSql};

use crate::clock::Clock;
use crate::state::boot;

static BOOT: LazyLock<Arc<str>> = LazyLock::new(|| boot::id().into());

/// A moment as rows keep it: the columns `wall_ms`, `boot_ms` and `boot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Unix time.
    pub(crate) wall_ms: i64,
    /// Since the machine started.
    pub(crate) boot_ms: i64,
    /// Which start that was; empty where the system does not tell.
    pub(crate) boot: Arc<str>,
}

/// How long ago something was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// By the boot clock.
    Exact(Duration),
    /// By the wall clock, across a reboot: right unless the clock was set in between, and never negative.
    Guess(Duration),
}

impl Moment {
    pub(super) fn now(clock: Clock) -> Self {
        let wall = clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_ms: millis(wall), boot_ms: millis(clock.boot()), boot: Arc::clone(&BOOT) }
    }

    /// From the columns `wall_ms`, `boot_ms` and `boot`.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let boot: String = row.get("boot")?;
        Ok(Self { wall_ms: row.get("wall_ms")?, boot_ms: row.get("boot_ms")?, boot: boot.into() })
    }

    /// What `AGE_MS` wants.
    pub(super) fn params(&self) -> [(&'static str, &dyn ToSql); 3] {
        [(":wall_ms", &self.wall_ms), (":boot_ms", &self.boot_ms), (":boot", &self.boot)]
    }

    /// How long ago this was at `now`.
    pub(crate) fn age(&self, now: &Self) -> Age {
        let between =
            |from: i64, to: i64| Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or_default());
        if self.boot == now.boot && !now.boot.is_empty() {
            Age::Exact(between(self.boot_ms, now.boot_ms))
        } else {
            Age::Guess(between(self.wall_ms, now.wall_ms))
        }
    }
}

/// An SQL expression: milliseconds since a row's moment, at the moment in `:wall_ms`, `:boot_ms`, `:boot`. A row from the future is as
/// old as it is young, so that no step of the clock keeps it for ever.
pub(super) const AGE_MS: &str =
    "(CASE WHEN boot = :boot AND boot <> '' THEN :boot_ms - boot_ms ELSE abs(:wall_ms - wall_ms) END)";

impl Age {
    /// As it is.
    pub(crate) fn any(self) -> Duration {
        match self {
            Self::Exact(age) | Self::Guess(age) => age,
        }
    }

    /// A guess counts as `most` at most.
    pub(crate) fn at_most_if_guessed(self, most: Duration) -> Duration {
        match self {
            Self::Exact(age) => age,
            Self::Guess(age) => age.min(most),
        }
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn moment(wall_ms: i64, boot_ms: i64, boot: &str) -> Moment {
        Moment { wall_ms, boot_ms, boot: boot.into() }
    }

    #[test]
    fn a_step_of_the_clock_ages_nothing() {
        let then = moment(DAY_MS * 9, 1_000, "one");
        for step in [-DAY_MS, 0, DAY_MS] {
            let now = moment(DAY_MS * 9 + 5_000 + step, 6_000, "one");
            assert_eq!(then.age(&now), Age::Exact(Duration::from_secs(5)));
        }
    }

    #[test]
    fn across_a_reboot_the_wall_clock_tells_but_is_not_trusted() {
        let then = moment(DAY_MS, 1_000, "one");
        let later = then.age(&moment(DAY_MS + 5_000, 3, "two"));
        assert_eq!(later, Age::Guess(Duration::from_secs(5)));
        assert_eq!(then.age(&moment(0, 3, "two")), Age::Guess(Duration::ZERO));
        let day = then.age(&moment(2 * DAY_MS, 3, "two"));
        assert_eq!(day.at_most_if_guessed(Duration::from_secs(900)), Duration::from_secs(900));
        assert!(matches!(moment(0, 1, "").age(&moment(9, 2, "")), Age::Guess(_)), "an unnamed boot is never the same");
    }
}
