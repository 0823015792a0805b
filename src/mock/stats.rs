//! What the judge saw: totals, totals per key, and every single request.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use serde::Serialize;
use tokio::time::Instant;

/// Requests kept in the log.
const MEMORY: usize = 200_000;
/// Of these, the latest that keep their headers.
const HEADERS_KEPT: usize = 10_000;

/// A snapshot of everything counted since the start or the last reset.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// Requests with a good credential, refused ones included.
    pub attempts: u64,
    /// Requests without one, answered 401.
    pub unauthorized: u64,
    /// Jobs created.
    pub creates_accepted: u64,
    /// Jobs that have not ended.
    pub jobs_live_now: usize,
    /// The most there ever were.
    pub jobs_live_peak: usize,
    /// Requests over the rate limit.
    pub refused_rate_429: u64,
    /// Creates over the job limit, whatever status that has.
    pub refused_job_429: u64,
    /// The most counted requests, refused ones included, that one key had in any window.
    pub max_in_window: usize,
    /// Faults that struck.
    pub faults: u64,
    /// Streamed answers that the other side left before their end.
    pub streams_aborted: u64,
    /// Webhooks that a receiver answered, whatever it said.
    pub webhooks_delivered: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// The same per key; `*` stands for all where any key is accepted.
    pub keys: BTreeMap<String, KeyStats>,
}

/// What one key did; the names as in [`Stats`].
#[derive(Debug, Clone, Default, Serialize)]
pub struct KeyStats {
    /// Requests, refused ones included.
    pub attempts: u64,
    /// Jobs created.
    pub creates_accepted: u64,
    /// Jobs that have not ended.
    pub jobs_live_now: usize,
    /// The most there ever were.
    pub jobs_live_peak: usize,
    /// Requests over the rate limit.
    pub refused_rate_429: u64,
    /// Creates over the job limit.
    pub refused_job_429: u64,
    /// The most counted requests, refused ones included, in any window.
    pub max_in_window: usize,
}

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it was counted.
    pub at: Instant,
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: String,
    /// Status of the answer; 0: none (yet).
    pub status: u16,
    /// The credential; empty: none.
    pub key: String,
    /// Its headers as received; dropped from all but the latest 10,000 requests.
    pub headers: Arc<HeaderMap>,
    /// The job it created, asked for or cancelled.
    pub job: Option<String>,
    /// Whether it took part in the request count.
    pub counted: bool,
}

/// The latest requests, in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Log {
    seen: VecDeque<Seen>,
    /// Number of the first one kept.
    first: u64,
    none: Arc<HeaderMap>,
}

impl Log {
    /// Appends a request and returns its number.
    pub(super) fn push(&mut self, seen: Seen) -> u64 {
        if self.seen.len() >= MEMORY {
            self.seen.pop_front();
            self.first += 1;
        }
        self.seen.push_back(seen);
        if let Some(place) = self.seen.len().checked_sub(HEADERS_KEPT + 1) {
            self.seen[place].headers = Arc::clone(&self.none);
        }
        self.first + self.seen.len() as u64 - 1
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Seen> {
        let place = number.checked_sub(self.first)?;
        self.seen.get_mut(usize::try_from(place).ok()?)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Seen> + ExactSizeIterator {
        self.seen.iter()
    }

    /// Forgets all requests; numbers given out before stay unused.
    pub(super) fn clear(&mut self) {
        self.first += self.seen.len() as u64;
        self.seen.clear();
    }
}

/// The most arrivals in any half-open window, fed one by one.
#[derive(Debug, Default)]
pub(super) struct WindowPeak {
    recent: VecDeque<Instant>,
    pub(super) peak: usize,
}

impl WindowPeak {
    /// Arrivals come in order. Two that lie exactly one window apart are not in the same window.
    pub(super) fn add(&mut self, at: Instant, window: Duration) {
        while self.recent.front().is_some_and(|&first| first + window <= at) {
            self.recent.pop_front();
        }
        self.recent.push_back(at);
        self.peak = self.peak.max(self.recent.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_peak_is_exact_at_the_edges_of_the_window() {
        let start = Instant::now();
        let peak = |millis: &[u64]| {
            let mut peak = WindowPeak::default();
            for &ms in millis {
                peak.add(start + Duration::from_millis(ms), Duration::from_secs(1));
            }
            peak.peak
        };
        assert_eq!(peak(&[]), 0);
        assert_eq!(peak(&[0, 1_000, 2_000]), 1);
        assert_eq!(peak(&[0, 999, 1_000]), 2);
        assert_eq!(peak(&[0, 900, 950, 1_000, 1_899, 1_900]), 4);
    }
}
