//! Live jobs and the slots they hold, from the accepted create until a terminal status; and what is known of each, for everyone who asks.
//!
//! The way of a job. A create takes a number and a slot along before it is sent, and is `pending` until its outcome. Refused, its slot is
//! free; without an answer it is `uncertain` for a while; accepted, it becomes a job of the table (`life`). From then on `schedule` has it
//! looked at when `plan` says that a look pays, by what `models` know of run times (`learn`). Whatever anybody sees of it comes in by `saw`,
//! and who asks is answered by `poll` from what is known. At its end its slot comes free, those who settle credits and deliver webhooks are
//! told, and it is `remembered` for those who ask late. Jobs of an earlier process or another replica come in as `found`; what replicas tell
//! each other is `fleet`'s.
//!
//! A slot comes free when its create is refused, when anybody sees a terminal status, when the job is cancelled or gone (404, 410), and at
//! `jobs.max_age` after one last look. A create whose outcome is unknown keeps its slot for `jobs.uncertain`. Slots are values: whoever
//! holds one frees it by dropping it, and nothing here counts by hand.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use http::Method;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config;
use crate::ledger::answers::Keyed;
use crate::ledger::jobs::Origin;
use crate::ledger::{self, Ledger};
use crate::protocol::{End, Protocol};

use super::queue::{Account, Slot};

use self::fleet::Fleets;
use self::job::{Held, Job, Sight};
use self::models::Models;
use self::remembered::Remembered;
use self::uncertain::Uncertain;

pub(crate) use self::job::Told;
pub(crate) use self::pending::{Charge, Pending, may_have_been_done};

/// Creates under way.
mod pending;

/// Creates without a known outcome.
mod uncertain;

/// What is known of one job.
mod job;

/// From the table's first word of it to the last.
mod life;

/// What an earlier process or another replica left.
mod found;

/// What answers tell.
mod saw;

/// Run times, learned from what looks saw.
mod learn;

/// What is known of each model, and which of its jobs live.
mod models;

/// When to look at a job.
mod plan;

/// The loop that looks.
pub(crate) mod schedule;

/// How it looks.
pub(crate) mod look;

/// Answers to those who ask about a job.
pub(crate) mod poll;

/// Ended jobs, for a while.
mod remembered;

/// Live ones, for the admin port.
mod view;

/// What is expected of jobs, for a forecast.
pub(crate) mod expect;

/// What the replicas tell each other.
pub(crate) mod fleet;

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

/// What those are told who settle credits or deliver webhooks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event<'a> {
    /// The job of a create of unknown outcome has turned up.
    TurnedUp(u64),
    /// No end will be told for this create: its job is another's, or it never turned up.
    NoEnd(u64),
    /// Exactly once a job.
    Ended(&'a Ended),
}

/// Told in the thread that saw it. It must not wait.
pub(crate) type Observer = Box<dyn Fn(Event<'_>) + Send + Sync>;

/// The job table.
pub(crate) struct Jobs {
    protocol: Arc<Protocol>,
    /// What a reload replaces.
    terms: ArcSwap<Terms>,
    /// Keyed and many: every poll reads it, every create writes it, on all workers.
    table: DashMap<String, Job>,
    models: Models,
    remembered: Mutex<Remembered>,
    /// Creates without a known outcome. Short; touched once a such create.
    uncertain: Mutex<HashMap<u64, Uncertain>>,
    due: Mutex<BinaryHeap<Reverse<(Instant, Due)>>>,
    kick: Notify,
    ledger: Arc<Ledger>,
    observers: Vec<Observer>,
    /// Set once, where replicas share jobs.
    fleets: OnceLock<Arc<Fleets>>,
}

/// What the configuration says of jobs, and whose they can be.
pub(crate) struct Terms {
    pub(crate) settings: config::Jobs,
    polls: HashMap<String, Duration>,
    /// By index: the name, for the ledger, and the queue.
    accounts: Vec<(String, Arc<Account>)>,
    /// Names by index, for the ledger.
    clients: Vec<String>,
}

impl Terms {
    pub(crate) fn new(
        settings: config::Jobs,
        models: &[config::Model],
        accounts: Vec<(String, Arc<Account>)>,
        clients: Vec<String>,
    ) -> Self {
        let polls = models.iter().map(|model| (model.name.clone(), model.poll)).collect();
        Self { settings, polls, accounts, clients }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Look(String),
    Forget,
    Certain(u64),
    Save,
}

impl Jobs {
    pub(crate) fn new(protocol: Arc<Protocol>, terms: Terms, ledger: Arc<Ledger>) -> Self {
        Self {
            protocol,
            remembered: Mutex::new(Remembered::new(terms.settings.result_ttl)),
            table: DashMap::new(),
            models: Models::new(terms.accounts.len()),
            terms: ArcSwap::from_pointee(terms),
            uncertain: Mutex::default(),
            due: Mutex::default(),
            kick: Notify::new(),
            ledger,
            observers: Vec::new(),
            fleets: OnceLock::new(),
        }
    }

    /// From now on other terms. Accounts and clients that were known keep their index.
    pub(crate) fn replan(&self, terms: Terms) {
        self.lock_remembered().keep_for(terms.settings.result_ttl);
        self.models.know(terms.accounts.len());
        self.terms.store(Arc::new(terms));
    }

    fn queue(&self, account: usize) -> Arc<Account> {
        Arc::clone(&self.terms.load().accounts[account].1)
    }

    /// Tells `observer` of every event from now on.
    pub(crate) fn observe(&mut self, observer: Observer) {
        self.observers.push(observer);
    }

    fn tell(&self, event: Event<'_>) {
        self.observers.iter().for_each(|observer| observer(event));
    }

    /// A create is about to be sent with this slot and number, and must not be where this fails. Ready when the ledger will know of it after a crash.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        (slot, n): (Slot, u64),
        owner: Owner,
        model: &str,
        key: Option<Keyed>,
    ) -> Result<Pending, ledger::Error> {
        let intent = self.ledger.sending(n, self.origin(owner, model), key);
        // Before the wait: dropped in it, this takes the intent back.
        let (jobs, slot, model) = (Arc::clone(self), Some(slot), model.into());
        let pending = Pending { jobs, slot, n, owner, model, unknown: false, doubt: false, sent: false };
        intent.await?;
        Ok(pending)
    }

    fn origin(&self, owner: Owner, model: &str) -> Origin {
        let terms = self.terms.load();
        Origin {
            account: terms.accounts[owner.account].0.clone(),
            client: terms.clients[owner.client].clone(),
            model: model.to_owned(),
        }
    }

    /// Keeps what was learned of run times since the last time.
    pub(crate) fn save_learned(&self) {
        let learned = self.models.changed();
        if !learned.is_empty() {
            self.ledger.save_learned(learned);
        }
    }

    /// Our own status request for a job.
    pub(crate) fn status_request(&self, id: &str) -> Option<(Method, String)> {
        let model = self.table.get(id).map(|job| Arc::clone(&job.model));
        self.protocol.status_request(id, model.as_deref().unwrap_or_default())
    }

    /// Plans the next look anew.
    pub(crate) fn plan_again(&self, id: &str) {
        self.plan(id, Duration::ZERO);
    }

    /// Whose this job is, if it is known.
    pub(crate) fn owner(&self, id: &str) -> Option<Owner> {
        self.table.get(id).map(|job| job.owner)
    }

    /// True if `client` may know of this job.
    pub(crate) fn visible(&self, owner: Owner, client: usize) -> bool {
        owner.client == client || self.terms.load().settings.shared
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
}
