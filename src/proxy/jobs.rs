//! Live jobs and the slots they hold, from the accepted create until a terminal status.
//!
//! A slot comes free when its create is refused, when anybody sees a terminal status, when the job is cancelled or gone (404, 410), and at
//! `jobs.max_age` after one last look. A create whose outcome is unknown keeps its slot for `jobs.uncertain`. Slots are values: whoever
//! holds one frees it by dropping it, and nothing here counts by hand.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::StatusCode;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config;
use crate::protocol::Protocol;
use crate::state::journal::{Journal, Known, Origin, unix_ms};

use super::queue::{Account, Slot};

/// The proxy's own looks at jobs that nobody polls.
pub(crate) mod watch;

/// How long an ended job is remembered, so that late polls reach the right account.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What became of a create, in terms of money: the `Sluicegate-Charge` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    /// Nothing left this proxy.
    NotSent,
    /// The upstream said no.
    Refused,
    /// A job runs, or has run.
    Accepted,
    /// It may have been carried out.
    Unknown,
}

impl Charge {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::Refused => "refused",
            Self::Accepted => "accepted",
            Self::Unknown => "unknown",
        }
    }
}

/// Whose a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Index of the account whose key created it.
    pub(crate) account: usize,
    /// Index of the client.
    pub(crate) client: usize,
}

struct Job {
    owner: Owner,
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
    protocol: &'static Protocol,
    settings: config::Jobs,
    polls: HashMap<String, Duration>,
    /// Keyed and many: every poll reads it, every create writes it, on all workers.
    table: DashMap<String, Job>,
    /// Creates without a known outcome. Short; touched once a such create.
    uncertain: Mutex<HashMap<u64, Slot>>,
    due: Mutex<BinaryHeap<Reverse<(Instant, Due)>>>,
    kick: Notify,
    journal: Option<Journal>,
    unnamed: std::sync::atomic::AtomicU64,
    clock: Clock,
    /// Names by index, for the journal.
    accounts: Vec<String>,
    clients: Vec<String>,
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
        protocol: &'static Protocol,
        settings: config::Jobs,
        models: &[config::Model],
        journal: Option<Journal>,
        clock: Clock,
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
            journal,
            unnamed: std::sync::atomic::AtomicU64::new(u64::MAX / 2),
            clock,
            accounts,
            clients,
        }
    }

    /// Takes up what an earlier process left. Jobs of accounts or clients that are gone from the configuration go to the default ones.
    pub(crate) fn restore(&self, known: Known, accounts: &[Arc<Account>]) {
        let now = Instant::now();
        let owner = |origin: &Origin| Owner {
            account: self
                .accounts
                .iter()
                .position(|name| *name == origin.account)
                .unwrap_or(0),
            client: self.clients.iter().position(|name| *name == origin.client).unwrap_or(0),
        };
        let wall = unix_ms(self.clock.wall());
        let age = |origin: &Origin| Duration::from_millis(wall.saturating_sub(origin.at_ms));
        for (id, origin) in known.jobs {
            let owner = owner(&origin);
            let started = now.checked_sub(age(&origin)).unwrap_or(now);
            let slot = accounts[owner.account].adopt(owner.client);
            let job = Job {
                owner,
                model: origin.model.into(),
                slot: Some(slot),
                started,
                status: "unknown".into(),
                // So that it is looked at right away, unless it is very young.
                seen: started,
                looks: 0,
            };
            self.table.insert(id.clone(), job);
            self.schedule(now, Due::Look(id));
        }
        for (n, origin) in known.uncertain {
            let owner = owner(&origin);
            self.hold(n, accounts[owner.account].adopt(owner.client));
        }
    }

    /// A create is about to be sent with this slot.
    pub(crate) fn begin(self: &Arc<Self>, slot: Slot, owner: Owner, model: &str) -> Pending {
        let model: Arc<str> = model.into();
        let n = match &self.journal {
            Some(journal) => journal.sending(self.origin(owner, &model)),
            None => self.unnamed.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
        };
        Pending {
            jobs: Arc::clone(self),
            slot: Some(slot),
            n,
            owner,
            model,
            unknown: false,
            sent: false,
        }
    }

    fn origin(&self, owner: Owner, model: &str) -> Origin {
        Origin {
            account: self.accounts[owner.account].clone(),
            client: self.clients[owner.client].clone(),
            model: model.to_owned(),
            at_ms: unix_ms(self.clock.wall()),
        }
    }

    /// Whose this job is, if it is known.
    pub(crate) fn owner(&self, id: &str) -> Option<Owner> {
        self.table.get(id).map(|job| job.owner)
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
        body: &[u8],
        by_client: bool,
    ) {
        if status == StatusCode::NOT_FOUND || status == StatusCode::GONE {
            return self.end(id, "gone");
        }
        if !status.is_success() {
            return;
        }
        let Some(answer) = self.protocol.read(body) else {
            tracing::warn!(
                job = id,
                "a status answer is not about a job: passed on, the job is kept"
            );
            return;
        };
        if answer.id.as_deref().is_some_and(|other| other != id) {
            tracing::warn!(
                job = id,
                "a status answer names another job: passed on, the job is kept"
            );
            return;
        }
        if answer.ended {
            return self.end(id, answer.status.as_deref().unwrap_or("ended"));
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
            self.insert(
                id,
                owner,
                "unknown".into(),
                account.adopt(owner.client),
                answer.status.unwrap_or_default(),
            );
            if let Some(journal) = &self.journal {
                journal.seen(id, self.origin(owner, "unknown"));
            }
        }
    }

    /// An answer to a cancel request.
    pub(crate) fn saw_cancel(&self, id: &str, status: StatusCode, body: &[u8]) {
        let gone = status == StatusCode::NOT_FOUND || status == StatusCode::GONE;
        // The shape of a successful answer is not documented: only a status that says otherwise keeps the job.
        let runs_on = self
            .protocol
            .read(body)
            .is_some_and(|answer| answer.status.is_some() && !answer.ended);
        if gone || (status.is_success() && !runs_on) {
            self.end(id, "cancelled");
        }
    }

    fn insert(&self, id: &str, owner: Owner, model: Arc<str>, slot: Slot, status: String) {
        let now = Instant::now();
        let job = Job {
            owner,
            model,
            slot: Some(slot),
            started: now,
            status,
            seen: now,
            looks: 0,
        };
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
    fn end(&self, id: &str, status: &str) {
        let slot = self.table.get_mut(id).and_then(|mut job| {
            status.clone_into(&mut job.status);
            job.slot.take()
        });
        if slot.is_none() {
            return;
        }
        if let Some(journal) = &self.journal {
            journal.ended(id);
        }
        drop(slot);
        tracing::debug!(job = id, status, "job ended");
        self.schedule(Instant::now() + REMEMBERED, Due::Forget(id.to_owned()));
    }

    fn hold(&self, n: u64, slot: Slot) {
        self.uncertain
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(n, slot);
        self.schedule(Instant::now() + self.settings.uncertain, Due::Certain(n));
    }

    fn release(&self, n: u64) {
        let slot = self.uncertain.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
        if slot.is_some()
            && let Some(journal) = &self.journal
        {
            journal.nothing(n);
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

/// A create between its first attempt and its outcome. Dropped without one, it keeps its slot if something may have been carried out.
#[must_use]
pub(crate) struct Pending {
    jobs: Arc<Jobs>,
    slot: Option<Slot>,
    n: u64,
    owner: Owner,
    model: Arc<str>,
    unknown: bool,
    sent: bool,
}

impl Pending {
    /// The next attempt is being written: from now on it may have been carried out.
    pub(crate) fn sending(&mut self) {
        self.unknown = true;
        self.sent = true;
    }

    /// The last attempt was provably not carried out.
    pub(crate) fn not_done(&mut self) {
        self.unknown = false;
    }

    /// What can be said of the money while there is no answer.
    pub(crate) fn charge(&self) -> Charge {
        match (self.unknown, self.sent) {
            (true, _) => Charge::Unknown,
            (false, true) => Charge::Refused,
            (false, false) => Charge::NotSent,
        }
    }

    /// The upstream's final answer.
    pub(crate) fn settle(mut self, status: StatusCode, body: &[u8]) -> Charge {
        if status.is_success() {
            let answer = self.jobs.protocol.read(body);
            let Some((id, answer)) = answer.and_then(|answer| Some((answer.id.clone()?, answer))) else {
                tracing::warn!("a create was answered without a job id: its slot is held for jobs.uncertain");
                return Charge::Unknown;
            };
            let Some(slot) = self.slot.take() else {
                return Charge::Unknown;
            };
            self.unknown = false;
            if let Some(journal) = &self.jobs.journal {
                journal.started(self.n, &id);
            }
            let status = answer.status.unwrap_or_else(|| "accepted".into());
            self.jobs
                .insert(&id, self.owner, Arc::clone(&self.model), slot, status.clone());
            if answer.ended {
                self.jobs.end(&id, &status);
            }
            return Charge::Accepted;
        }
        if may_have_been_done(status) {
            return Charge::Unknown;
        }
        self.unknown = false;
        Charge::Refused
    }
}

/// After these a job may exist, although the upstream documents them as retryable.
pub(crate) fn may_have_been_done(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 500 | 502 | 504)
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        if self.unknown {
            self.jobs.hold(self.n, slot);
        } else {
            if let Some(journal) = &self.jobs.journal {
                journal.nothing(self.n);
            }
            drop(slot);
        }
    }
}
