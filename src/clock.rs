//! The one source of wall-clock time. Durations and deadlines are tokio's; this is only for what is said to others: epoch seconds in
//! headers, HTTP dates, the ledger.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::state::boot;

/// Wall-clock time, as the system tells it or, in tests, as paused time moves it.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Option<Start>);

#[derive(Debug, Clone, Copy)]
struct Start {
    wall: SystemTime,
    boot: Duration,
    at: Instant,
    /// Seconds by which a test steps the wall clock.
    step: Option<&'static AtomicI64>,
}

impl Clock {
    /// Follows the system's clock, steps included.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// Starts at the system's time and then follows tokio's, paused or not.
    #[must_use]
    pub fn tokio() -> Self {
        Self(Some(Start { wall: SystemTime::now(), boot: boot::clock(), at: Instant::now(), step: None }))
    }

    /// Starts at `wall` and follows tokio's; the wall clock is `step` seconds off it, the boot clock is not. It goes on when the proxy
    /// that it was given to has ended.
    #[must_use]
    pub fn stepped(wall: SystemTime, step: &'static AtomicI64) -> Self {
        Self(Some(Start { wall, boot: boot::clock(), at: Instant::now(), step: Some(step) }))
    }

    /// The same, on a machine that has been up for `up`.
    #[must_use]
    pub fn up_for(self, up: Duration) -> Self {
        Self(self.0.map(|start| Start { boot: up, ..start }))
    }

    /// Now.
    #[must_use]
    pub fn wall(&self) -> SystemTime {
        let Some(start) = self.0 else { return SystemTime::now() };
        let wall = start.wall + start.at.elapsed();
        let step = start.step.map_or(0, |step| step.load(Ordering::Relaxed));
        let by = Duration::from_secs(step.unsigned_abs());
        if step < 0 { wall - by } else { wall + by }
    }

    /// Now, since the machine started.
    pub(crate) fn boot(&self) -> Duration {
        self.0.map_or_else(boot::clock, |start| start.boot + start.at.elapsed())
    }

    /// Time may be paused, and then nothing may be waited for that time does not know of.
    pub(crate) fn may_pause(&self) -> bool {
        self.0.is_some()
    }
}
