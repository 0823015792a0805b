//! The core: what is committed, what is refused, what a failure costs.

use std::fs;
use std::path::PathBuf;

use super::*;

/// A directory that is removed at the end.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-ledger-{:016x}", fastrand::u64(..)));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.0.join("ledger.sqlite")
    }

    pub(super) fn open(&self) -> std::io::Result<Ledger> {
        Ledger::open(Place::File(&self.file()), Clock::system(), Counter::default())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn memory() -> Ledger {
    Ledger::open(Place::Memory, Clock::system(), Counter::default()).expect("memory")
}

fn refusal(dir: &Dir) -> String {
    dir.open().err().expect("refused").to_string()
}

fn note(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute_batch("CREATE TABLE IF NOT EXISTS notes (n INTEGER); INSERT INTO notes VALUES (1)")
}

fn notes(tx: &Transaction<'_>) -> rusqlite::Result<u32> {
    tx.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))
}

#[tokio::test]
async fn what_was_given_is_there_after_a_restart() {
    let dir = Dir::new();
    let ledger = dir.open().expect("new");
    for _ in 0..1_000 {
        ledger.post(note);
    }
    assert_eq!(ledger.run(notes).await.expect("committed"), 1_000, "in order");
    ledger.post(note);
    ledger.close();
    assert!(matches!(ledger.run(notes).await, Err(Error::Closed)));
    assert_eq!(dir.open().expect("again").load(notes).expect("there"), 1_001);
}

#[tokio::test]
async fn an_operation_that_fails_or_panics_takes_no_other_with_it() {
    let dir = Dir::new();
    for ledger in [memory(), dir.open().expect("new")] {
        ledger.post(note);
        ledger.post(|tx| {
            note(tx)?;
            tx.execute_batch("no such statement")
        });
        ledger.post(|tx| {
            note(tx)?;
            panic!("an operation's own affair")
        });
        ledger.post(note);
        assert_eq!(ledger.run(notes).await.expect("works on"), 2);
        assert!(ledger.run(|tx| tx.execute_batch("nonsense")).await.is_err());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_is_got_over() {
    let failures = Counter::default();
    let ledger = Ledger::open(Place::Memory, Clock::system(), failures.clone()).expect("memory");
    ledger.run(note).await.expect("room");
    let most = |pages: u32| move |tx: &Transaction<'_>| tx.pragma_update(None, "max_page_count", pages);
    ledger.run(most(1)).await.expect("set");
    let fill = |tx: &Transaction<'_>| tx.execute("INSERT INTO notes SELECT randomblob(100000)", []);
    assert!(matches!(ledger.run(fill).await, Err(Error::Failed(_))));
    assert_eq!(failures.get(), 1);
    ledger.run(most(100_000)).await.expect("set");
    ledger.run(fill).await.expect("room again");
    assert_eq!(ledger.run(notes).await.expect("whole"), 2);
}

#[test]
fn what_is_no_ledger_of_ours_is_refused_and_left_alone() {
    let dir = Dir::new();
    let path = dir.file();
    fs::write(&path, "garbage, and more than a hundred bytes of it. ".repeat(100)).expect("written");
    let error = refusal(&dir);
    assert!(error.contains("ledger.sqlite is damaged") && error.contains("move it aside"), "{error}");
    assert!(error.contains("-wal") && error.contains("Lost then"), "{error}");
    fs::remove_file(&path).expect("removed");

    Connection::open(&path).expect("a database").execute_batch("CREATE TABLE theirs (n)").expect("a table");
    assert!(refusal(&dir).contains("of another program"));
    fs::remove_file(&path).expect("removed");

    dir.open().expect("new").close();
    let db = Connection::open(&path).expect("a database");
    db.pragma_update(None, "user_version", 999).expect("set");
    drop(db);
    assert!(refusal(&dir).contains("a newer sluicegate"));
}

#[test]
fn a_torn_page_is_found_when_it_is_opened() {
    let dir = Dir::new();
    let ledger = dir.open().expect("new");
    let filled = ledger.load(|tx| {
        note(tx)?;
        (0..2_000).try_for_each(|_| tx.execute("INSERT INTO notes SELECT randomblob(100)", []).map(drop))
    });
    filled.expect("written");
    ledger.close();
    let mut bytes = fs::read(dir.file()).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xa5);
    fs::write(dir.file(), bytes).expect("written");
    let error = refusal(&dir);
    assert!(error.contains("is damaged") && error.contains("move it aside"), "{error}");
}

#[test]
fn a_second_opener_is_refused_until_the_first_has_let_go() {
    let dir = Dir::new();
    let first = dir.open().expect("free");
    let error = refusal(&dir);
    assert!(error.contains("in use by another process"), "{error}");
    first.close();
    dir.open().expect("free again").close();
    dir.open().expect("and again");
}

#[test]
fn the_file_is_the_owner_s_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let ledger = dir.open().expect("new");
    ledger.load(note).expect("written");
    for entry in fs::read_dir(&dir.0).expect("a directory") {
        let entry = entry.expect("an entry");
        assert_eq!(entry.metadata().expect("there").permissions().mode() & 0o077, 0, "{entry:?}");
    }
}
