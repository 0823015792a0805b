//! Live jobs and the slots they hold, from the accepted create until a terminal status.
//!
//! A slot comes free when its create is refused, when anybody sees a terminal status, when the job is cancelled or gone (404, 410), and at
//! `jobs.max_age` after one last look. A create whose outcome is unknown keeps its slot for `jobs.uncertain`. Slots are values: whoever
//! holds one frees it by dropping it, and nothing here counts by hand.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::{Method, StatusCode};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config;
use crate::ledger::answers::Keyed;
use crate::ledger::jobs::{Known, Origin};
use crate::ledger::{self, Ledger};
use crate::protocol::{End, Protocol};

use super::queue::{Account, Slot};

pub(crate) use self::pending::{Charge, Pending, may_have_been_done};

/// Creates under way.
mod pending;

/// When the proxy itself looks at a job.
pub(crate) mod watch;

/// How it looks.
pub(crate) mod look;

/// How long an ended job is remembered, so that late polls reach the right account.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Whose a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Index of the account whose key created it.
    pub(crate) account: usize,
    /// Index of the client.
    pub(crate) client: usize,
}

/// The end of a job, for those who settle credits or deliver webhooks.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) id: String,
    /// The number that the create had before it had an id.
    pub(crate) number: u64,
    pub(crate) end: End,
    /// The upstream's last answer about the job, where it is what told of the end.
    pub(crate) answer: Option<Bytes>,
}

/// Told of every end, exactly once a job, in the thread that saw it. It must not wait.
pub(crate) type Observer = Box<dyn Fn(&Ended) + Send + Sync>;

struct Job {
    owner: Owner,
    number: u64,
    model: Arc<str>,
    slot: Option<Slot>,
    started: Instant,
    status: String,
    /// When anybody last saw its status.
    seen: Instant,
    /// Looks of our own since a client last polled.
    looks: u32,
}

/// The job table.
pub(crate) struct Jobs {
    protocol: Arc<Protocol>,
    settings: config::Jobs,
    polls: HashMap<String, Duration>,
    /// Keyed and many: every poll reads it, every create writes it, on all workers.
    table: DashMap<String, Job>,
    /// Creates without a known outcome. Short; touched once a such create.
    uncertain: Mutex<HashMap<u64, Slot>>,
    due: Mutex<BinaryHeap<Reverse<(Instant, Due)>>>,
    kick: Notify,
    ledger: Arc<Ledger>,
    /// Names by index, for the ledger.
    accounts: Vec<String>,
    clients: Vec<String>,
    observers: Vec<Observer>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Look(String),
    Forget(String),
    Certain(u64),
}

/// A live job as the admin port shows it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct View {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
    pub(crate) status: String,
    pub(crate) age_secs: f64,
    pub(crate) seen_secs_ago: f64,
}

impl Jobs {
    pub(crate) fn new(
        protocol: Arc<Protocol>,
        settings: config::Jobs,
        models: &[config::Model],
        ledger: Arc<Ledger>,
        accounts: Vec<String>,
        clients: Vec<String>,
    ) -> Self {
        Self {
            protocol,
            settings,
            polls: models.iter().map(|model| (model.name.clone(), model.poll)).collect(),
            table: DashMap::new(),
            uncertain: Mutex::default(),
            due: Mutex::default(),
            kick: Notify::new(),
            ledger,
            accounts,
            clients,
            observers: Vec::new(),
        }
    }

    /// Tells `observer` of every job's end from now on.
    pub(crate) fn observe(&mut self, observer: Observer) {
        self.observers.push(observer);
    }

    /// Takes up what an earlier process left. Jobs of accounts or clients that are gone from the configuration go to the default ones.
    pub(crate) fn restore(&self, known: Known, accounts: &[Arc<Account>]) {
        let (now, moment) = (Instant::now(), self.ledger.now());
        let owner = |origin: &Origin| Owner {
            account: self.accounts.iter().position(|name| *name == origin.account).unwrap_or(0),
            client: self.clients.iter().position(|name| *name == origin.client).unwrap_or(0),
        };
        for job in known.live {
            let (owner, number, id) = (owner(&job.origin), job.number, job.id);
            // A clock that was set during a reboot must not end it before it was looked at for a while.
            let age = job.at.age(&moment).at_most_if_guessed(self.settings.max_age / 2);
            let started = now.checked_sub(age).unwrap_or(now);
            let (slot, model) = (Some(accounts[owner.account].adopt(owner.client)), job.origin.model.into());
            // Seen so long ago, it is looked at right away, unless it is very young.
            let job = Job { owner, number, model, slot, started, status: "unknown".into(), seen: started, looks: 0 };
            self.table.insert(id.clone(), job);
            self.schedule(now, Due::Look(id));
        }
        for create in known.uncertain {
            let owner = owner(&create.origin);
            let left = self.settings.uncertain.saturating_sub(create.at.age(&moment).any());
            self.keep(create.number, accounts[owner.account].adopt(owner.client), now + left);
        }
        for job in known.ended {
            let (owner, number, id, status) = (owner(&job.origin), job.number, job.id, job.status);
            let left = REMEMBERED.saturating_sub(job.at.age(&moment).any());
            let model = job.origin.model.into();
            self.table.insert(
                id.clone(),
                Job { owner, number, model, slot: None, started: now, status, seen: now, looks: 0 },
            );
            self.schedule(now + left, Due::Forget(id));
        }
    }

    /// A create is about to be sent with this slot, and must not be where this fails. Ready when the ledger will know of it after a crash.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        slot: Slot,
        owner: Owner,
        model: &str,
        key: Option<Keyed>,
    ) -> Result<Pending, ledger::Error> {
        let n = self.ledger.number();
        let intent = self.ledger.sending(n, self.origin(owner, model), key);
        // Before the wait: dropped in it, this takes the intent back.
        let (jobs, slot, model) = (Arc::clone(self), Some(slot), model.into());
        let pending = Pending { jobs, slot, n, owner, model, unknown: false, doubt: false, sent: false };
        intent.await?;
        Ok(pending)
    }

    fn origin(&self, owner: Owner, model: &str) -> Origin {
        Origin {
            account: self.accounts[owner.account].clone(),
            client: self.clients[owner.client].clone(),
            model: model.to_owned(),
        }
    }

    /// Whose this job is, if it is known.
    pub(crate) fn owner(&self, id: &str) -> Option<Owner> {
        self.table.get(id).map(|job| job.owner)
    }

    /// Our own status request for a job.
    pub(crate) fn status_request(&self, id: &str) -> Option<(Method, String)> {
        let model = self.table.get(id).map(|job| Arc::clone(&job.model));
        self.protocol.status_request(id, model.as_deref().unwrap_or_default())
    }

    /// True if `client` may know of this job.
    pub(crate) fn visible(&self, owner: Owner, client: usize) -> bool {
        self.settings.shared || owner.client == client
    }

    /// An answer to a status request, whoever asked; `by_client` if it was not the proxy itself.
    pub(crate) fn saw_status(
        &self,
        id: &str,
        asker: (Owner, &Arc<Account>),
        status: StatusCode,
        body: &Bytes,
        by_client: bool,
    ) {
        if status == StatusCode::NOT_FOUND || status == StatusCode::GONE {
            return self.end(id, End::Gone, "gone", None);
        }
        if !status.is_success() {
            return;
        }
        let Some(answer) = self.protocol.read(body) else {
            tracing::warn!(job = id, "a status answer is not about a job: passed on, the job is kept");
            return;
        };
        if answer.id.as_deref().is_some_and(|other| other != id) {
            tracing::warn!(job = id, "a status answer names another job: passed on, the job is kept");
            return;
        }
        if let Some(end) = answer.ended {
            return self.end(id, end, answer.status.as_deref().unwrap_or(end.name()), Some(body));
        }
        let now = Instant::now();
        if let Some(mut job) = self.table.get_mut(id) {
            job.seen = now;
            job.looks = if by_client { 0 } else { job.looks.saturating_add(1) };
            if let Some(status) = answer.status {
                job.status = status;
            }
            return;
        }
        if answer.status.is_some() {
            // Started past this proxy, or before it knew: the upstream counts it, so we do.
            let (owner, account) = asker;
            let slot = account.adopt(owner.client);
            let number = self.ledger.number();
            self.ledger.seen(number, id, self.origin(owner, "unknown"));
            self.insert(id, owner, number, "unknown".into(), slot, answer.status.unwrap_or_default());
        }
    }

    /// A job that somebody still waits for is looked at now, unless it is known to be live: it may have ended unseen.
    pub(crate) fn look_again(&self, id: &str, owner: Owner, account: &Arc<Account>) {
        if self.table.get(id).is_none_or(|job| job.slot.is_none()) {
            self.insert(id, owner, 0, "unknown".into(), account.adopt(owner.client), "unknown".into());
            self.schedule(Instant::now(), Due::Look(id.to_owned()));
        }
    }

    /// An answer to a cancel request.
    pub(crate) fn saw_cancel(&self, id: &str, status: StatusCode, body: &Bytes) {
        let gone = status == StatusCode::NOT_FOUND || status == StatusCode::GONE;
        // The shape of a successful answer is not documented: only a status that says otherwise keeps the job.
        let runs_on = self.protocol.read(body).is_some_and(|answer| answer.status.is_some() && answer.ended.is_none());
        if gone || (status.is_success() && !runs_on) {
            self.end(id, End::Cancelled, "cancelled", Some(body).filter(|_| !gone));
        }
    }

    fn insert(&self, id: &str, owner: Owner, number: u64, model: Arc<str>, slot: Slot, status: String) {
        let now = Instant::now();
        let job = Job { owner, number, model, slot: Some(slot), started: now, status, seen: now, looks: 0 };
        let doubled = match self.table.entry(id.to_owned()) {
            Entry::Occupied(mut known) if known.get().slot.is_some() => {
                // The same id again: it is one job, and the slot it holds is enough.
                known.get_mut().seen = now;
                Some(job)
            }
            Entry::Occupied(mut ended) => Some(ended.insert(job)),
            Entry::Vacant(free) => {
                free.insert(job);
                None
            }
        };
        // Dropped here, when the table's shard is free again: a slot's drop may wake others.
        drop(doubled);
        self.schedule(now + watch::recheck(self.poll_of(id), 0), Due::Look(id.to_owned()));
    }

    fn poll_of(&self, id: &str) -> Duration {
        let model = self.table.get(id).map(|job| Arc::clone(&job.model));
        let known = model.and_then(|model| {
            let short = model.rsplit('/').next().unwrap_or_default();
            self.polls.get(&*model).or_else(|| self.polls.get(short)).copied()
        });
        known.unwrap_or(watch::DEFAULT_POLL)
    }

    /// The job holds its slot no longer.
    fn end(&self, id: &str, end: End, status: &str, answer: Option<&Bytes>) {
        let ended = self.table.get_mut(id).and_then(|mut job| {
            status.clone_into(&mut job.status);
            Some((job.slot.take()?, job.number))
        });
        let Some((slot, number)) = ended else { return };
        let ended = Ended { id: id.to_owned(), number, end, answer: answer.cloned() };
        self.observers.iter().for_each(|observer| observer(&ended));
        self.ledger.ended(number, status);
        drop(slot);
        tracing::debug!(job = id, status, end = end.name(), "job ended");
        self.schedule(Instant::now() + REMEMBERED, Due::Forget(id.to_owned()));
    }

    fn hold(&self, n: u64, slot: Slot) {
        self.ledger.uncertain(n);
        self.keep(n, slot, Instant::now() + self.settings.uncertain);
    }

    fn keep(&self, n: u64, slot: Slot, until: Instant) {
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner).insert(n, slot);
        self.schedule(until, Due::Certain(n));
    }

    fn release(&self, n: u64) {
        let slot = self.uncertain.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
        if slot.is_some() {
            self.ledger.given_up(n);
        }
        drop(slot);
    }

    fn schedule(&self, at: Instant, due: Due) {
        let mut heap = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let first = heap.peek().is_none_or(|Reverse((next, _))| at < *next);
        heap.push(Reverse((at, due)));
        drop(heap);
        if first {
            self.kick.notify_one();
        }
    }

    /// Live jobs, for the admin port.
    pub(crate) fn views(&self) -> Vec<View> {
        let now = Instant::now();
        let live = self.table.iter().filter(|job| job.slot.is_some());
        let mut views: Vec<View> = live
            .map(|job| View {
                id: job.key().clone(),
                account: self.accounts[job.owner.account].clone(),
                client: self.clients[job.owner.client].clone(),
                model: job.model.to_string(),
                status: job.status.clone(),
                age_secs: (now - job.started).as_secs_f64(),
                seen_secs_ago: (now - job.seen).as_secs_f64(),
            })
            .collect();
        views.sort_by(|a, b| b.age_secs.total_cmp(&a.age_secs));
        views
    }

    /// Creates whose outcome is unknown and that hold a slot.
    pub(crate) fn uncertain(&self) -> usize {
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
