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
}

impl Open {
    pub(crate) fn entry(self, scopes: impl Fn(&Key) -> [Scope; 2]) -> (u64, Entry) {
        let Self { id, number, key, day, amount } = self;
        (id, Entry { number, scopes: scopes(&key), key, day, amount, stage: Stage::Charged, ended: None })
    }
}

impl Ledger {
    /// Reads everything. What was reserved when an earlier process ended may have been sent: it is charged.
    pub(crate) fn load_credits(&self) -> Result<Known, Error> {
        self.load(|tx| {
            let charge = "UPDATE credit_totals SET charged = charged + reserved, reserved = 0 WHERE reserved <> 0";
            execute(tx, charge, [])?;
            execute(tx, "DELETE FROM credit_entries WHERE stage = 'reserved' AND number IS NULL", [])?;
            execute(tx, "UPDATE credit_entries SET stage = 'charged' WHERE stage = 'reserved'", [])?;
            let totals = "SELECT * FROM credit_totals";
            let totals = rows(tx, totals, |row| Ok(((row.get("day")?, key(row)?), tally(row)?)))?;
            let entries = rows(tx, "SELECT * FROM credit_entries", entry)?;
            let calendar = "SELECT * FROM credit_calendar";
            let calendar = rows(tx, calendar, |row| Ok((row.get("day")?, Moment::read(row)?)))?.pop();
            let last = "SELECT coalesce(max(id), 0) FROM credit_entries";
            let last: i64 = tx.query_row(last, [], |row| row.get(0))?;
            Ok(Known { totals, entries, calendar, next_id: unsigned(last) + 1 })
        })
    }

    /// The reservation is that of this create. Given before the create's job is known, so that a restart knows it then, too.
    pub(crate) fn credits_of_create(&self, id: u64, number: u64) {
        let (id, number) = (signed(id), signed(number));
        self.post(move |tx| execute(tx, "UPDATE credit_entries SET number = ?2 WHERE id = ?1", [id, number]).map(drop));
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
            execute(tx, "DELETE FROM credit_entries WHERE stage = 'charged' AND day <= ?1", [older_than])?;
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
        reserved: row.get("reserved")?,
        refunded: row.get("refunded")?,
        calls: row.get("calls")?,
        tokens: row.get("tokens")?,
    })
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Open> {
    let number = row.get::<_, Option<i64>>("number")?.map(unsigned);
    let (id, amount) = (unsigned(row.get("id")?), Amount::from_micro(unsigned(row.get("amount")?)));
    Ok(Open { id, number, key: key(row)?, day: row.get("day")?, amount })
}

/// One change, and its day's total in the same step. A change from a stage in which the entry is no more changes nothing.
fn apply(tx: &Transaction<'_>, made: &Move) -> rusqlite::Result<()> {
    let Move { id, key, day, amount, from, to, change } = made;
    let Key { account, client, model } = key;
    let (account, client, model) = (&**account, &**client, &**model);
    let (id, amount) = (signed(*id), signed(amount.micro()));
    let changed = match (from, to) {
        (None, stage) => {
            let stage = name(stage.unwrap_or(Stage::Charged));
            let sql = "INSERT INTO credit_entries VALUES (:id, NULL, :account, :client, :model, :day, :amount, :stage)";
            let row = named_params! {":id": id, ":account": account, ":client": client, ":model": model,
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
    let sql = "INSERT INTO credit_totals VALUES (:day, :account, :client, :model, :charged, :reserved, :refunded, :calls, :tokens)
        ON CONFLICT DO UPDATE SET charged = charged + excluded.charged, reserved = reserved + excluded.reserved,
        refunded = refunded + excluded.refunded, calls = calls + excluded.calls, tokens = tokens + excluded.tokens";
    let Tally { charged, reserved, refunded, calls, tokens } = change;
    let row = named_params! {":day": day, ":account": account, ":client": client, ":model": model, ":charged": charged,
    ":reserved": reserved, ":refunded": refunded, ":calls": calls, ":tokens": tokens};
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

    fn reserved(id: u64) -> Move {
        let change = Tally { reserved: 5, calls: 1, ..Tally::default() };
        let (from, to, amount) = (None, Some(Stage::Reserved), Amount::from_micro(5));
        Move { id, key: key_of("m"), day: 9, amount, from, to, change }
    }

    fn to(made: Move, from: Stage, to: Option<Stage>, change: Tally) -> Move {
        Move { from: Some(from), to, change, ..made }
    }

    #[test]
    fn what_was_under_way_in_a_crash_stays_charged_and_creates_stay_open() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        ledger.post_credits(reserved(1));
        ledger.post_credits(reserved(2));
        ledger.credits_of_create(2, 70);
        let charge = Tally { reserved: -5, charged: 5, ..Tally::default() };
        ledger.post_credits(reserved(3));
        ledger.post_credits(to(reserved(3), Stage::Reserved, None, charge));
        ledger.close();
        let ledger = dir.open().expect("again");
        let known = ledger.load_credits().expect("there");
        let all = Tally { charged: 15, calls: 3, ..Tally::default() };
        assert_eq!(known.totals, [((9, key_of("m")), all)]);
        let [entry] = known.entries.as_slice() else { panic!("one is open") };
        assert_eq!((entry.id, entry.number, known.next_id), (2, Some(70), 3));
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
