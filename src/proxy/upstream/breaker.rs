//! The circuit breaker of the process: one for all workers, as there is one upstream. While it is open, calls wait without holding
//! quota, slot or credit; one of them at a time tries a connection for all.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::circuit::Metrics;
use crate::proxy::rejection::{Rejection, Unreachable};

use super::circuit::{Ask, Circuit, FIRST_PAUSE};

/// Shared by all workers.
pub(crate) struct Breaker {
    /// Short, and taken only where something has failed before: see `calm`.
    circuit: Mutex<Circuit>,
    /// False from a failure to the next success. Answers read it without the lock: an answer that misses a failure of the same moment
    /// only leaves that failure counted.
    calm: AtomicBool,
    /// The circuit has closed, or somebody else may probe.
    changed: Notify,
    waiting: AtomicUsize,
    /// As many may wait as in a queue.
    most: AtomicUsize,
    metrics: Metrics,
}

impl Breaker {
    /// At most `most` calls wait while it is open.
    pub(crate) fn new(most: usize, metrics: Metrics) -> Self {
        Self {
            circuit: Mutex::new(Circuit::new()),
            calm: AtomicBool::new(true),
            changed: Notify::new(),
            waiting: AtomicUsize::new(0),
            most: AtomicUsize::new(most),
            metrics,
        }
    }

    /// From now on at most `most` calls wait.
    pub(crate) fn allow(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Connections are tried.
    pub(crate) fn is_closed(&self) -> bool {
        self.calm.load(Ordering::Relaxed) || self.circuit().is_closed()
    }

    /// A connection came to nothing.
    pub(crate) fn failed(&self, reason: Unreachable) {
        self.metrics.failed(reason);
        let mut circuit = self.circuit();
        let opened = circuit.failed(Instant::now(), fastrand::f64());
        self.calm.store(circuit.is_calm(), Ordering::Relaxed);
        drop(circuit);
        if opened {
            self.metrics.opened();
            tracing::warn!(%reason, "the upstream cannot be reached: the circuit is open, calls wait for a connection");
        }
    }

    /// A connection was made, or an answer came, whatever it says.
    pub(crate) fn reached(&self) {
        if self.calm.load(Ordering::Relaxed) {
            return;
        }
        let mut circuit = self.circuit();
        let closed = circuit.reached();
        self.calm.store(true, Ordering::Relaxed);
        drop(circuit);
        if closed {
            self.metrics.closed();
            tracing::info!("the upstream is reached again: the circuit is closed");
            self.changed.notify_waiters();
        }
    }

    /// A place among those who wait.
    pub(crate) fn place(&self) -> Result<Place<'_>, Rejection> {
        let place = Place(self);
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before < self.most.load(Ordering::Relaxed) {
            Ok(place)
        } else {
            Err(Rejection::QueueFull { waiting: before, retry_in: FIRST_PAUSE })
        }
    }

    /// How long whoever comes now has to wait at least, where the circuit is open.
    pub(crate) fn retry_in(&self) -> Duration {
        self.circuit().shown(Instant::now()).1.unwrap_or(FIRST_PAUSE)
    }

    /// Calls that wait for it to close.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// For the admin port.
    pub(crate) fn status(&self) -> Value {
        let (state, probe_in) = self.circuit().shown(Instant::now());
        let probe_in = probe_in.map(|wait| wait.as_secs_f64());
        json!({"circuit": state, "next_probe_in_secs": probe_in, "waiting": self.waiting()})
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait, given back by drop.
#[must_use]
pub(crate) struct Place<'a>(&'a Breaker);

impl<'a> Place<'a> {
    /// Waits for as long as the circuit is open. Ready with a probe where this caller is to make one. Where the deadline comes before the
    /// circuit can close, it is refused at once.
    pub(crate) async fn wait(&self, deadline: Instant) -> Result<Option<Probe<'a>>, Rejection> {
        let breaker = self.0;
        loop {
            let mut changed = std::pin::pin!(breaker.changed.notified());
            changed.as_mut().enable(); // before asking: a change in between is not missed
            let now = Instant::now();
            let until = match breaker.circuit().ask(now) {
                Ask::Go => return Ok(None),
                Ask::Probe => return Ok(Some(Probe { breaker, ended: false })),
                Ask::Until(until) if until > deadline => return Err(Rejection::CircuitOpen { retry_in: until - now }),
                Ask::Until(until) => until,
                Ask::Probed if deadline <= now => return Err(Rejection::CircuitOpen { retry_in: FIRST_PAUSE }),
                Ask::Probed => deadline,
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The duty to try a connection for everybody. Dropped without an outcome (its caller hung up), it passes on to the next.
#[must_use]
pub(crate) struct Probe<'a> {
    breaker: &'a Breaker,
    ended: bool,
}

impl Probe<'_> {
    /// The connection came to nothing. What came of a good one is told by `Breaker::reached`.
    pub(crate) fn failed(mut self, reason: Unreachable) {
        self.ended = true;
        self.breaker.metrics.failed(reason);
        self.breaker.circuit().probe_failed(Instant::now(), fastrand::f64());
        tracing::debug!(%reason, "the upstream still cannot be reached");
        self.breaker.changed.notify_waiters();
    }

    /// The connection was made.
    pub(crate) fn made(mut self) {
        self.ended = true;
        self.breaker.reached();
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.breaker.circuit().probe_left(Instant::now());
            self.breaker.changed.notify_waiters();
        }
    }
}
