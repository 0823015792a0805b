//! The mock's one clock: tokio's, with a wall clock fixed at the start so that headers and bodies can name dates.

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::time::Instant;

/// The start, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch {
    start: Instant,
    wall: Duration,
}

impl Epoch {
    /// `wall` is what the wall clock shows now.
    pub(super) fn starting_at(wall: SystemTime) -> Self {
        let wall = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), wall }
    }

    /// Time since the start.
    pub(super) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    /// Time from the Unix epoch to the start.
    pub(super) fn offset(&self) -> Duration {
        self.wall
    }

    /// Seconds since the Unix epoch, rounded up, of a time since the start.
    pub(super) fn reset_secs(&self, since_start: Duration) -> u64 {
        ceil_secs(self.wall + since_start)
    }

    /// Microseconds since the Unix epoch.
    pub(super) fn micros(&self, at: Instant) -> u64 {
        u64::try_from((self.wall + self.since_start(at)).as_micros()).unwrap_or(u64::MAX)
    }

    /// Whole seconds since the Unix epoch.
    pub(super) fn secs(&self, at: Instant) -> u64 {
        (self.wall + self.since_start(at)).as_secs()
    }

    /// As in the field `Date` (RFC 9110 §6.6.1).
    pub(super) fn date(&self, at: Instant) -> HeaderValue {
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + self.wall + self.since_start(at));
        HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""))
    }

    /// As in RFC 3339, to the microsecond.
    pub(super) fn exact_timestamp(&self, at: Instant) -> String {
        let micros = i64::try_from(self.micros(at)).unwrap_or(i64::MAX);
        let timestamp = jiff::Timestamp::from_microsecond(micros).unwrap_or_default();
        format!("{timestamp:.6}")
    }

    /// As in RFC 3339, in whole seconds.
    pub(super) fn timestamp(&self, at: Instant) -> String {
        let secs = i64::try_from(self.secs(at)).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(secs).unwrap_or_default().to_string()
    }
}

/// Whole seconds, rounded up.
pub(super) fn ceil_secs(d: Duration) -> u64 {
    d.as_secs() + u64::from(d.subsec_nanos() > 0)
}
