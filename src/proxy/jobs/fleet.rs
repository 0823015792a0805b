//! What this replica and the others tell each other of jobs, through the store that they share.
//!
//! A job is looked at upstream by one replica, its owner: the one whose slot it has. What anybody sees of it is told, and whoever is asked
//! about another's job reads it there. Calls go one by one for an account: what is told and asked meanwhile goes together in the next.
//! While the store does not answer, each replica goes by what it sees itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::ledger::outbox;
use crate::state::redis::jobs::{Ask, Heard, Hook};

use super::{Held, Job, Jobs};

/// The calls.
mod talk;

/// What they tell.
mod hear;

/// States that wait to be told while the store is away; what is left out is told when its job is asked about again.
const MOST_NEWS: usize = 20_000;
/// The same of webhooks, which have bodies: what is left out waits for its own replica.
const MOST_MESSAGES: usize = 256;
/// What was read so long ago is told without asking again.
const FRESH: Duration = Duration::from_millis(100);
/// How often what must be known is asked for, a beat apart.
const MOST_TRIES: u32 = 10;
/// How often it is read while somebody waits for news.
pub(super) const READ_EVERY: Duration = Duration::from_millis(150);
/// Longest time between two looks for ends that others have seen.
const LONGEST_BEAT: Duration = Duration::from_millis(500);

/// What the store has of a job.
#[derive(Debug, Default)]
pub(super) struct Kept {
    version: u64,
    /// When it was asked for last, and when it was there last.
    read: Option<Instant>,
    known: Option<Instant>,
    /// Which answer was told last, by its time.
    said: Option<Instant>,
}

impl Kept {
    /// It was read a moment ago.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.read.is_some_and(|read| now < read + FRESH)
    }
}

/// All accounts that replicas share.
pub(crate) struct Fleets {
    /// By account: its name and the calls for it. Accounts with one key have the same.
    accounts: Vec<(String, Option<Arc<Fleet>>)>,
    owed: Owed,
    /// Creates of unknown outcome. Unbounded: one entry a create, and it is always taken.
    unsure: mpsc::UnboundedSender<outbox::Owed>,
}

/// Who hears the answer; nobody where something is only said, and said again until it was heard.
type Asker = Option<oneshot::Sender<Heard>>;

/// The webhooks that are owed at a job's end, for the others to know.
pub(crate) type Owed = Box<dyn Fn(&str) -> Vec<Hook> + Send + Sync>;

impl Fleets {
    /// By account.
    pub(crate) fn new(
        accounts: Vec<(String, Option<Arc<Fleet>>)>,
        owed: Owed,
        unsure: mpsc::UnboundedSender<outbox::Owed>,
    ) -> Self {
        Self { accounts, owed, unsure }
    }

    /// Another replica may be called about this create.
    pub(crate) fn await_call(&self, owed: outbox::Owed) {
        // Nobody listens when the proxy ends.
        drop(self.unsure.send(owed));
    }

    fn of(&self, account: usize) -> Option<&Arc<Fleet>> {
        self.accounts.get(account)?.1.as_ref()
    }

    /// By the account's name.
    pub(crate) fn named(&self, account: &str) -> Option<&Arc<Fleet>> {
        self.accounts.iter().find(|(name, _)| name == account)?.1.as_ref()
    }

    /// Each once, with the number of its first account; those of `first` before the others.
    pub(crate) fn all(&self, first: usize) -> Vec<(usize, Arc<Fleet>)> {
        let mut all: Vec<(usize, Arc<Fleet>)> = Vec::new();
        for account in std::iter::once(first).chain(0..self.accounts.len()) {
            if let Some(fleet) = self.of(account)
                && !all.iter().any(|(_, known)| Arc::ptr_eq(known, fleet))
            {
                all.push((account, Arc::clone(fleet)));
            }
        }
        all
    }
}

/// What is to be told and asked about the jobs of one account.
pub(crate) struct Fleet {
    me: String,
    /// Longest that somebody waits for a call.
    patience: Duration,
    beat: Duration,
    /// Short; no other lock is taken under it.
    book: Mutex<Book>,
    wake: Notify,
    /// How much of what was noted the store has.
    told: watch::Sender<u64>,
    /// The last call was answered. Relaxed: whoever misses a change waits once, or asks the upstream once.
    up: AtomicBool,
    /// Some call was answered.
    met: AtomicBool,
}

#[derive(Default)]
struct Book {
    /// Jobs whose state is to be told; true: they are ours from now on, whoever had them.
    news: BTreeMap<String, bool>,
    /// Jobs that are asked about. As many waiters as there are requests that wait.
    reads: HashMap<String, Vec<oneshot::Sender<()>>>,
    asks: Vec<(Ask, Asker)>,
    /// Jobs whose end is awaited here, though another may see it.
    watched: BTreeSet<String>,
    /// Others' jobs, and when they were asked about last.
    followed: HashMap<String, Instant>,
    noted: u64,
}

impl Book {
    /// There is nothing to be said.
    fn is_empty(&self) -> bool {
        self.news.is_empty() && self.reads.is_empty() && self.asks.is_empty()
    }
}

impl Fleet {
    /// `me`: this replica; `patience`: how long a call may take.
    pub(crate) fn new(me: String, patience: Duration, beat: Duration) -> Self {
        Self {
            me,
            patience,
            beat: beat.min(LONGEST_BEAT),
            book: Mutex::default(),
            wake: Notify::new(),
            told: watch::Sender::new(0),
            up: AtomicBool::new(false),
            met: AtomicBool::new(false),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// The state of this job is to be told.
    fn note(&self, id: &str, take: bool) {
        let mut book = self.book();
        if book.news.len() < MOST_NEWS {
            *book.news.entry(id.to_owned()).or_default() |= take;
            book.noted += 1;
        }
        drop(book);
        self.wake.notify_one();
    }

    /// Ready when the store has what was noted so far, or does not answer.
    pub(crate) async fn all_told(&self) {
        let wanted = self.book().noted;
        if self.is_up() {
            let mut told = self.told.subscribe();
            // Either way the caller goes on.
            drop(tokio::time::timeout(self.patience, told.wait_for(|told| *told >= wanted)).await);
        }
    }

    /// Reads what the store has of this job. False: it does not answer.
    async fn read(&self, id: &str) -> bool {
        if !self.is_up() {
            return false;
        }
        let (sender, receiver) = oneshot::channel();
        self.book().reads.entry(id.to_owned()).or_default().push(sender);
        self.wake.notify_one();
        matches!(tokio::time::timeout(self.patience * 2, receiver).await, Ok(Ok(())))
    }

    /// Asks something else. `None`: the store does not answer.
    pub(crate) async fn ask(&self, ask: Ask) -> Option<Heard> {
        if !self.is_up() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.book().asks.push((ask, Some(sender)));
        self.wake.notify_one();
        tokio::time::timeout(self.patience * 2, receiver).await.ok()?.ok()
    }

    /// The same, though the store may not have answered these calls yet.
    async fn ask_patiently(&self, ask: &Ask) -> Option<Heard> {
        for _ in 0..MOST_TRIES {
            match self.ask(ask.clone()).await {
                None => tokio::time::sleep(self.beat).await,
                heard => return heard,
            }
        }
        None
    }

    /// The same where it is that the store has never answered so far: after a start it will in a moment, and while it is away nobody waits.
    pub(crate) async fn ask_once_met(&self, ask: Ask) -> Option<Heard> {
        if self.met.load(Ordering::Relaxed) { self.ask(ask).await } else { self.ask_patiently(&ask).await }
    }

    /// Says something that nobody waits for.
    pub(crate) fn say(&self, ask: Ask) {
        let mut book = self.book();
        let most = if matches!(ask, Ask::Due { .. }) { MOST_MESSAGES } else { MOST_NEWS };
        if book.asks.len() < most {
            book.asks.push((ask, None));
        }
        drop(book);
        self.wake.notify_one();
    }

    fn watch(&self, id: &str, watched: bool) {
        let mut book = self.book();
        if watched {
            book.watched.insert(id.to_owned());
        } else {
            book.watched.remove(id);
        }
        book.followed.remove(id);
    }

    fn is_idle(&self) -> bool {
        self.book().is_empty()
    }
}

impl Jobs {
    /// From now on these accounts' jobs are shared.
    pub(crate) fn share(&self, fleets: Arc<Fleets>) {
        if self.fleets.set(fleets).is_err() {
            return;
        }
        let live = self.table.iter().filter(|job| job.slot.is_some());
        let live: Vec<(usize, String)> = live.map(|job| (job.owner.account, job.key().clone())).collect();
        for (account, id) in &live {
            self.watch_in_fleet(*account, id);
        }
    }

    fn fleet(&self, account: usize) -> Option<&Arc<Fleet>> {
        self.fleets.get()?.of(account)
    }

    /// The others are to hear of this job's state.
    pub(super) fn tell_fleet(&self, account: usize, id: &str) {
        if let Some(fleet) = self.fleet(account) {
            fleet.note(id, false);
        }
    }

    /// This job is ours now.
    pub(super) fn take_in_fleet(&self, account: usize, id: &str) {
        if let Some(fleet) = self.fleet(account) {
            fleet.note(id, true);
        }
    }

    /// A job of ours lives: others hear of it, and its end may be seen by others.
    pub(super) fn watch_in_fleet(&self, account: usize, id: &str) {
        if let Some(fleet) = self.fleet(account) {
            fleet.watch(id, true);
            fleet.note(id, false);
        }
    }

    /// How long a create of unknown outcome holds its slot.
    pub(crate) fn uncertain_for(&self) -> Duration {
        self.terms.load().settings.uncertain
    }

    /// Ready when the others can know of the jobs of this account, or the store does not answer.
    pub(crate) async fn told_in_fleet(&self, account: usize) {
        if let Some(fleet) = self.fleet(account) {
            fleet.all_told().await;
        }
    }

    /// Looks for a job that is not known here among those of the other replicas; `account` is the caller's.
    pub(crate) async fn find(&self, id: &str, account: usize) {
        let fleets = self.fleets.get().map(|fleets| fleets.all(account)).unwrap_or_default();
        for (_, fleet) in fleets {
            fleet.read(id).await;
            if !self.must_find(id) {
                return;
            }
        }
    }

    /// Whether a call about this job has to ask the store first: it is not known here, or its last answer is not.
    pub(crate) fn must_find(&self, id: &str) -> bool {
        let untold = |job: &Job| job.slot.is_none() && job.told.is_none();
        self.fleets.get().is_some() && self.table.get(id).is_none_or(|job| untold(&job))
    }

    /// Before a look: whether the store knows that it is over, or another replica looks.
    pub(super) async fn is_known_in_fleet(&self, account: usize, id: &str) -> bool {
        let Some(fleet) = self.fleet(account) else { return false };
        fleet.read(id).await;
        self.table.get(id).is_none_or(|job| !matches!(job.slot, Some(Held::Here(_))))
    }

    /// Reads the state of another replica's job. False where it cannot be known.
    pub(super) async fn read_in_fleet(&self, id: &str) -> bool {
        let Some(account) = self.table.get(id).map(|job| job.owner.account) else { return true };
        match self.fleet(account) {
            Some(fleet) => fleet.read(id).await && !self.is_lost(id),
            None => false,
        }
    }

    /// Its replica is gone, and the store does not know it any more: only the upstream can tell.
    fn is_lost(&self, id: &str) -> bool {
        let now = Instant::now();
        let lost = |job: &Job| {
            let known = job.kept.as_ref().and_then(|kept| kept.known);
            matches!(job.slot, Some(Held::Elsewhere)) && known.is_none_or(|known| now >= known + hear::GRACE)
        };
        self.table.get(id).is_some_and(|job| lost(&job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_must_be_known_is_asked_for_until_the_store_answers() {
        let fleet = Fleet::new("a".into(), Duration::from_secs(1), Duration::from_millis(400));
        let ask = Ask::Get { id: "j".into(), v: 0, idle: false };
        let store = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            fleet.up.store(true, Ordering::Relaxed);
            fleet.wake.notified().await;
            let (_, asker) = fleet.book().asks.pop().expect("asked");
            let _ = asker.expect("somebody waits").send(serde_json::from_str(r#"{"v":7}"#).expect("JSON"));
        };
        let (heard, ()) = tokio::join!(fleet.ask_patiently(&ask), store);
        assert_eq!(heard.map(|heard| heard.v), Some(7));
        fleet.up.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        assert_eq!(fleet.ask_once_met(ask.clone()).await, None, "not for ever");
        assert_eq!(begun.elapsed(), Duration::from_secs(4));
        fleet.met.store(true, Ordering::Relaxed);
        assert_eq!(fleet.ask_once_met(ask).await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(4), "at once");
    }

    #[tokio::test]
    async fn what_is_only_said_waits_for_the_store_and_messages_are_few() {
        let fleet = Fleet::new("a".into(), Duration::from_secs(1), Duration::from_millis(400));
        let due = || Ask::Due {
            message: "m".into(),
            job: "j".into(),
            end: "succeeded".into(),
            hook: Hook::default(),
            lease: 1,
            body: None,
            text: bytes::Bytes::new(),
        };
        for _ in 0..MOST_MESSAGES + 9 {
            fleet.say(due());
        }
        assert_eq!(fleet.book().asks.len(), MOST_MESSAGES);
        fleet.say(Ask::Tried { message: "m".into(), row: 1, done: true, lease: 0 });
        assert_eq!(fleet.book().asks.len(), MOST_MESSAGES + 1);
    }
}
