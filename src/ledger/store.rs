//! The connection, and many operations in one transaction. Only here does the ledger meet the disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::Error;

/// The most operations in one transaction: nobody waits for a thousand others.
const MOST_AT_ONCE: usize = 256;

/// One operation.
pub(super) trait Work: Send {
    /// Does it, inside a transaction.
    fn execute(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()>;
    /// Told when it is committed, or that it will not be.
    fn done(self: Box<Self>, outcome: Result<(), Error>);
}

/// An operation, then its result, and who wants it.
pub(super) struct Call<T, F, R> {
    op: Option<F>,
    result: Option<T>,
    reply: R,
}

impl<T, F, R> Call<T, F, R>
where
    F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send,
    R: FnOnce(Result<T, Error>) + Send,
{
    pub(super) fn new(op: F, reply: R) -> Self {
        Self { op: Some(op), result: None, reply }
    }
}

impl<T, F, R> Work for Call<T, F, R>
where
    T: Send,
    F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send,
    R: FnOnce(Result<T, Error>) + Send,
{
    fn execute(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        if let Some(op) = self.op.take() {
            self.result = Some(op(tx)?);
        }
        Ok(())
    }

    fn done(self: Box<Self>, outcome: Result<(), Error>) {
        let Self { result, reply, .. } = *self;
        reply(outcome.and_then(|()| result.ok_or(Error::Closed)));
    }
}

pub(super) struct Store {
    connection: Connection,
    failures: Counter,
    /// The log has been told.
    troubled: bool,
}

impl Store {
    pub(super) fn new(connection: Connection, failures: Counter) -> Self {
        Self { connection, failures, troubled: false }
    }

    /// Works until it is told to end, or nobody is left to give work.
    pub(super) fn serve(mut self, work: &Receiver<Option<Box<dyn Work>>>) {
        while let Ok(Some(first)) = work.recv() {
            let mut batch = vec![first];
            let mut last = false;
            while batch.len() < MOST_AT_ONCE && !last {
                match work.try_recv() {
                    Ok(Some(next)) => batch.push(next),
                    Ok(None) => last = true,
                    Err(_) => break,
                }
            }
            self.commit(batch);
            if last {
                return;
            }
        }
    }

    /// All of it in one transaction. An operation that fails takes no other with it; a commit that fails, all.
    pub(super) fn commit(&mut self, mut batch: Vec<Box<dyn Work>>) {
        let mut failed: Vec<Option<Error>> = vec![None; batch.len()];
        let before = self.connection.total_changes();
        let committed = self.execute(&mut batch, &mut failed);
        match committed.as_ref().err().or(failed.iter().flatten().next()) {
            Some(error) => self.trouble(error),
            // Rows that were not there can be deleted also where nothing can be written.
            None if self.troubled && self.connection.total_changes() > before => {
                self.troubled = false;
                tracing::info!("the ledger can be written again");
            }
            None => {}
        }
        for (work, failed) in batch.into_iter().zip(failed) {
            work.done(match failed {
                Some(error) => Err(error),
                None => committed.clone(),
            });
        }
    }

    fn execute(&mut self, batch: &mut [Box<dyn Work>], failed: &mut [Option<Error>]) -> Result<(), Error> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (work, failed) in batch.iter_mut().zip(failed) {
            tx.prepare_cached("SAVEPOINT operation")?.execute([])?;
            let outcome = catch_unwind(AssertUnwindSafe(|| work.execute(&tx)));
            *failed = match outcome {
                Ok(done) => done.err().map(Error::from),
                Err(_) => Some(Error::Failed("an operation panicked".into())),
            };
            // A full disk ends the whole transaction, not just the statement.
            if let Some(error) = failed.as_ref().filter(|_| tx.is_autocommit()) {
                return Err(error.clone());
            }
            if failed.is_some() {
                tx.prepare_cached("ROLLBACK TO operation")?.execute([])?;
            }
            tx.prepare_cached("RELEASE operation")?.execute([])?;
        }
        Ok(tx.commit()?)
    }

    fn trouble(&mut self, error: &Error) {
        self.failures.inc();
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::error!(%error, "creates are refused while their intent cannot be kept, and a restart may not know how others ended");
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(Arc::from(error.to_string()))
    }
}
