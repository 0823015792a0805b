//! Answers to creates that brought an `Idempotency-Key`: the same key gets the first answer again, also from a later process.
//!
//! A key is taken with the intent of its create, in one transaction. A key without an answer belongs to a create whose outcome is not
//! known here: it must not be sent a second time.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rusqlite::{OptionalExtension, Row, Transaction, named_params};

use super::jobs::Origin;
use super::moment::{AGE_MS, Moment};
use super::{Error, Ledger, execute};

pub(super) const STEP: &str = "
CREATE TABLE answers (
    account  TEXT NOT NULL,
    client   TEXT NOT NULL,
    key      TEXT NOT NULL,
    -- SHA-256 of the request's body.
    asked    BLOB NOT NULL,
    -- The create's.
    number   INTEGER NOT NULL,
    -- NULL, all four: not known.
    status   INTEGER,
    headers  BLOB,
    body     BLOB,
    accepted INTEGER,
    -- When the key was taken.
    wall_ms  INTEGER NOT NULL,
    boot_ms  INTEGER NOT NULL,
    boot     TEXT NOT NULL,
    UNIQUE (account, client, key)
) STRICT;
CREATE INDEX answers_by_number ON answers (number);
";

/// How long an answer is kept.
pub(crate) const KEPT_MS: i64 = 24 * 3_600_000;
/// The newest stay.
const MOST_KEPT: u32 = 10_000;
/// A longer answer is not kept: a later process only says that the create was carried out or not.
pub(crate) const LONGEST_BODY: usize = 64 * 1024;

/// A caller's key and what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyed {
    pub(crate) key: String,
    /// SHA-256 of the request's body.
    pub(crate) asked: [u8; 32],
}

/// The upstream's answer to a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// It started a job; if not, it may have.
    pub(crate) accepted: bool,
}

/// A key of this ledger, for those who share it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The create's.
    pub(crate) number: u64,
    pub(crate) client: String,
    pub(crate) key: String,
    pub(crate) asked: [u8; 32],
    pub(crate) said: Option<Said>,
    pub(crate) left_ms: u64,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earlier {
    pub(crate) asked: [u8; 32],
    /// `None`: the create was sent, or was about to be, and its answer is not known.
    pub(crate) said: Option<Said>,
}

impl Ledger {
    /// What became of an earlier create with this key, of this account and client.
    pub(crate) async fn earlier(&self, account: &str, client: &str, key: &str) -> Result<Option<Earlier>, Error> {
        let (account, client, key, now) = (account.to_owned(), client.to_owned(), key.to_owned(), self.now());
        self.run(move |tx| {
            let sql = format!(
                "SELECT asked, status, headers, body, accepted FROM answers \
                 WHERE account = :account AND client = :client AND key = :key AND {AGE_MS} <= {KEPT_MS}"
            );
            let Moment { wall_ms, boot_ms, boot } = &now;
            let params = named_params! {
                ":account": account, ":client": client, ":key": key, ":wall_ms": wall_ms, ":boot_ms": boot_ms, ":boot": boot
            };
            tx.prepare_cached(&sql)?.query_row(params, Earlier::read).optional()
        })
        .await
    }

    /// The first keys of this account from this number on that are still kept, at most 64.
    pub(crate) async fn keys_from(&self, account: &str, number: u64) -> Result<Vec<Kept>, Error> {
        let (account, now) = (account.to_owned(), self.now());
        self.run(move |tx| {
            let sql = format!(
                "SELECT *, {AGE_MS} AS age FROM answers WHERE account = :account AND number >= :number AND {AGE_MS} < {KEPT_MS} \
                 ORDER BY number LIMIT 64"
            );
            let Moment { wall_ms, boot_ms, boot } = &now;
            let params = named_params! {
                ":account": account, ":number": number, ":wall_ms": wall_ms, ":boot_ms": boot_ms, ":boot": boot
            };
            tx.prepare_cached(&sql)?.query_map(params, Kept::read)?.collect()
        })
        .await
    }

    /// The answer to the create that took this key.
    pub(crate) fn answered(&self, account: &str, client: &str, key: &str, said: Said) {
        if said.body.len() > LONGEST_BODY {
            return;
        }
        let (account, client, key) = (account.to_owned(), client.to_owned(), key.to_owned());
        self.post(move |tx| {
            let sql = "UPDATE answers SET status = ?, headers = ?, body = ?, accepted = ? \
                       WHERE account = ? AND client = ? AND key = ?";
            let (status, headers) = (said.status.as_u16(), written(&said.headers));
            execute(tx, sql, (status, headers, &said.body[..], said.accepted, account, client, key)).map(drop)
        });
    }
}

/// Takes a key for a create that is about to be sent.
pub(super) fn begin(
    tx: &Transaction<'_>,
    number: u64,
    origin: &Origin,
    key: &Keyed,
    now: &Moment,
) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO answers (account, client, key, asked, number, wall_ms, boot_ms, boot) \
               VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let Moment { wall_ms, boot_ms, boot } = now;
    execute(tx, sql, (&origin.account, &origin.client, &key.key, key.asked, number, wall_ms, boot_ms, boot)).map(drop)
}

/// Frees the key of a create that was not carried out.
pub(super) fn forget(tx: &Transaction<'_>, number: u64) -> rusqlite::Result<()> {
    execute(tx, "DELETE FROM answers WHERE number = ?", [number]).map(drop)
}

/// Of the first `most`, those that are old; and those beyond their number.
pub(super) fn prune(tx: &Transaction<'_>, now: &Moment, most: u32) -> rusqlite::Result<()> {
    let old = format!(
        "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers ORDER BY number LIMIT {most}) AND {AGE_MS} > {KEPT_MS}"
    );
    execute(tx, &old, now.params().as_slice())?;
    let sql = "DELETE FROM answers WHERE number <= (SELECT number FROM answers ORDER BY number DESC LIMIT 1 OFFSET ?)";
    execute(tx, sql, [MOST_KEPT]).map(drop)
}

impl Kept {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let Earlier { asked, said } = Earlier::read(row)?;
        let left = KEPT_MS.saturating_sub(row.get::<_, i64>("age")?);
        let (number, client, key) = (row.get("number")?, row.get("client")?, row.get("key")?);
        Ok(Self { number, client, key, asked, said, left_ms: u64::try_from(left).unwrap_or_default() })
    }
}

impl Earlier {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let said = match row.get::<_, Option<u16>>("status")?.and_then(|status| StatusCode::from_u16(status).ok()) {
            None => None,
            Some(status) => Some(Said {
                status,
                headers: read(row.get_ref("headers")?.as_blob()?),
                body: Bytes::from(row.get::<_, Vec<u8>>("body")?),
                accepted: row.get("accepted")?,
            }),
        };
        Ok(Self { asked: row.get("asked")?, said })
    }
}

/// As on the wire: a value has no line break in it.
pub(crate) fn written(headers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in headers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.push(b'\n');
    }
    lines
}

/// The opposite of `written`.
pub(crate) fn read(lines: &[u8]) -> HeaderMap {
    let field = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.split(|byte| *byte == b'\n').filter_map(field) {
        headers.append(name, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use crate::ledger::tests::{Dir, memory};

    use super::*;

    fn origin() -> Origin {
        Origin { account: "a".into(), client: "c".into(), model: "m".into() }
    }

    fn keyed(key: &str) -> Keyed {
        Keyed { key: key.into(), asked: [7; 32] }
    }

    fn said(body: &'static [u8]) -> Said {
        let mut headers = HeaderMap::new();
        headers.append("content-type", HeaderValue::from_static("application/json"));
        headers.append("set-cookie", HeaderValue::from_static("a=1: b"));
        headers.append("set-cookie", HeaderValue::from_bytes(b"caf\xe9").expect("a value"));
        Said { status: StatusCode::CREATED, headers, body: Bytes::from_static(body), accepted: true }
    }

    #[tokio::test]
    async fn answers_survive_and_keys_without_one_are_taken() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        for (n, key) in [(1, "answered"), (2, "unanswered"), (3, "refused"), (4, "given up"), (5, "long")] {
            ledger.sending(n, origin(), Some(keyed(key))).await.expect("kept");
        }
        ledger.answered("a", "c", "answered", said(b"{}"));
        ledger.answered("a", "c", "long", Said { body: vec![0; LONGEST_BODY + 1].into(), ..said(b"") });
        ledger.refused(3);
        ledger.uncertain(4);
        ledger.given_up(4);
        ledger.close();
        let ledger = dir.open().expect("again");
        let earlier = async |key: &str| ledger.earlier("a", "c", key).await.expect("readable");
        let without = Some(Earlier { asked: [7; 32], said: None });
        assert_eq!(earlier("answered").await, Some(Earlier { asked: [7; 32], said: Some(said(b"{}")) }));
        for key in ["unanswered", "given up", "long"] {
            assert_eq!(earlier(key).await, without, "{key}");
        }
        assert_eq!(earlier("refused").await, None);
        assert_eq!(ledger.earlier("a", "another", "answered").await.expect("readable"), None);
    }

    #[tokio::test]
    async fn they_are_bounded_by_a_day_and_by_number() {
        let ledger = memory();
        let most = u64::from(MOST_KEPT);
        for n in 1..=most + 100 {
            ledger.sending(n, origin(), Some(keyed(&n.to_string()))).await.expect("kept");
        }
        ledger.known().expect("pruned");
        assert_eq!(ledger.earlier("a", "c", "100").await.expect("readable"), None);
        assert!(ledger.earlier("a", "c", "101").await.expect("readable").is_some());
        let aged = ledger.load(|tx| tx.execute("UPDATE answers SET boot_ms = boot_ms - ?", [KEPT_MS + 1]));
        aged.expect("aged");
        assert_eq!(ledger.earlier("a", "c", "101").await.expect("readable"), None);
        ledger.known().expect("pruned");
        let left = ledger.load(|tx| tx.query_row("SELECT count(*) FROM answers", [], |row| row.get::<_, u64>(0)));
        assert_eq!(left.expect("counted"), 0);
    }
}
