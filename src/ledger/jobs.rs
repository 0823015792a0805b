//! Creates and the jobs they start. A row is written before a create is sent; what is open when the file is opened again holds its slot.

use rusqlite::{Connection, Row, Transaction, named_params};

use super::answers::{self, Keyed};
use super::moment::{AGE_MS, Moment};
use super::{Error, Ledger, execute};

pub(super) const STEP: &str = "
CREATE TABLE jobs (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    client  TEXT NOT NULL,
    model   TEXT NOT NULL,
    -- sending: no outcome yet. uncertain: there will be none.
    state   TEXT NOT NULL CHECK (state IN ('sending', 'uncertain', 'live', 'ended')),
    id      TEXT UNIQUE,
    status  TEXT,
    -- When it was last sent, became uncertain or ended.
    wall_ms INTEGER NOT NULL,
    boot_ms INTEGER NOT NULL,
    boot    TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state);
";

/// How long the end of a job is kept.
const ENDED_KEPT_MS: i64 = 600_000;
/// Ends older than this many later creates are not kept either.
const ENDED_KEPT_FOR_CREATES: i64 = 100_000;
/// Old rows go once in so many creates, at most so many at a time: what a create costs does not hang on how many there are.
const PRUNE_EVERY: u64 = 64;
pub(super) const PRUNED_AT_ONCE: u32 = 4 * 64;

/// Who starts a job, by the names of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
}

/// A create or job of an earlier process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) number: u64,
    pub(crate) origin: Origin,
    /// When it was last sent, became uncertain or ended.
    pub(crate) at: Moment,
    /// Empty while there is none.
    pub(crate) id: String,
    /// The last word about an ended job.
    pub(crate) status: String,
}

/// What an earlier process left, oldest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) live: Vec<Kept>,
    /// Creates that were sent or were about to be, without a known outcome.
    pub(crate) uncertain: Vec<Kept>,
    /// Jobs that ended a short while ago.
    pub(crate) ended: Vec<Kept>,
}

impl Ledger {
    /// A create is about to be sent, and must not be before this is on disk.
    pub(crate) fn sending(
        &self,
        number: u64,
        origin: Origin,
        key: Option<Keyed>,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let now = self.now();
        self.run(move |tx| {
            insert(tx, number, "sending", None, &origin, &now)?;
            if let Some(key) = key {
                answers::begin(tx, number, &origin, &key, &now)?;
            }
            if number.is_multiple_of(PRUNE_EVERY) {
                prune(tx, &now, PRUNED_AT_ONCE)?;
                answers::prune(tx, &now, PRUNED_AT_ONCE)?;
            }
            Ok(())
        })
    }

    /// Another attempt of the create is being sent.
    pub(crate) fn sent_again(&self, number: u64) {
        self.turn(number, "sending", None);
    }

    /// Nobody knows whether the create was carried out, and nobody will.
    pub(crate) fn uncertain(&self, number: u64) {
        self.turn(number, "uncertain", None);
    }

    /// The create started this job. Wait for it before the id is told to anybody: then no id is known that a restart does not know.
    pub(crate) fn started(&self, number: u64, id: &str) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let id = id.to_owned();
        self.run(move |tx| {
            execute(tx, "DELETE FROM jobs WHERE id = ? AND state = 'ended'", [&id])?;
            let sql = "UPDATE OR IGNORE jobs SET state = 'live', id = ? WHERE number = ?";
            if execute(tx, sql, (&id, number))? == 0 {
                // The id of a live job: it is one job, kept under its first number. This create was carried out all the same.
                execute(tx, "UPDATE jobs SET state = 'ended' WHERE number = ?", [number])?;
            }
            Ok(())
        })
    }

    /// The create was not carried out: its key may try again.
    pub(crate) fn refused(&self, number: u64) {
        self.post(move |tx| {
            answers::forget(tx, number)?;
            execute(tx, "DELETE FROM jobs WHERE number = ?", [number]).map(drop)
        });
    }

    /// A create of unknown outcome holds its slot no longer. Its key is still taken.
    pub(crate) fn given_up(&self, number: u64) {
        self.post(move |tx| execute(tx, "DELETE FROM jobs WHERE number = ?", [number]).map(drop));
    }

    /// A live job whose create this proxy did not send.
    pub(crate) fn seen(&self, number: u64, id: &str, origin: Origin) {
        let (id, now) = (id.to_owned(), self.now());
        self.post(move |tx| {
            execute(tx, "DELETE FROM jobs WHERE id = ?", [&id])?;
            insert(tx, number, "live", Some(&id), &origin, &now)
        });
    }

    /// The job holds no slot any more.
    pub(crate) fn ended(&self, number: u64, status: &str) {
        self.turn(number, "ended", Some(status.to_owned()));
    }

    /// What an earlier process left.
    pub(crate) fn known(&self) -> Result<Known, Error> {
        let now = self.now();
        self.load(move |tx| {
            prune(tx, &now, u32::MAX)?;
            answers::prune(tx, &now, u32::MAX)?;
            // A job may have been written down with its webhook before it was with its create.
            let turned_up = "UPDATE OR IGNORE jobs SET state = 'live', id = outbox.job FROM outbox \
                             WHERE jobs.state IN ('sending', 'uncertain') AND outbox.number = jobs.number AND outbox.job IS NOT NULL";
            execute(tx, turned_up, [])?;
            let mut known = Known::default();
            // Creates whose job is another's have no id.
            let mut statement = tx.prepare("SELECT * FROM jobs WHERE state <> 'ended' OR id IS NOT NULL ORDER BY number")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let list = match row.get_ref("state")?.as_str()? {
                    "live" => &mut known.live,
                    "ended" => &mut known.ended,
                    _ => &mut known.uncertain,
                };
                list.push(Kept::read(row)?);
            }
            Ok(known)
        })
    }

    fn turn(&self, number: u64, state: &'static str, status: Option<String>) {
        let now = self.now();
        self.post(move |tx| {
            let sql = "UPDATE jobs SET state = :state, status = :status, wall_ms = :wall_ms, boot_ms = :boot_ms, boot = :boot \
                       WHERE number = :number";
            let Moment { wall_ms, boot_ms, boot } = &now;
            let params = named_params! {
                ":state": state, ":status": status, ":wall_ms": wall_ms, ":boot_ms": boot_ms, ":boot": boot, ":number": number
            };
            execute(tx, sql, params).map(drop)
        });
    }
}

impl Kept {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let origin = Origin { account: row.get("account")?, client: row.get("client")?, model: row.get("model")? };
        let text = |column| row.get::<_, Option<String>>(column).map(Option::unwrap_or_default);
        let (id, status) = (text("id")?, text("status")?);
        Ok(Self { number: row.get("number")?, origin, at: Moment::read(row)?, id, status })
    }
}

/// The first number that no create or job has ever had.
pub(super) fn next_number(connection: &Connection) -> rusqlite::Result<u64> {
    // A number may have been taken for a webhook or a reservation of a create that came to nothing.
    let sql = "SELECT max((SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'), \
               (SELECT coalesce(max(number), 0) FROM outbox), (SELECT coalesce(max(number), 0) FROM credit_entries)) + 1";
    connection.query_row(sql, [], |row| row.get(0))
}

fn insert(
    tx: &Transaction<'_>,
    number: u64,
    state: &str,
    id: Option<&str>,
    origin: &Origin,
    now: &Moment,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO jobs (number, account, client, model, state, id, wall_ms, boot_ms, boot) \
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let Origin { account, client, model } = origin;
    let Moment { wall_ms, boot_ms, boot } = now;
    execute(tx, sql, (number, account, client, model, state, id, wall_ms, boot_ms, boot)).map(drop)
}

/// Looks at the first `most` only. One of them that ended late keeps later ones for a while.
fn prune(tx: &Transaction<'_>, now: &Moment, most: u32) -> rusqlite::Result<()> {
    let sql = format!(
        "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE state = 'ended' ORDER BY number LIMIT {most}) AND \
         ({AGE_MS} > {ENDED_KEPT_MS} OR number < (SELECT max(number) FROM jobs) - {ENDED_KEPT_FOR_CREATES})"
    );
    execute(tx, &sql, now.params().as_slice()).map(drop)
}

#[cfg(test)]
mod tests {
    use crate::ledger::outbox::Owed;
    use crate::ledger::tests::{Dir, memory};

    use super::*;

    fn origin(model: &str) -> Origin {
        Origin { account: "a".into(), client: "local".into(), model: model.into() }
    }

    fn numbers(kept: &[Kept]) -> Vec<u64> {
        kept.iter().map(|kept| kept.number).collect()
    }

    /// As if this much time had passed, by the clock that counts.
    fn age(ledger: &Ledger, by_ms: i64) {
        let aged = ledger
            .load(move |tx| tx.execute("UPDATE jobs SET wall_ms = wall_ms - ?1, boot_ms = boot_ms - ?1", [by_ms]));
        aged.expect("aged");
    }

    #[tokio::test]
    async fn a_restart_knows_what_was_open_and_numbers_are_not_used_twice() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        assert_eq!(ledger.known().expect("empty"), Known::default());
        for id in [Some("one"), None, Some("two"), Some("three")] {
            let n = ledger.number();
            ledger.sending(n, origin("m"), None).await.expect("kept");
            match id {
                Some(id) => ledger.started(n, id).await.expect("kept"),
                None => ledger.refused(n),
            }
        }
        ledger.ended(1, "completed");
        let [unanswered, held, given_up, seen] = [(); 4].map(|()| ledger.number());
        for n in [unanswered, held, given_up] {
            ledger.sending(n, origin("unanswered"), None).await.expect("kept");
        }
        ledger.sent_again(unanswered);
        ledger.uncertain(held);
        ledger.uncertain(given_up);
        ledger.given_up(given_up);
        ledger.seen(seen, "strange", origin("unknown"));
        ledger.seen(ledger.number(), "three", origin("unknown"));
        ledger.close();

        let ledger = dir.open().expect("again");
        let known = ledger.known().expect("whole");
        assert_eq!(numbers(&known.live), [3, seen, 9]);
        assert_eq!(known.live.iter().map(|kept| &*kept.id).collect::<Vec<_>>(), ["two", "strange", "three"]);
        assert_eq!(numbers(&known.uncertain), [unanswered, held]);
        assert_eq!(known.uncertain[0].origin, origin("unanswered"));
        assert_eq!((numbers(&known.ended), &*known.ended[0].status), (vec![1], "completed"));
        for row in [3, seen, 9] {
            ledger.ended(row, "gone");
        }
        age(&ledger, ENDED_KEPT_MS + 1);
        ledger.given_up(unanswered);
        ledger.given_up(held);
        assert_eq!(ledger.known().expect("empty"), Known::default());
        ledger.close();
        assert_eq!(dir.open().expect("again").number(), 10, "also where no row is left");
    }

    #[tokio::test]
    async fn a_job_that_only_its_webhook_knows_is_that_of_its_create() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        let owed = |number| Owed {
            number: Some(number),
            token: None,
            account: "a".into(),
            client: "local".into(),
            target: "http://localhost:1/".into(),
            completed: true,
            failed: true,
        };
        for n in 1..=2 {
            let row = ledger.owe(owed(n)).await.expect("kept");
            ledger.sending(n, origin("m"), None).await.expect("kept");
            if n == 1 {
                ledger.owed_for(row, "job".into()).await.expect("kept");
            }
        }
        // Taken for a create that was never sent.
        ledger.owe(owed(9)).await.expect("kept");
        ledger.close();
        let ledger = dir.open().expect("again");
        let known = ledger.known().expect("whole");
        assert_eq!((numbers(&known.live), known.live[0].id.as_str()), (vec![1], "job"));
        assert_eq!((numbers(&known.uncertain), ledger.number()), (vec![2], 10));
    }

    #[tokio::test]
    async fn an_id_that_comes_twice_is_one_job() {
        let ledger = memory();
        for _ in 0..2 {
            let n = ledger.number();
            ledger.sending(n, origin("m"), None).await.expect("kept");
            ledger.started(n, "same").await.expect("kept");
        }
        assert_eq!(numbers(&ledger.known().expect("whole").live), [1]);
        ledger.ended(1, "completed");
        ledger.sending(ledger.number(), origin("m"), None).await.expect("kept");
        ledger.started(3, "same").await.expect("kept");
        let known = ledger.known().expect("whole");
        assert_eq!((numbers(&known.live), numbers(&known.ended)), (vec![3], vec![]));
    }

    #[tokio::test]
    async fn the_table_does_not_grow_with_jobs_that_ended() {
        let ledger = memory();
        for n in 1..=1_000 {
            ledger.sending(ledger.number(), origin("m"), None).await.expect("kept");
            ledger.started(n, &format!("job-{n}")).await.expect("kept");
            ledger.ended(n, "completed");
            age(&ledger, ENDED_KEPT_MS / 100);
        }
        let rows = ledger.load(|tx| tx.query_row("SELECT count(*) FROM jobs", [], |row| row.get::<_, u64>(0)));
        assert!(rows.expect("counted") <= 100 + PRUNE_EVERY);
    }

    #[tokio::test]
    async fn a_day_s_step_of_the_clock_neither_drops_nor_keeps() {
        let ledger = memory();
        for (n, step_ms) in [(1, -86_400_000), (2, 86_400_000)] {
            ledger.sending(n, origin("m"), None).await.expect("kept");
            ledger.started(n, &format!("job-{n}")).await.expect("kept");
            ledger.ended(n, "completed");
            let stepped = ledger
                .load(move |tx| tx.execute("UPDATE jobs SET wall_ms = wall_ms + ? WHERE number = ?", (step_ms, n)));
            stepped.expect("stepped");
        }
        assert_eq!(ledger.known().expect("whole").ended.len(), 2, "by the boot clock no time has passed");
        let rebooted = ledger.load(|tx| tx.execute("UPDATE jobs SET boot = 'another'", []));
        rebooted.expect("rebooted");
        assert_eq!(ledger.known().expect("whole").ended.len(), 0, "neither old nor future rows stay");
    }
}
