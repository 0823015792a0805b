//! How a file is opened, checked and brought up to date.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::{Place, answers, credits, jobs, learned, outbox};

/// Marks a file as ours: "SLGC".
const APPLICATION: i32 = 0x534c_4743;

/// Each brings a file one version further; `user_version` counts those done. A released step is never changed: add another.
const STEPS: &[&str] = &[
    jobs::STEP,
    answers::STEP,
    learned::STEP,
    outbox::STEP,
    credits::STEP,
    credits::UNKNOWN_STEP,
    outbox::NUMBER_STEP,
];

/// Why a file cannot be used.
enum Unfit {
    Sqlite(rusqlite::Error),
    Damaged(String),
    Foreign,
    Newer(usize),
}

impl From<rusqlite::Error> for Unfit {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

pub(super) fn open(place: Place<'_>) -> io::Result<Connection> {
    let (path, synchronous) = match place {
        Place::Memory => {
            let opened = Connection::open_in_memory().map_err(Unfit::from);
            return opened.and_then(migrated).map_err(|unfit| unfit.tell(Path::new("the ledger in memory")));
        }
        Place::File(path) => (path, "FULL"),
        Place::FileInline(path) => (path, "OFF"),
    };
    // SQLite would let others read what models answered.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    open_file(path, synchronous).and_then(migrated).map_err(|unfit| unfit.tell(path))
}

fn open_file(path: &Path, synchronous: &str) -> Result<Connection, Unfit> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::ZERO)?;
    // Exclusive before WAL: then there is no shared-memory file, and a second process is refused.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(connection) } else { Err(Unfit::Damaged(verdict)) }
}

fn migrated(mut connection: Connection) -> Result<Connection, Unfit> {
    connection.set_prepared_statement_cache_capacity(64);
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let number = |pragma: &str| tx.query_row(pragma, [], |row| row.get::<_, i32>(0));
    let application = number("PRAGMA application_id")?;
    let tables = number("SELECT count(*) FROM sqlite_master")?;
    if application != APPLICATION && (application != 0 || tables != 0) {
        return Err(Unfit::Foreign);
    }
    let version = usize::try_from(number("PRAGMA user_version")?).map_err(|_| Unfit::Foreign)?;
    let steps = STEPS.get(version..).ok_or(Unfit::Newer(version))?;
    for step in steps {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION)?;
    tx.pragma_update(None, "user_version", i32::try_from(STEPS.len()).unwrap_or(i32::MAX))?;
    tx.commit()?;
    Ok(connection)
}

impl Unfit {
    /// For the operator: what is wrong, what to do, what it costs.
    fn tell(self, path: &Path) -> io::Error {
        let path = path.display();
        let aside = format!(
            "move it aside to start without it (mv {path} {path}.bad; rm -f {path}-wal). Lost then: which jobs are live and which creates are unanswered \
             (their slots count as free, the upstream may refuse creates until they end), answers to earlier Idempotency-Keys, webhooks not yet delivered, learned run times, what today has cost"
        );
        let (kind, text) = match self {
            Self::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => {
                    (io::ErrorKind::InvalidData, format!("{path} is damaged or no ledger at all ({error}): {aside}"))
                }
                Some(ErrorCode::DatabaseCorrupt) | None => {
                    (io::ErrorKind::InvalidData, format!("{path} is damaged ({error}): {aside}"))
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
                    io::ErrorKind::ResourceBusy,
                    format!(
                        "{path} is in use by another process: stop it, or give this one its own directory (`state.path`)"
                    ),
                ),
                Some(_) => (io::ErrorKind::Other, format!("{path} cannot be used: {error}")),
            },
            Self::Damaged(verdict) => (io::ErrorKind::InvalidData, format!("{path} is damaged ({verdict}): {aside}")),
            Self::Foreign => (io::ErrorKind::InvalidData, format!("{path} is a database of another program: {aside}")),
            Self::Newer(version) => (
                io::ErrorKind::InvalidData,
                format!(
                    "{path} was written by a newer sluicegate (version {version}, this one knows {}): start that one, or {aside}",
                    STEPS.len()
                ),
            ),
        };
        io::Error::new(kind, text)
    }
}
