//! What became of reloads: for the log, the metrics, and who asks for the status.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::{Refused, Reloaded};
use crate::clock::Clock;
use crate::metrics::reload::Metrics;

/// Longest text of a refusal that the status shows, in characters.
const SHOWN: usize = 4_000;

/// What became of reloads.
pub(crate) struct Reloads {
    generation: AtomicU64,
    last: Mutex<Last>,
    clock: Clock,
    metrics: Metrics,
}

/// What the status shows.
#[derive(Debug, Clone, Default, PartialEq)]
struct Last {
    /// Seconds since 1970 at which the configuration in force was read.
    loaded_at: f64,
    /// The last refusal since then, and when.
    refused: Option<(f64, String)>,
    pending: Vec<&'static str>,
}

impl Reloads {
    pub(crate) fn new(clock: Clock, metrics: Metrics) -> Self {
        Self { generation: AtomicU64::new(1), last: Mutex::default(), clock, metrics }
    }

    /// The first configuration is in force.
    pub(super) fn started(&self) {
        let now = self.now();
        self.last().loaded_at = now;
        self.metrics.started(now);
    }

    /// The number of the configuration that has just come into force.
    pub(super) fn next(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn taken(&self, reloaded: &Reloaded) {
        let now = self.now();
        *self.last() = Last { loaded_at: now, refused: None, pending: reloaded.pending.clone() };
        self.metrics.taken(now);
        tracing::info!(generation = reloaded.generation, "the configuration was read again and is in force");
        if !reloaded.pending.is_empty() {
            tracing::warn!(keys = reloaded.pending.join(", "), "takes effect after a restart");
        }
    }

    pub(super) fn refused(&self, refused: &Refused) {
        let text: String = refused.to_string().chars().take(SHOWN).collect();
        tracing::error!(reason = text, "the configuration was refused: the one before stays in force");
        self.last().refused = Some((self.now(), text));
        self.metrics.refused();
    }

    /// A key that the upstream refused was read again and is another one.
    pub(super) fn renewed(&self, account: &str) {
        self.metrics.renewed();
        tracing::info!(account, "the upstream refused the key: it was read again, and the new one is in force");
    }

    /// For `/api/v1/status`: the number of the configuration in force, since when, the last refusal, and what waits for a restart.
    pub(crate) fn snapshot(&self) -> Value {
        let last = self.last().clone();
        json!({
            "generation": self.generation.load(Ordering::Relaxed),
            "loaded_at": last.loaded_at,
            "refused": last.refused.map(|(at, reason)| json!({"at": at, "reason": reason})),
            "after_restart": last.pending,
        })
    }

    fn now(&self) -> f64 {
        let since = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        (since.as_secs_f64() * 1e3).round() / 1e3
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
