//! What must be known after a crash, in one SQLite file: creates and their jobs, answers kept for idempotency keys, webhooks that are owed, learned run times.
//!
//! One connection on one thread behind a channel. All operations queued at a wake-up are one transaction, and one write to the disk. With
//! nothing to keep (`state.store = "memory"`) the same tables live in memory and operations run where they are called.
//!
//! A part that keeps something adds a file here: a migration of its own in `schema::STEPS` and methods on [`Ledger`] built on
//! [`run`](Ledger::run), [`post`](Ledger::post) and [`load`](Ledger::load).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, Transaction};

use crate::clock::Clock;

use self::moment::Moment;
use self::store::{Call, Store, Work};

/// Creates and jobs.
pub(crate) mod jobs;

/// Answers kept for idempotency keys.
pub(crate) mod answers;

/// Learned run times.
pub(crate) mod learned;

/// When something happened, so that ages survive steps of the clock.
pub(crate) mod moment;

/// Reservations and totals of credits.
pub(crate) mod credits;

/// Tables, and how a file comes by them.
mod schema;

/// Webhooks that are owed.
pub(crate) mod outbox;

/// The connection and its transactions.
mod store;

/// How long anybody waits for the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an operation did not come about, or is not known to have.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// The disk or SQLite refused. It has been told in the log.
    #[error("the ledger cannot be used: {0}")]
    Failed(Arc<str>),
    /// It may still come about.
    #[error("the ledger's disk did not answer in {} s", PATIENCE.as_secs())]
    Slow,
    /// The proxy is ending.
    #[error("the ledger is closed")]
    Closed,
}

/// Where the ledger is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Nowhere: it ends with the process.
    Memory,
    /// In this file, by a thread.
    File(&'a Path),
    /// In this file, by whoever calls: paused time would jump while a thread is waited for. It survives the process, not the machine.
    FileInline(&'a Path),
}

/// The open ledger.
pub(crate) struct Ledger {
    writer: Writer,
    clock: Clock,
    next_number: AtomicU64,
}

enum Writer {
    /// Unbounded, as who awaits is bounded by job slots and the rest follows from what they sent. `None`: finish and end.
    Thread(mpsc::Sender<Option<Box<dyn Work>>>, Mutex<Option<JoinHandle<()>>>),
    /// Held for one operation, some microseconds. `None`: closed.
    Inline(Mutex<Option<Store>>),
}

impl Ledger {
    /// Opens or makes the ledger. A file that is damaged, foreign, newer than this program or in use is refused, with words for the operator.
    pub(crate) fn open(place: Place<'_>, clock: Clock, failures: Counter) -> std::io::Result<Self> {
        let connection = schema::open(place)?;
        let next_number = jobs::next_number(&connection).map_err(std::io::Error::other)?;
        let store = Store::new(connection, failures);
        let writer = match place {
            Place::Memory | Place::FileInline(_) => Writer::Inline(Mutex::new(Some(store))),
            Place::File(_) => {
                let (sender, receiver) = mpsc::channel();
                let thread = std::thread::Builder::new().name("ledger".into());
                let thread = thread.spawn(move || store.serve(&receiver))?;
                Writer::Thread(sender, Mutex::new(Some(thread)))
            }
        };
        Ok(Self { writer, clock, next_number: AtomicU64::new(next_number) })
    }

    /// Runs `op` in a transaction; the future is ready when that is committed. For what must be on disk before something is sent. `op` has
    /// its place among the others from this call on, and runs also if the future is dropped. An error: it is not known to have happened.
    pub(crate) fn run<T, F>(&self, op: F) -> impl Future<Output = Result<T, Error>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // Who asked may have left.
        let given = self.give(Call::new(op, move |outcome| drop(sender.send(outcome))));
        async move {
            given?;
            match tokio::time::timeout(PATIENCE, receiver).await {
                Ok(outcome) => outcome.unwrap_or(Err(Error::Closed)),
                Err(_) => Err(Error::Slow),
            }
        }
    }

    /// Runs `op` in a transaction some time soon, after all that was given before. A failure is logged and counted, and `op` is lost:
    /// only for what leaves the ledger on the safe side.
    pub(crate) fn post<F>(&self, op: F)
    where
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<()> + Send + 'static,
    {
        // Closed: the proxy is ending, as it may at any moment.
        let _ = self.give(Call::new(op, drop));
    }

    /// As `run`, waiting in this thread: only while the parts are built.
    pub(crate) fn load<T, F>(&self, op: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        self.give(Call::new(op, move |outcome| drop(sender.send(outcome))))?;
        receiver.recv().unwrap_or(Err(Error::Closed))
    }

    /// Now, as rows keep it.
    pub(crate) fn now(&self) -> Moment {
        Moment::now(self.clock)
    }

    /// Names a create or job for ever.
    pub(crate) fn number(&self) -> u64 {
        // Relaxed: nothing else hangs on the order of numbers.
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Finishes what was given and lets the file go. What is given later is lost, as after a crash.
    pub(crate) fn close(&self) {
        match &self.writer {
            Writer::Thread(sender, thread) => {
                let _ = sender.send(None);
                let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
                drop(thread.map(JoinHandle::join));
            }
            Writer::Inline(store) => drop(store.lock().unwrap_or_else(PoisonError::into_inner).take()),
        }
    }

    fn give(&self, work: impl Work + 'static) -> Result<(), Error> {
        match &self.writer {
            Writer::Thread(sender, _) => sender.send(Some(Box::new(work))).map_err(|_| Error::Closed),
            Writer::Inline(store) => {
                let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
                store.as_mut().ok_or(Error::Closed)?.commit(vec![Box::new(work)]);
                Ok(())
            }
        }
    }
}

/// A statement that the connection keeps prepared.
fn execute(tx: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<usize> {
    tx.prepare_cached(sql)?.execute(params)
}

#[cfg(test)]
mod tests;
