//! What the two sides of hyper tell each other about a connection: the stream below it and the service above.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Method, Uri};
use tokio::time::Instant;

use crate::proxy::rejection::Rejection;

/// A request that hyper never saw.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) rejection: Rejection,
    /// Its method and target as far as they could be read, for the log.
    pub(crate) method: Method,
    pub(crate) uri: Uri,
}

/// One connection's. All on one thread, so that no ordering between these matters.
#[derive(Debug)]
pub(super) struct Signals {
    begun: Instant,
    /// Requests that reached the service, those of the stream's own making included.
    asked: AtomicU64,
    /// The number of the request that the stream has made up, and what is to be answered to it. A client has no way to it: the stream
    /// counts the heads that it passes, the service the requests that it gets.
    refused: OnceLock<(u64, Refused)>,
    /// The number of the request whose body has not come whole; 0 if none.
    open_body: AtomicU64,
    /// A head has come in part.
    reading: AtomicBool,
    /// Requests that are not yet answered to their end.
    busy: AtomicU32,
    /// When the last of them ended, in milliseconds since `begun`.
    ended_ms: AtomicU64,
}

impl Signals {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            asked: AtomicU64::new(0),
            refused: OnceLock::new(),
            open_body: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            ended_ms: AtomicU64::new(0),
        })
    }

    /// A request has reached the service: its number, from 1.
    pub(super) fn asked(self: &Arc<Self>) -> (u64, Busy) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        (self.asked.fetch_add(1, Ordering::Relaxed) + 1, Busy(Arc::clone(self)))
    }

    pub(super) fn refuse(&self, number: u64, refused: Refused) {
        let _ = self.refused.set((number, refused));
    }

    pub(super) fn refused(&self, number: u64) -> Option<&Refused> {
        self.refused.get().filter(|(refused, _)| *refused == number).map(|(_, refused)| refused)
    }

    pub(super) fn body_open(&self, number: u64) {
        self.open_body.store(number, Ordering::Relaxed);
    }

    /// The body of this request has not come whole.
    pub(super) fn is_body_open(&self, number: u64) -> bool {
        self.open_body.load(Ordering::Relaxed) == number
    }

    pub(super) fn reading(&self, reading: bool) {
        self.reading.store(reading, Ordering::Relaxed);
    }

    /// Resolves when nothing was asked in `first`, or nothing more in `next`. A head that has begun is the stream's business.
    pub(super) async fn idle(&self, first: Duration, next: Duration) {
        loop {
            let now = Instant::now();
            let busy = self.busy.load(Ordering::Relaxed) > 0 || self.reading.load(Ordering::Relaxed);
            let due = match self.asked.load(Ordering::Relaxed) {
                _ if busy => now + first.min(next),
                0 => self.begun + first,
                _ => self.begun + Duration::from_millis(self.ended_ms.load(Ordering::Relaxed)) + next,
            };
            if due <= now {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// A request under way, until dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Signals>);

impl Drop for Busy {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.ended_ms.store(since, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
