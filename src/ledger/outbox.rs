//! Webhooks that are owed: a row from the create that asks for one until long after it was delivered, so that a crash at any moment
//! neither loses a delivery nor forgets that it was made.

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, Transaction, named_params};

use super::{Error, Ledger, execute};

/// The table.
pub(super) const STEP: &str = "
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The unguessable end of the URL that the upstream was given; NULL where it was given none.
    token TEXT UNIQUE,
    -- NULL until the create is answered.
    job TEXT,
    account TEXT NOT NULL,
    client TEXT NOT NULL,
    target TEXT NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'due', 'delivered', 'dead')),
    -- How the job ended.
    ended TEXT,
    message TEXT,
    body BLOB,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- Unix time in milliseconds.
    next_ms INTEGER,
    changed_ms INTEGER NOT NULL,
    trouble TEXT
) STRICT;
CREATE INDEX outbox_state ON outbox (state, id);
CREATE INDEX outbox_job ON outbox (job);
";

/// The create that each row is about, so that a job which turns up here is known to be that create's.
pub(super) const NUMBER_STEP: &str = "ALTER TABLE outbox ADD COLUMN number INTEGER";

/// Delivered rows kept, so that repeated callbacks are known and operators see what was sent.
const DELIVERED_KEPT: u32 = 10_000;
/// Dead rows kept, with their bodies.
const DEAD_KEPT: u32 = 1_000;
/// To find the oldest is to walk over those that stay: once in so many rows.
const FORGOTTEN_EVERY: i64 = 64;
/// Rows kept whose create never told a job id.
const UNBOUND_KEPT: u32 = 1_000;

/// What is known when a create is about to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Owed {
    /// The create's; `None` in rows of older versions.
    pub(crate) number: Option<u64>,
    pub(crate) token: Option<String>,
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) target: String,
    pub(crate) completed: bool,
    pub(crate) failed: bool,
}

/// A row whose job has not ended, as far as is known.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) job: Option<String>,
    pub(crate) owed: Owed,
}

/// A message to be delivered.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) account: String,
    pub(crate) target: String,
    /// The same at every attempt, so that receivers recognise repetitions.
    pub(crate) id: String,
    pub(crate) body: Bytes,
    pub(crate) attempts: u32,
}

/// What an earlier process left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) due: Vec<Rest>,
}

/// A row that is due, and when again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) id: i64,
    pub(crate) target: String,
    pub(crate) attempts: u32,
    pub(crate) next_ms: i64,
}

/// A row as the operator sees it.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct View {
    pub(crate) id: i64,
    pub(crate) state: String,
    pub(crate) job: Option<String>,
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) target: String,
    pub(crate) ended: Option<String>,
    pub(crate) webhook_id: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) next_attempt_ms: Option<i64>,
    pub(crate) changed_ms: i64,
    pub(crate) error: Option<String>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    Delivered,
    /// Again at this time.
    At(i64),
    Dead,
}

impl Ledger {
    /// Before a create is sent. The row's number comes back.
    pub(crate) async fn owe(&self, owed: Owed) -> Result<i64, Error> {
        let now = self.now().wall_ms;
        self.run(move |tx| {
            execute(
                tx,
                "INSERT INTO outbox (number, token, account, client, target, completed, failed, changed_ms)
                 VALUES (:number, :token, :account, :client, :target, :completed, :failed, :now)",
                named_params! {
                    ":number": owed.number, ":token": owed.token, ":account": owed.account, ":client": owed.client, ":target": owed.target,
                    ":completed": owed.completed, ":failed": owed.failed, ":now": now,
                },
            )?;
            Ok(tx.last_insert_rowid())
        })
        .await
    }

    /// The same for a job that is known, and nothing where the same is or was owed.
    pub(crate) async fn owe_once(&self, owed: Owed, job: String) -> Result<Option<i64>, Error> {
        let now = self.now().wall_ms;
        self.run(move |tx| {
            let sql = "SELECT 1 FROM outbox WHERE (job = ?1 AND target = ?2) OR token = ?3 LIMIT 1";
            if tx.prepare_cached(sql)?.exists((&job, &owed.target, &owed.token))? {
                return Ok(None);
            }
            execute(
                tx,
                "INSERT INTO outbox (token, job, account, client, target, completed, failed, changed_ms)
                 VALUES (:token, :job, :account, :client, :target, :completed, :failed, :now)",
                named_params! {
                    ":token": owed.token, ":job": job, ":account": owed.account, ":client": owed.client, ":target": owed.target,
                    ":completed": owed.completed, ":failed": owed.failed, ":now": now,
                },
            )?;
            Ok(Some(tx.last_insert_rowid()))
        })
        .await
    }

    /// The create was answered with this job. False where the job's end was told already.
    pub(crate) async fn owed_for(&self, id: i64, job: String) -> Result<bool, Error> {
        let bind = move |tx: &Transaction<'_>| {
            execute(tx, "UPDATE outbox SET job = ?2 WHERE id = ?1 AND state = 'waiting'", (id, job))
        };
        self.run(bind).await.map(|changed| changed > 0)
    }

    /// Nothing is owed any more: the create came to nothing, or its end is none that was asked for.
    pub(crate) fn owe_nothing(&self, id: i64) {
        self.post(move |tx| execute(tx, "DELETE FROM outbox WHERE id = ?1 AND state = 'waiting'", [id]).map(drop));
    }

    /// The job has ended: the message is due.
    pub(crate) fn due(&self, id: i64, ended: &'static str, message: Message) {
        let now = self.now().wall_ms;
        self.post(move |tx| {
            execute(
                tx,
                "UPDATE outbox SET state = 'due', ended = ?2, message = ?3, body = ?4, next_ms = ?5, changed_ms = ?5
                 WHERE id = ?1 AND state = 'waiting'",
                (id, ended, message.id, message.body.as_ref(), now),
            )
            .map(drop)
        });
    }

    /// The message of a row that is due; `None` where it is not.
    pub(crate) async fn message(&self, id: i64) -> Result<Option<Message>, Error> {
        let read = |row: &Row<'_>| {
            Ok(Message {
                account: row.get("account")?,
                target: row.get("target")?,
                id: row.get("message")?,
                body: row.get::<_, Vec<u8>>("body")?.into(),
                attempts: row.get("attempts")?,
            })
        };
        self.run(move |tx| {
            let sql = "SELECT account, target, message, body, attempts FROM outbox WHERE id = ?1 AND state = 'due'";
            tx.prepare_cached(sql)?.query_row([id], read).optional()
        })
        .await
    }

    /// An attempt was made.
    pub(crate) fn attempted(&self, id: i64, attempts: u32, next: &Next, trouble: Option<String>) {
        let now = self.now().wall_ms;
        let (state, next_ms) = match next {
            Next::Delivered => ("delivered", None),
            Next::At(at) => ("due", Some(*at)),
            Next::Dead => ("dead", None),
        };
        self.post(move |tx| {
            execute(
                tx,
                "UPDATE outbox SET state = ?2, attempts = ?3, next_ms = ?4, trouble = ?5, changed_ms = ?6,
                        body = CASE WHEN ?2 = 'delivered' THEN NULL ELSE body END
                 WHERE id = ?1",
                (id, state, attempts, next_ms, trouble, now),
            )?;
            if state == "due" || id % FORGOTTEN_EVERY != 0 {
                return Ok(());
            }
            forget_oldest(tx, "state = 'delivered'", DELIVERED_KEPT)?;
            forget_oldest(tx, "state = 'dead'", DEAD_KEPT)
        });
    }

    /// The row that a callback's token names, and whether its end was told.
    pub(crate) async fn by_token(&self, token: String) -> Result<Option<(Waiting, bool)>, Error> {
        self.run(move |tx| {
            let mut statement = tx.prepare_cached("SELECT * FROM outbox WHERE token = ?1")?;
            let read = |row: &Row<'_>| Ok((waiting(row)?, row.get::<_, String>("state")? != "waiting"));
            statement.query_row([token], read).optional()
        })
        .await
    }

    /// Makes a dead or due row due now, as if it had never been tried. False where there is none.
    pub(crate) async fn replay(&self, id: i64) -> Result<bool, Error> {
        let now = self.now().wall_ms;
        let revive = move |tx: &Transaction<'_>| {
            execute(
                tx,
                "UPDATE outbox SET state = 'due', attempts = 0, next_ms = ?2, changed_ms = ?2
                 WHERE id = ?1 AND state IN ('dead', 'due') AND body IS NOT NULL",
                (id, now),
            )
        };
        self.run(revive).await.map(|changed| changed > 0)
    }

    /// The newest rows, for the operator.
    pub(crate) async fn webhooks(&self, dead: bool, most: u32) -> Result<Vec<View>, Error> {
        let read = |row: &Row<'_>| {
            Ok(View {
                id: row.get("id")?,
                state: row.get("state")?,
                job: row.get("job")?,
                account: row.get("account")?,
                client: row.get("client")?,
                target: row.get("target")?,
                ended: row.get("ended")?,
                webhook_id: row.get("message")?,
                attempts: row.get("attempts")?,
                next_attempt_ms: row.get("next_ms")?,
                changed_ms: row.get("changed_ms")?,
                error: row.get("trouble")?,
            })
        };
        self.run(move |tx| {
            let sql = "SELECT * FROM outbox WHERE NOT ?1 OR state = 'dead' ORDER BY id DESC LIMIT ?2";
            tx.prepare_cached(sql)?.query_map((dead, most), read)?.collect()
        })
        .await
    }

    /// What an earlier process left: rows that wait for their job's end, and rows that are due with their attempts and next time. Rows that
    /// can never come to anything are removed.
    pub(crate) fn left_webhooks(&self) -> Result<Left, Error> {
        self.load(|tx| {
            execute(tx, "DELETE FROM outbox WHERE state = 'waiting' AND job IS NULL AND token IS NULL", [])?;
            forget_oldest(tx, "state = 'waiting' AND job IS NULL", UNBOUND_KEPT)?;
            let mut statement = tx.prepare("SELECT * FROM outbox WHERE state = 'waiting'")?;
            let waiting = statement.query_map([], waiting)?.collect::<rusqlite::Result<_>>()?;
            let mut statement =
                tx.prepare("SELECT id, target, attempts, coalesce(next_ms, 0) FROM outbox WHERE state = 'due'")?;
            let due = |row: &Row<'_>| {
                Ok(Rest { id: row.get(0)?, target: row.get(1)?, attempts: row.get(2)?, next_ms: row.get(3)? })
            };
            Ok(Left { waiting, due: statement.query_map([], due)?.collect::<rusqlite::Result<_>>()? })
        })
    }
}

fn waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    Ok(Waiting {
        id: row.get("id")?,
        job: row.get("job")?,
        owed: Owed {
            number: row.get("number")?,
            token: row.get("token")?,
            account: row.get("account")?,
            client: row.get("client")?,
            target: row.get("target")?,
            completed: row.get("completed")?,
            failed: row.get("failed")?,
        },
    })
}

/// Removes the oldest rows beyond `kept`: counted, not timed, so that no step of the clock removes any.
fn forget_oldest(tx: &Transaction<'_>, which: &str, kept: u32) -> rusqlite::Result<()> {
    let sql = format!(
        "DELETE FROM outbox WHERE {which} AND id <= (SELECT id FROM outbox WHERE {which} ORDER BY id DESC LIMIT 1 OFFSET ?1)"
    );
    execute(tx, &sql, [kept]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Dir, memory};
    use super::*;

    fn owed(token: Option<&str>) -> Owed {
        Owed {
            number: None,
            token: token.map(str::to_owned),
            account: "main".into(),
            client: "local".into(),
            target: "http://localhost:1/".into(),
            completed: true,
            failed: false,
        }
    }

    fn message() -> Message {
        Message {
            account: "main".into(),
            target: "http://localhost:1/".into(),
            id: "msg_1".into(),
            body: Bytes::from_static(b"{}"),
            attempts: 0,
        }
    }

    #[tokio::test]
    async fn a_row_goes_its_way_once() {
        let ledger = memory();
        let id = ledger.owe(owed(None)).await.expect("kept");
        assert!(ledger.owed_for(id, "job_1".into()).await.expect("bound"));
        assert!(ledger.message(id).await.expect("read").is_none(), "not yet");
        ledger.due(id, "succeeded", message());
        ledger.due(id, "failed", Message { id: "msg_2".into(), ..message() });
        assert!(!ledger.owed_for(id, "job_2".into()).await.expect("read"), "too late");
        ledger.owe_nothing(id);
        ledger.attempted(id, 1, &Next::At(5), Some("away".into()));
        let read = ledger.message(id).await.expect("read").expect("due");
        assert_eq!((read.id.as_str(), read.attempts), ("msg_1", 1), "the first end counts");
        ledger.attempted(id, 2, &Next::Delivered, None);
        assert!(ledger.message(id).await.expect("read").is_none());
        assert!(!ledger.replay(id).await.expect("read"), "its body is gone");
        let [view] = &ledger.webhooks(false, 10).await.expect("read")[..] else { panic!("one row") };
        assert_eq!((view.state.as_str(), view.job.as_deref(), view.attempts), ("delivered", Some("job_1"), 2));
        assert!(ledger.webhooks(true, 10).await.expect("read").is_empty());
    }

    #[tokio::test]
    async fn what_is_owed_for_a_job_is_owed_once() {
        let ledger = memory();
        let owe = async |token, job: &str| ledger.owe_once(owed(token), job.into()).await.expect("kept");
        let id = owe(Some("t"), "job_1").await.expect("new");
        assert_eq!(owe(None, "job_1").await, None);
        assert_eq!(owe(Some("t"), "job_2").await, None, "no token has two rows");
        ledger.due(id, "succeeded", message());
        ledger.attempted(id, 1, &Next::Delivered, None);
        assert_eq!(owe(None, "job_1").await, None, "it was told");
        assert!(owe(None, "job_2").await.is_some());
        let own = ledger.owe(owed(None)).await.expect("kept");
        ledger.owed_for(own, "job_3".into()).await.expect("bound");
        assert_eq!(owe(None, "job_3").await, None, "our own create's");
    }

    #[tokio::test]
    async fn the_dead_come_back_as_new() {
        let ledger = memory();
        let id = ledger.owe(owed(Some("t"))).await.expect("kept");
        ledger.due(id, "failed", message());
        ledger.attempted(id, 11, &Next::Dead, Some("410".into()));
        assert_eq!(ledger.webhooks(true, 10).await.expect("read").len(), 1);
        assert!(ledger.replay(id).await.expect("written"));
        assert_eq!(ledger.message(id).await.expect("read").expect("due").attempts, 0);
        assert!(!ledger.replay(id + 1).await.expect("read"));
        let (row, told) = ledger.by_token("t".into()).await.expect("read").expect("known");
        assert_eq!((row.id, told), (id, true));
        assert!(ledger.by_token("u".into()).await.expect("read").is_none());
    }

    #[tokio::test]
    async fn a_restart_finds_what_is_owed() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        let (lost, bound, callback, due) = (
            ledger.owe(owed(None)).await,
            ledger.owe(owed(None)).await,
            ledger.owe(owed(Some("t"))).await,
            ledger.owe(owed(None)).await,
        );
        ledger.owed_for(bound.clone().expect("kept"), "job_1".into()).await.expect("bound");
        ledger.due(due.clone().expect("kept"), "succeeded", message());
        ledger.attempted(due.clone().expect("kept"), 3, &Next::At(77), Some("away".into()));
        ledger.close();
        let Left { waiting, due: dues } = dir.open().expect("again").left_webhooks().expect("read");
        let ids: Vec<i64> = waiting.iter().map(|row| row.id).collect();
        assert_eq!(ids, [bound.expect("kept"), callback.expect("kept")], "{lost:?} can never be known");
        let rest = Rest { id: due.expect("kept"), target: "http://localhost:1/".into(), attempts: 3, next_ms: 77 };
        assert_eq!(dues, [rest]);
    }

    #[tokio::test]
    async fn the_oldest_are_forgotten_by_count() {
        let ledger = memory();
        for _ in 0..5 {
            let id = ledger.owe(owed(None)).await.expect("kept");
            ledger.due(id, "succeeded", message());
            ledger.attempted(id, 1, &Next::Delivered, None);
        }
        ledger.run(|tx| forget_oldest(tx, "state = 'delivered'", 2)).await.expect("removed");
        let left: Vec<i64> = ledger.webhooks(false, 10).await.expect("read").iter().map(|view| view.id).collect();
        assert_eq!(left, [5, 4]);
    }
}
