//! Callers' idempotency keys among replicas: who runs a create with one, and the answer that all others give again.
//!
//! The rules are in `answers.lua`. A key is entered before its create waits, marked before it is sent, and settled by its end. What is to be
//! told is told until the store has heard it; until then the others wait, or hear that the outcome is unknown.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::StatusCode;
use redis::Script;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::config::{self, Secret};
use crate::ledger::Ledger;
use crate::ledger::answers::{KEPT_MS, Kept, LONGEST_BODY, Said, read, written};

use super::server::Server;
use super::{Failure, Terms};

/// The script.
const RULES: &str = concat!(include_str!("lives.lua"), include_str!("answers.lua"));
/// Most that wait for the store to hear them.
const MOST_NOTES: usize = 10_000;

/// The keys of one account. Calls run on the runtime on which it was made, whoever asks.
pub(crate) struct Answers {
    server: Server,
    script: Script,
    /// What names of keys begin with, and the keys of the account and its members.
    prefix: String,
    about: [String; 2],
    /// This replica and this process of it, as they are members.
    id: String,
    life: String,
    terms: Terms,
    next: AtomicU64,
    /// By key: the number of the create that this process runs with it. Bounded by creates under way.
    running: Mutex<HashMap<String, u64>>,
    runtime: Handle,
    /// What the store has not heard yet.
    notes: TaskTracker,
    /// The store may have lost what it was told.
    renewed: Notify,
}

/// What the store says of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Whoever asked runs the create.
    Yours,
    /// Another replica does.
    Runs,
    /// It was used with another body.
    Other,
    /// It was sent, and its answer is not known.
    Unknown,
    Said(Said),
}

/// A key that this process has taken for a create, or may have. Dropped unsettled, it is told as unknown if the create may have been sent, and is free if not.
#[must_use]
pub(crate) struct Claim {
    answers: Arc<Answers>,
    key: String,
    asked: [u8; 32],
    n: u64,
    /// The store may have it.
    asked_for: AtomicBool,
    begun: AtomicBool,
    taken: AtomicBool,
    settled: AtomicBool,
}

/// What a call is about.
struct About {
    key: String,
    n: u64,
    asked: [u8; 32],
    kept_ms: u64,
}

/// What became of a create.
enum Note {
    Sending,
    Forget,
    Unknown,
    Said(Said),
}

impl Answers {
    /// Opens nothing yet. `member`: this replica and its life. An error: the URL cannot be used.
    pub(crate) fn new(
        settings: &config::Redis,
        key: &Secret,
        terms: Terms,
        (id, life): (String, String),
    ) -> Result<Arc<Self>, redis::RedisError> {
        Ok(Arc::new(Self {
            server: Server::new(settings, terms.timeout())?,
            script: Script::new(RULES),
            prefix: super::key_of(key, "answer:"),
            about: ["account", "members"].map(|part| super::key_of(key, part)),
            id,
            life,
            terms,
            next: AtomicU64::new(0),
            running: Mutex::default(),
            runtime: Handle::current(),
            notes: TaskTracker::new(),
            renewed: Notify::new(),
        }))
    }

    /// A create that may have the key, if the store says so.
    pub(crate) fn claim(self: &Arc<Self>, whose: (&str, &str), name: &str, asked: [u8; 32]) -> Claim {
        Claim {
            answers: Arc::clone(self),
            key: key_of(whose, name),
            asked,
            n: self.number(),
            asked_for: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            settled: AtomicBool::new(false),
        }
    }

    fn number(&self) -> u64 {
        // Relaxed: nothing else hangs on the order of numbers.
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells an answer again that the store may have lost; where there is none, that the create runs or that its outcome is not known. Ready
    /// when the store has heard it.
    async fn tell_again(&self, account: &str, told: Kept) {
        let key = key_of((account, &told.client), &told.key);
        let running = self.running().get(&key).copied();
        let note = match (told.said, running) {
            (Some(said), _) => Note::said(said),
            (None, Some(_)) => Note::Sending,
            (None, None) => Note::Unknown,
        };
        let about =
            About { key, n: running.unwrap_or_else(|| self.number()), asked: told.asked, kept_ms: told.left_ms };
        self.tell(&about, &note).await;
    }

    /// The store may have lost what it was told: all is told again.
    pub(crate) fn renew(&self) {
        self.renewed.notify_one();
    }

    /// Keeps the store told of what the ledger knows of these accounts' keys.
    pub(crate) async fn keep_told(self: Arc<Self>, accounts: Vec<String>, ledger: Arc<Ledger>) {
        loop {
            self.renewed.notified().await;
            for account in &accounts {
                let mut next = 0;
                while let Ok(keys) = ledger.keys_from(account, next).await
                    && let Some(last) = keys.last()
                {
                    next = last.number + 1;
                    // A page together: the hold is to be longer than all of them take.
                    let tell = |kept| {
                        let (answers, account) = (Arc::clone(&self), account.clone());
                        async move { answers.tell_again(&account, kept).await }
                    };
                    keys.into_iter().map(tell).collect::<JoinSet<()>>().join_all().await;
                }
            }
        }
    }

    /// Ready when the store has heard all that it was to be told.
    pub(crate) async fn told(&self) {
        self.notes.close();
        self.notes.wait().await;
    }

    /// Tells it until it is heard, at most for as long as it would be kept.
    fn post(self: &Arc<Self>, about: About, note: Note) {
        if self.notes.len() >= MOST_NOTES {
            tracing::warn!("the shared store does not hear of an idempotency key's create: others wait for its answer");
            return;
        }
        let answers = Arc::clone(self);
        let most = Duration::from_millis(about.kept_ms);
        let told = async move { answers.tell(&about, &note).await };
        drop(self.notes.spawn_on(tokio::time::timeout(most, told), &self.runtime));
    }

    async fn tell(&self, about: &About, note: &Note) {
        while self.exchange(about, note.op(), note.answer()).await.is_err() {
            tokio::time::sleep(self.terms.beat()).await;
        }
    }

    /// One call, carried out where the connection lives. Dropped, it is still carried out.
    async fn call(self: &Arc<Self>, about: About, op: &'static str) -> Result<Entry, Failure> {
        let answers = Arc::clone(self);
        let call = self.runtime.spawn(async move { answers.exchange(&about, op, None).await });
        // The runtime is ending.
        call.await.unwrap_or(Err(Failure::Slow(Duration::ZERO)))
    }

    async fn exchange(&self, about: &About, op: &str, said: Option<&Said>) -> Result<Entry, Failure> {
        let About { key, n, asked, kept_ms } = about;
        let lease = super::wire::micros(self.terms.lease);
        let mut args: Vec<Vec<u8>> = [op, &self.id, &self.life].map(|text| text.as_bytes().to_vec()).into();
        args.extend([n.to_string(), hex(asked), lease.to_string(), kept_ms.to_string()].map(String::into_bytes));
        if let Some(said) = said {
            args.extend([said.status.as_str().as_bytes().to_vec(), written(&said.headers)]);
            args.extend([said.body.to_vec(), u8::from(said.accepted).to_string().into_bytes()]);
        }
        let [account, members] = self.about.clone();
        let keys = [format!("{}{key}", self.prefix), account, members];
        let words: Vec<Vec<u8>> = self.server.run(&self.script, &keys, args).await?;
        Ok(understood(&words))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What cannot be read counts as a create of unknown outcome: it is not sent again.
fn understood(words: &[Vec<u8>]) -> Entry {
    let texts: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match *texts.as_slice() {
        [b"yours"] => Entry::Yours,
        [b"runs"] => Entry::Runs,
        [b"other"] => Entry::Other,
        [b"said", status, headers, body, accepted] => match StatusCode::from_bytes(status) {
            Ok(status) => Entry::Said(Said {
                status,
                headers: read(headers),
                body: Bytes::copy_from_slice(body),
                accepted: accepted == b"1",
            }),
            Err(_) => Entry::Unknown,
        },
        _ => Entry::Unknown,
    }
}

impl Note {
    /// A long answer is not kept: others only hear that the create was sent.
    fn said(said: Said) -> Self {
        if said.body.len() > LONGEST_BODY { Self::Unknown } else { Self::Said(said) }
    }

    fn answer(&self) -> Option<&Said> {
        match self {
            Self::Said(said) => Some(said),
            _ => None,
        }
    }

    fn op(&self) -> &'static str {
        match self {
            Self::Sending => "sending",
            Self::Forget => "forget",
            Self::Unknown => "unknown",
            Self::Said(_) => "said",
        }
    }
}

impl Claim {
    /// Asks for the key, or what became of it. May be asked again.
    pub(crate) async fn enter(&self) -> Result<Entry, Failure> {
        self.asked_for.store(true, Ordering::Relaxed);
        let entry = self.answers.call(self.about(), "enter").await?;
        if entry == Entry::Yours {
            self.answers.running().insert(self.key.clone(), self.n);
        } else {
            self.asked_for.store(false, Ordering::Relaxed);
        }
        Ok(entry)
    }

    /// The create is about to be sent, and must not be unless this says so: true. False: another replica has taken the key meanwhile. An
    /// error: not known.
    pub(crate) async fn begin(&self) -> Result<bool, Failure> {
        let mut outcome = self.answers.call(self.about(), "begin").await;
        if outcome.is_err() {
            // The connection may just have been closed.
            outcome = self.answers.call(self.about(), "begin").await;
        }
        let yours = outcome? == Entry::Yours;
        self.begun.store(yours, Ordering::Relaxed);
        self.taken.store(!yours, Ordering::Relaxed);
        Ok(yours)
    }

    /// Between two questions after a create that another replica runs.
    pub(crate) fn poll(&self) -> Duration {
        self.answers.terms.slot_poll() * 2
    }

    /// Another replica had taken the key when the create was to be sent.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// Nothing was carried out: the key may try again.
    pub(crate) fn forget(&self) {
        self.settle(Note::Forget);
    }

    /// The answer that this key gets from now on.
    pub(crate) fn said(&self, said: Said) {
        self.settle(Note::said(said));
    }

    fn settle(&self, note: Note) {
        if self.settled.swap(true, Ordering::Relaxed) {
            return;
        }
        self.answers.running().remove(&self.key);
        if self.asked_for.load(Ordering::Relaxed) {
            self.answers.post(self.about(), note);
        }
    }

    fn about(&self) -> About {
        About { key: self.key.clone(), n: self.n, asked: self.asked, kept_ms: KEPT_MS.unsigned_abs() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let begun = self.begun.load(Ordering::Relaxed);
        self.settle(if begun { Note::Unknown } else { Note::Forget });
    }
}

/// Names a caller's key and tells nothing of it.
fn key_of((account, client): (&str, &str), name: &str) -> String {
    // No part is longer than a header; the lengths keep one's end from being another's beginning.
    let whole = format!("{} {} {account}{client}{name}", account.len(), client.len());
    hex(digest(&SHA256, whole.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing into a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests;
