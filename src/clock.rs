//! The one source of wall-clock time. Durations and deadlines are tokio's; this is only for what is said to others: epoch seconds in
//! headers, HTTP dates, the journal.

use std::time::SystemTime;

use tokio::time::Instant;

/// Wall-clock time, as the system tells it or, in tests, as paused time moves it.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Option<(SystemTime, Instant)>);

impl Clock {
    /// Follows the system's clock, steps included.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// Starts at the system's time and then follows tokio's, paused or not.
    #[must_use]
    pub fn tokio() -> Self {
        Self(Some((SystemTime::now(), Instant::now())))
    }

    /// Now.
    pub fn wall(&self) -> SystemTime {
        self.0.map_or_else(SystemTime::now, |(start, since)| start + since.elapsed())
    }
}
