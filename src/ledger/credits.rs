//! Credits: open reservations, what each day came to, and the day that was seen last.

use std::sync::Arc;

use rusqlite::{Row, Transaction, named_params};

use crate::credits::amount::Amount;
use crate::credits::book::{Entry, Key, Move, Scope, Stage, Tally};
use crate::credits::calendar::Calendar;

use super::moment::Moment;
use super::{Error, Ledger, execute};

/// Amounts are in millionths of a credit, days since 1970 at `credits.utc_offset`.
pub(super) const STEP: &str = "
CREATE TABLE credit_entries (
    id INTEGER PRIMARY KEY,
    number INTEGER,
    account TEXT NOT NULL,
    client TEXT NOT NULL,
    model TEXT NOT NULL,
    day INTEGER NOT NULL,
    amount INTEGER NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('reserved', 'charged'))
) STRICT;
CREATE TABLE credit_totals (
    day INTEGER NOT NULL,
    account TEXT NOT NULL,
    client TEXT NOT NULL,
    model TEXT NOT NULL,
    charged INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    refunded INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (day, account, client, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE credit_calendar (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    day INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    boot_ms INTEGER NOT NULL,
    boot TEXT NOT NULL
) STRICT;
";

/// A stage more, and what is charged without being known to have been bought.
pub(super) const UNKNOWN_STEP: &str = "
CREATE TABLE credit_entries_2 (
    id INTEGER PRIMARY KEY,
    -- The create's.
    number INTEGER,
    account TEXT NOT NULL,
    client TEXT NOT NULL,
    model TEXT NOT NULL,
    day INTEGER NOT NULL,
    amount INTEGER NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('reserved', 'unknown', 'charged'))
) STRICT;
INSERT INTO credit_entries_2 SELECT * FROM credit_entries;
DROP TABLE credit_entries;
ALTER TABLE credit_entries_2 RENAME TO credit_entries;
ALTER TABLE credit_totals ADD COLUMN unknown INTEGER NOT NULL DEFAULT 0;
";

/// What an earlier process left.
pub(crate) struct Known {
    pub(crate) totals: Vec<((i64, Key), Tally)>,
    pub(crate) entries: Vec<Open>,
    pub(crate) calendar: Option<(i64, Moment)>,
    pub(crate) next_id: u64,
}

/// An open entry: that of a create which may have a job.
pub(crate) struct Open {
    id: u64,
    number: Option<u64>,
    key: Key,
    day: i64,
    amount: Amount,
    stage: Stage,
    /// What became of the create; `None`: nothing, it was refused, not sent, or given up.
    create: Option<Create>,
}

/// What the job table of the ledger says of a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Create {
    /// No outcome is known.
    Open,
    Carried,
}

impl Open {
    pub(crate) fn entry(self, scopes: impl Fn(&Key) -> [Scope; 2]) -> (u64, Entry) {
        let Self { id, number, key, day, amount, stage, .. } = self;
        (id, Entry { number, scopes: scopes(&key), key, day, amount, stage, ended: None })
    }

    /// Where an entry of an earlier process stands now, and what that changes. What may have been sent is charged, once.
    fn left(&self) -> (Option<Stage>, Tally) {
        let amount = signed(self.amount.micro());
        let charge = Tally { reserved: -amount, charged: amount, ..Tally::default() };
        match (self.stage, self.number, self.create) {
            // A create's reservation is written with its number and before its intent: without an intent, nothing was bought.
            (Stage::Reserved, Some(_), None) => (None, Tally { reserved: -amount, calls: -1, ..Tally::default() }),
            (Stage::Reserved, Some(_), Some(Create::Carried)) => (Some(Stage::Charged), charge),
            (Stage::Reserved, number, _) => (number.map(|_| Stage::Unknown), Tally { unknown: amount, ..charge }),
            (Stage::Unknown, _, Some(Create::Carried)) => {
                (Some(Stage::Charged), Tally { unknown: -amount, ..Tally::default() })
            }
            (Stage::Unknown, _, None) => (None, Tally::default()),
            (stage, ..) => (Some(stage), Tally::default()),
        }
    }
}

impl Ledger {
    /// Reads everything, after what is known of jobs. What was reserved when an earlier process ended may have been sent: it is charged.
    pub(crate) fn load_credits(&self) -> Result<Known, Error> {
        self.load(|tx| {
            let open = "SELECT *, (SELECT state FROM jobs WHERE jobs.number = credit_entries.number) AS job FROM credit_entries";
            for open in rows(tx, open, entry)? {
                let (to, change) = open.left();
                if to != Some(open.stage) {
                    let Open { id, number, key, day, amount, stage, .. } = open;
                    apply(tx, &Move { id, number, key, day, amount, from: Some(stage), to, change })?;
                }
            }
            let totals = "SELECT * FROM credit_totals";
            let totals = rows(tx, totals, |row| Ok(((row.get("day")?, key(row)?), tally(row)?)))?;
            let entries = rows(tx, open, entry)?;
            let calendar = "SELECT * FROM credit_calendar";
            let calendar = rows(tx, calendar, |row| Ok((row.get("day")?, Moment::read(row)?)))?.pop();
            let last = "SELECT coalesce(max(id), 0) FROM credit_entries";
            let last: i64 = tx.query_row(last, [], |row| row.get(0))?;
            Ok(Known { totals, entries, calendar, next_id: unsigned(last) + 1 })
        })
    }

    /// Keeps a reservation; it is on disk when this returns.
    pub(crate) async fn keep_credits(&self, made: Move) -> Result<(), Error> {
        self.run(move |tx| apply(tx, &made)).await
    }

    /// Keeps what follows a reservation. Lost in a crash, it leaves the reservation charged.
    pub(crate) fn post_credits(&self, made: Move) {
        self.post(move |tx| apply(tx, &made));
    }

    /// Keeps the day, and lets go of what is older than `kept_from`.
    pub(crate) fn post_calendar(&self, calendar: &Calendar, older_than: i64) {
        let (day, Moment { wall_ms, boot_ms, boot }) = (calendar.day, calendar.anchor.clone());
        self.post(move |tx| {
            let sql = "INSERT OR REPLACE INTO credit_calendar VALUES (1, :day, :wall_ms, :boot_ms, :boot)";
            let row = named_params! {":day": day, ":wall_ms": wall_ms, ":boot_ms": boot_ms, ":boot": &*boot};
            execute(tx, sql, row)?;
            execute(tx, "DELETE FROM credit_totals WHERE day <= ?1", [older_than])?;
            execute(tx, "DELETE FROM credit_entries WHERE day <= ?1", [older_than])?;
            Ok(())
        });
    }
}

fn rows<T>(
    tx: &Transaction<'_>,
    sql: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    tx.prepare(sql)?.query_map([], read)?.collect()
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    let text = |name: &str| row.get::<_, String>(name).map(Arc::from);
    Ok(Key { account: text("account")?, client: text("client")?, model: text("model")? })
}

fn tally(row: &Row<'_>) -> rusqlite::Result<Tally> {
    Ok(Tally {
        charged: row.get("charged")?,
        unknown: row.get("unknown")?,
        reserved: row.get("reserved")?,
        refunded: row.get("refunded")?,
        calls: row.get("calls")?,
        tokens: row.get("tokens")?,
    })
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Open> {
    let number = row.get::<_, Option<i64>>("number")?.map(unsigned);
    let (id, amount) = (unsigned(row.get("id")?), Amount::from_micro(unsigned(row.get("amount")?)));
    let stage = match row.get_ref("stage")?.as_str()? {
        "reserved" => Stage::Reserved,
        "unknown" => Stage::Unknown,
        _ => Stage::Charged,
    };
    let create = row.get::<_, Option<String>>("job")?.map(|state| match state.as_str() {
        "sending" | "uncertain" => Create::Open,
        _ => Create::Carried,
    });
    Ok(Open { id, number, key: key(row)?, day: row.get("day")?, amount, stage, create })
}

/// One change, and its day's total in the same step. A change from a stage in which the entry is no more changes nothing.
fn apply(tx: &Transaction<'_>, made: &Move) -> rusqlite::Result<()> {
    let Move { id, number, key, day, amount, from, to, change } = made;
    let Key { account, client, model } = key;
    let (account, client, model) = (&**account, &**client, &**model);
    let (id, amount) = (signed(*id), signed(amount.micro()));
    let changed = match (from, to) {
        (None, stage) => {
            let stage = name(stage.unwrap_or(Stage::Charged));
            let number = number.map(signed);
            let sql =
                "INSERT INTO credit_entries VALUES (:id, :number, :account, :client, :model, :day, :amount, :stage)";
            let row = named_params! {":id": id, ":number": number, ":account": account, ":client": client, ":model": model,
            ":day": day, ":amount": amount, ":stage": stage};
            execute(tx, sql, row)?
        }
        (Some(from), Some(to)) => {
            let sql = "UPDATE credit_entries SET stage = :to, amount = :amount WHERE id = :id AND stage = :from";
            execute(tx, sql, named_params! {":to": name(*to), ":amount": amount, ":id": id, ":from": name(*from)})?
        }
        (Some(from), None) => {
            let sql = "DELETE FROM credit_entries WHERE id = :id AND stage = :from";
            execute(tx, sql, named_params! {":id": id, ":from": name(*from)})?
        }
    };
    if changed == 0 {
        return Ok(());
    }
    let sql = "INSERT INTO credit_totals VALUES (:day, :account, :client, :model, :charged, :reserved, :refunded, :calls, :tokens, :unknown)
        ON CONFLICT DO UPDATE SET charged = charged + excluded.charged, reserved = reserved + excluded.reserved,
        refunded = refunded + excluded.refunded, calls = calls + excluded.calls, tokens = tokens + excluded.tokens, unknown = unknown + excluded.unknown";
    let Tally { charged, unknown, reserved, refunded, calls, tokens } = change;
    let row = named_params! {":day": day, ":account": account, ":client": client, ":model": model, ":charged": charged,
    ":reserved": reserved, ":refunded": refunded, ":calls": calls, ":tokens": tokens, ":unknown": unknown};
    execute(tx, sql, row).map(drop)
}

/// Whole numbers in `SQLite` are signed; ours stay far below.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Reserved => "reserved",
        Stage::Unknown => "unknown",
        Stage::Charged => "charged",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Dir;
    use super::*;

    fn key_of(model: &str) -> Key {
        Key { account: "main".into(), client: "local".into(), model: model.into() }
    }

    fn reserved_by(id: u64, number: u64) -> Move {
        Move { number: Some(number), ..reserved(id) }
    }

    fn reserved(id: u64) -> Move {
        let change = Tally { reserved: 5, calls: 1, ..Tally::default() };
        let (from, to, amount) = (None, Some(Stage::Reserved), Amount::from_micro(5));
        Move { id, number: None, key: key_of("m"), day: 9, amount, from, to, change }
    }

    fn to(made: Move, from: Stage, to: Option<Stage>, change: Tally) -> Move {
        Move { from: Some(from), to, change, ..made }
    }

    #[tokio::test]
    async fn what_was_under_way_in_a_crash_is_charged_unless_it_provably_was_not_sent() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        let origin =
            || super::super::jobs::Origin { account: "main".into(), client: "local".into(), model: "m".into() };
        ledger.post_credits(reserved(1));
        for number in [70, 71, 72, 73, 74] {
            ledger.post_credits(reserved_by(number, number));
        }
        // 70 is unanswered, 71 a job, 72 was refused, the intent of 73 is not on disk; 74's job turned up in the crash.
        for number in [70, 71, 72, 74] {
            ledger.sending(number, origin(), None).await.expect("kept");
        }
        ledger.started(71, "job").await.expect("kept");
        ledger.refused(72);
        let unknown = Tally { reserved: -5, charged: 5, unknown: 5, ..Tally::default() };
        ledger.post_credits(to(reserved_by(74, 74), Stage::Reserved, Some(Stage::Unknown), unknown));
        ledger.started(74, "late").await.expect("kept");
        let charge = Tally { reserved: -5, charged: 5, ..Tally::default() };
        ledger.post_credits(reserved(3));
        ledger.post_credits(to(reserved(3), Stage::Reserved, None, charge));
        ledger.close();
        for _ in 0..2 {
            let ledger = dir.open().expect("again");
            let known = ledger.load_credits().expect("there");
            let all = Tally { charged: 25, unknown: 10, calls: 5, ..Tally::default() };
            assert_eq!(known.totals, [((9, key_of("m")), all)]);
            let open: Vec<_> = known.entries.iter().map(|entry| (entry.number, entry.stage)).collect();
            let charged = |number| (Some(number), Stage::Charged);
            assert_eq!(open, [(Some(70), Stage::Unknown), charged(71), charged(74)]);
            ledger.close();
        }
        let ledger = dir.open().expect("again");
        ledger.given_up(70);
        let known = ledger.load_credits().expect("there");
        assert_eq!((known.totals[0].1.unknown, known.entries.len()), (10, 2), "it stays unknown and is closed");
    }

    #[test]
    fn a_change_is_kept_once() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        let charge = Tally { reserved: -5, charged: 5, ..Tally::default() };
        let refund = Tally { charged: -5, refunded: 5, ..Tally::default() };
        ledger.post_credits(reserved(1));
        for _ in 0..2 {
            ledger.post_credits(to(reserved(1), Stage::Reserved, Some(Stage::Charged), charge));
        }
        for _ in 0..2 {
            ledger.post_credits(to(reserved(1), Stage::Charged, None, refund));
        }
        let known = ledger.load_credits().expect("there");
        assert_eq!(known.totals[0].1, Tally { refunded: 5, calls: 1, ..Tally::default() });
        assert!(known.entries.is_empty());
    }

    #[test]
    fn the_day_is_kept_and_old_totals_go() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        assert_eq!(ledger.load_credits().expect("empty").calendar, None);
        ledger.post_credits(reserved(1));
        let mut calendar = Calendar::new(0, ledger.now());
        calendar.day = 40;
        ledger.post_calendar(&calendar, 9);
        let known = ledger.load_credits().expect("there");
        assert_eq!(known.calendar, Some((40, calendar.anchor)));
        assert!(known.totals.is_empty());
    }
}
