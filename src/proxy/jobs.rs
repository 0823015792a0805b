//! Live jobs and the slots they hold, from the accepted create until a terminal status; and what is known of each, for everyone who asks.
//!
//! A slot comes free when its create is refused, when anybody sees a terminal status, when the job is cancelled or gone (404, 410), and at
//! `jobs.max_age` after one last look. A create whose outcome is unknown keeps its slot for `jobs.uncertain`. Slots are values: whoever
//! holds one frees it by dropping it, and nothing here counts by hand.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config;
use crate::ledger::answers::Keyed;
use crate::ledger::jobs::{Known, Origin};
use crate::ledger::{self, Ledger};
use crate::protocol::took::Took;
use crate::protocol::{End, JobAnswer, Protocol};
use crate::state::redis::wire::SlotEntry;

use super::queue::{Account, Slot};

use self::fleet::{Fleets, Kept};
use self::models::{Models, Ran};
use self::remembered::Remembered;

pub(crate) use self::pending::{Charge, Pending, may_have_been_done};

/// Creates under way.
mod pending;

/// Run times, learned from what looks saw.
mod learn;

/// When to look at a job.
mod plan;

/// What is known of each model, and which of its jobs live.
mod models;

/// The loop that looks.
pub(crate) mod schedule;

/// How it looks.
pub(crate) mod look;

/// What is expected of jobs, for a forecast.
pub(crate) mod expect;

/// Answers to those who ask about a job.
pub(crate) mod poll;

/// Ended jobs, for a while.
mod remembered;

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

/// A create without a known outcome, and the slot that it holds.
struct Uncertain {
    slot: Slot,
    owner: Owner,
    model: Arc<str>,
}

/// An answer about a job, as the upstream gave it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
}

impl Told {
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Self {
        Self {
            status,
            content_type: headers.get(header::CONTENT_TYPE).cloned(),
            body: body.clone(),
            at: Instant::now(),
        }
    }
}

/// What is strange about a job.
#[derive(Debug, Default)]
struct Odd {
    /// The log was told of an answer that is none.
    warned: bool,
    /// The last answer about it was too long to be read.
    unread: bool,
    /// Other creates were answered with its id.
    repeated: bool,
}

/// How the end of a job came to be known.
#[derive(Debug, Clone, Copy)]
enum Sight {
    /// It was concluded.
    None,
    /// An answer said so, perhaps with how long the job took.
    Seen(Option<Took>),
    /// Another replica saw such an answer.
    Heard(Option<Took>),
}

/// Where a live job is looked at.
enum Held {
    /// Here, in this slot.
    Here(Slot),
    /// By another replica, which has its slot.
    Elsewhere,
}

struct Job {
    owner: Owner,
    number: u64,
    model: Arc<str>,
    /// `None` when it has ended.
    slot: Option<Held>,
    started: Instant,
    status: String,
    /// When it was last known to run: the time at which that was asked.
    running: Instant,
    /// Looks so far.
    looks: u32,
    /// Looks in a row that told nothing of its state.
    vain: u32,
    /// When it is looked at next.
    due: Instant,
    /// Its entry among what is due; entries at other times are of earlier plans.
    entry: Option<Instant>,
    looking: bool,
    /// False where the job was first seen when it ran already: its end teaches nothing.
    seen_start: bool,
    /// The last answer about it; the first is its create's.
    told: Option<Arc<Told>>,
    /// An answer that was no state of the job (401, 403, 5xx), until the next that is.
    trouble: Option<Arc<Told>>,
    odd: Odd,
    /// Rings for those who wait for a change; gone when the job has ended.
    changed: Option<Arc<watch::Sender<()>>>,
    ended: Option<End>,
    /// Where replicas share jobs: what the store has of it.
    kept: Option<Box<Kept>>,
}

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

/// A live job as the admin port shows it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct View {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
    pub(crate) status: String,
    pub(crate) age_secs: f64,
    pub(crate) next_look_in_secs: f64,
    pub(crate) looks: u32,
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

    /// Takes up what an earlier process left. Jobs of accounts or clients that are gone from the configuration go to the first ones.
    pub(crate) fn restore(&self, known: Known) -> Result<(), ledger::Error> {
        let (now, moment, terms) = (Instant::now(), self.ledger.now(), self.terms.load_full());
        let owner = |origin: &Origin| Owner {
            account: terms.accounts.iter().position(|(name, _)| *name == origin.account).unwrap_or(0),
            client: terms.clients.iter().position(|name| *name == origin.client).unwrap_or(0),
        };
        self.models.restore(self.ledger.learned()?);
        for job in known.live {
            let owner = owner(&job.origin);
            // A clock that was set during a reboot must not end it before it was looked at for a while.
            let age = job.at.age(&moment).at_most_if_guessed(terms.settings.max_age / 2);
            let (started, seen_start) = now.checked_sub(age).map_or((now, false), |started| (started, true));
            let slot = self.queue(owner.account).adopt(owner.client, &job.id, &job.origin.model);
            let restored = Job::new(owner, job.number, job.origin.model.into(), slot, "unknown".into(), None);
            self.insert(&job.id, Job { started, seen_start, running: started, ..restored });
        }
        for create in known.uncertain {
            let owner = owner(&create.origin);
            let left = terms.settings.uncertain.saturating_sub(create.at.age(&moment).any());
            let slot = self.queue(owner.account).adopt(owner.client, "", &create.origin.model);
            let model = create.origin.model.into();
            self.keep(create.number, Uncertain { slot, owner, model }, now + left);
        }
        for job in known.ended {
            let ended = Job { number: job.number, ..Job::without_slot(owner(&job.origin), job.status) };
            self.table.insert(job.id.clone(), ended);
            self.remember(&job.id, 0);
        }
        Ok(())
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

    /// The job of a create whose outcome was not known has turned up: it takes over the slot that is held for it.
    pub(crate) fn turned_up(&self, number: u64, id: &str) {
        let held = self.lock_uncertain().remove(&number);
        let Some(Uncertain { slot, owner, model }) = held else { return };
        drop(self.ledger.started(number, id));
        self.tell(Event::TurnedUp(number));
        let job = Job::new(owner, number, model, slot, "unknown".into(), None);
        if !self.insert(id, Job { seen_start: false, ..job }) {
            // Somebody asked for it before: it lives here already, under another number.
            self.tell(Event::NoEnd(number));
        }
    }

    /// As `adopt`; `told` is the last answer about the job.
    fn take_over(&self, account: usize, entry: &SlotEntry, slot: Slot, told: Option<Told>) {
        let SlotEntry { job: id, model, client, .. } = entry;
        let (id, model) = (id.as_str(), model.as_str());
        let client = self.terms.load().clients.iter().position(|name| name == client).unwrap_or(0);
        let (owner, number) = (Owner { account, client }, self.ledger.number());
        if id.is_empty() {
            let until = Instant::now() + self.terms.load().settings.uncertain;
            return self.keep(number, Uncertain { slot, owner, model: model.into() }, until);
        }
        if let Some(mut job) = self.table.get_mut(id).filter(|job| job.slot.is_some()) {
            // Seen here before, when it was another's.
            let seen = job.slot.replace(Held::Here(slot));
            let is_new = matches!(seen, Some(Held::Elsewhere));
            if is_new && job.number == 0 {
                (job.owner, job.number) = (owner, number);
            }
            let (model, started, numbered) = (Arc::clone(&job.model), job.started, job.number == number);
            drop(job);
            drop(seen);
            if is_new {
                self.models.started(&model, started, id);
                self.plan(id, Duration::ZERO);
                self.watch_in_fleet(account, id);
            }
            if !numbered {
                return self.take_in_fleet(account, id);
            }
        } else {
            let job = Job::new(owner, number, model.into(), slot, "unknown".into(), told);
            self.insert(id, Job { seen_start: false, ..job });
        }
        self.take_in_fleet(account, id);
        self.ledger.seen(number, id, self.origin(owner, model));
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

    /// A job that somebody still waits for is looked at now, unless it is known to be live: it may have ended unseen.
    pub(crate) fn look_again(&self, id: &str, owner: Owner) {
        if self.table.get(id).is_none_or(|job| job.slot.is_none()) {
            let known = self.table.get(id).map(|job| (job.number, Arc::clone(&job.model)));
            let (number, model) = known.unwrap_or_else(|| (0, "unknown".into()));
            let slot = self.queue(owner.account).adopt(owner.client, id, &model);
            let again = Job::new(owner, number, model, slot, "unknown".into(), None);
            self.insert(id, Job { seen_start: false, ..again });
        }
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

    /// An answer to a status request that was asked at `asked`, by the proxy itself or a webhook of the upstream.
    pub(crate) fn saw_status(&self, id: &str, owner: Owner, told: Told, asked: Instant) {
        self.saw_poll(id, owner, "", told, asked);
    }

    /// The same by the owner's client, which asked for this path.
    pub(crate) fn saw_poll(&self, id: &str, owner: Owner, path: &str, told: Told, asked: Instant) {
        if told.status == StatusCode::NOT_FOUND || told.status == StatusCode::GONE {
            return self.end(id, End::Gone, "gone", Some(told), Sight::None);
        }
        if !told.status.is_success() {
            let lasting = told.status.is_client_error() && !matches!(told.status.as_u16(), 408 | 429);
            if let Some(mut job) = self.table.get_mut(id).filter(|job| lasting && job.slot.is_some()) {
                job.trouble = Some(Arc::new(told));
                job.ring();
            }
            return;
        }
        let answer = self.protocol.read(&told.body);
        let about_it = answer.filter(|answer| answer.id.as_deref().is_none_or(|other| other == id));
        let Some(answer) = about_it else { return self.keep_odd(id, told) };
        match answer {
            JobAnswer { ended: Some(end), status, took, .. } => {
                if self.owner(id).is_none() {
                    self.note_ended(id, owner);
                }
                self.end(id, end, status.as_deref().unwrap_or(end.name()), Some(told), Sight::Seen(took));
            }
            JobAnswer { status, .. } => self.runs(id, owner, path, status, told, asked),
        }
    }

    /// A 2xx that is not about this job: passed on as it is, and the job is kept.
    fn keep_odd(&self, id: &str, told: Told) {
        let Some(mut job) = self.table.get_mut(id).filter(|job| job.slot.is_some()) else { return };
        if !std::mem::replace(&mut job.odd.warned, true) {
            tracing::warn!(job = id, "a status answer is not about this job: passed on, the job is kept");
        }
        (job.told, job.trouble, job.odd.unread) = (Some(Arc::new(told)), None, false);
        job.ring();
        let account = job.owner.account;
        drop(job);
        self.tell_fleet(account, id);
    }

    /// A status answer is too long to be read: it was passed on as it came, or left.
    pub(crate) fn saw_too_much(&self, id: &str) {
        let Some(mut job) = self.table.get_mut(id) else { return };
        job.odd.unread = true;
        job.ring();
        self.tell_fleet(job.owner.account, id);
        if !std::mem::replace(&mut job.odd.warned, true) {
            tracing::warn!(
                job = id,
                "a status answer is too long to be read: the job is kept, callers who ask get it as it comes"
            );
        }
    }

    fn runs(&self, id: &str, owner: Owner, path: &str, status: Option<String>, told: Told, asked: Instant) {
        if let Some(mut job) = self.table.get_mut(id) {
            if job.slot.is_none() {
                return; // It no longer counts: it was older than `jobs.max_age`.
            }
            job.running = job.running.max(asked);
            job.vain = 0;
            (job.told, job.trouble, job.odd.unread) = (Some(Arc::new(told)), None, false);
            if let Some(status) = status {
                job.status = status;
            }
            job.ring();
            let account = job.owner.account;
            drop(job);
            self.tell_fleet(account, id);
            return;
        }
        // Started past this proxy, or before it knew: the upstream counts it, so we do.
        let Some(status) = status else { return };
        let model = self.protocol.model_in(path).unwrap_or_else(|| "unknown".into());
        let (slot, number) = (self.queue(owner.account).adopt(owner.client, id, &model), self.ledger.number());
        let running = Job::new(owner, number, model.as_str().into(), slot, status, Some(told));
        if self.insert(id, Job { seen_start: false, ..running }) {
            self.ledger.seen(number, id, self.origin(owner, &model));
        }
    }

    /// An answer to a cancel request.
    pub(crate) fn saw_cancel(&self, id: &str, told: Told) {
        let gone = told.status == StatusCode::NOT_FOUND || told.status == StatusCode::GONE;
        // The shape of a successful answer is not documented: only a status that says otherwise keeps the job.
        let answer = self.protocol.read(&told.body).filter(|answer| answer.status.is_some());
        let runs_on = answer.as_ref().is_some_and(|answer| answer.ended.is_none());
        if gone || (told.status.is_success() && !runs_on) {
            let is_state = answer.is_some_and(|answer| answer.id.as_deref() == Some(id));
            self.end(id, End::Cancelled, "cancelled", Some(told).filter(|_| is_state), Sight::None);
        }
    }

    /// False where the id is that of a live job: it is one job, and the slot it holds is enough.
    fn insert(&self, id: &str, job: Job) -> bool {
        let (model, started, account) = (Arc::clone(&job.model), job.started, job.owner.account);
        if let Some(Held::Here(slot)) = &job.slot {
            slot.bind(id, &model);
        }
        let (replaced, is_new) = match self.table.entry(id.to_owned()) {
            Entry::Occupied(known) if matches!(known.get().slot, Some(Held::Here(_))) => (Some(job), false),
            Entry::Occupied(mut ended) => (Some(ended.insert(job)), true),
            Entry::Vacant(free) => {
                free.insert(job);
                (None, true)
            }
        };
        // Dropped here, when the table's shard is free again: a slot's drop may wake others.
        drop(replaced);
        if is_new {
            self.models.started(&model, started, id);
            self.plan(id, Duration::ZERO);
            self.watch_in_fleet(account, id);
        }
        is_new
    }

    /// A create was answered with the id of a live job. The upstream took both: each is paid, and the job's end is told for the first.
    fn repeated(&self, id: &str, number: u64) {
        let first = self.table.get_mut(id).is_some_and(|mut job| !std::mem::replace(&mut job.odd.repeated, true));
        if first {
            tracing::warn!(
                job = id,
                "several creates were answered with one job: it holds one slot, each create is paid"
            );
        }
        self.tell(Event::NoEnd(number));
    }

    /// A job that was never live here is remembered like one that was.
    fn note_ended(&self, id: &str, owner: Owner) {
        let job = Job { slot: None, ..Job::without_slot(owner, "unknown".into()) };
        self.table.entry(id.to_owned()).or_insert(job);
    }

    /// The job holds its slot no longer.
    fn end(&self, id: &str, end: End, status: &str, told: Option<Told>, sight: Sight) {
        let told = told.map(Arc::new);
        let Some(mut job) = self.table.get_mut(id).filter(|job| job.slot.is_some() || job.told.is_none()) else {
            return;
        };
        status.clone_into(&mut job.status);
        let size = told.as_ref().map_or(0, |told| told.body.len());
        job.told.clone_from(&told);
        job.trouble = None;
        job.ended = Some(end);
        let changed = job.changed.take();
        let (slot, owner, number, model) = (job.slot.take(), job.owner, job.number, Arc::clone(&job.model));
        let (started, running, seen_start) = (job.started, job.running, job.seen_start);
        drop(job);
        if let Some(changed) = changed {
            changed.send_replace(());
        }
        self.remember(id, size);
        if !matches!(sight, Sight::Heard(_)) {
            self.tell_fleet(owner.account, id);
        }
        let slot = match slot {
            None => return,
            // Its own replica settles what it left open.
            Some(Held::Elsewhere) if number == 0 => return,
            Some(Held::Elsewhere) => None,
            Some(Held::Here(slot)) => Some(slot),
        };
        let now = Instant::now();
        if slot.is_some() {
            let ran = match sight {
                Sight::Seen(told) | Sight::Heard(told) if seen_start => Some(Ran { running, told }),
                _ => None,
            };
            self.models.ended(&model, owner.account, id, started, ran, now);
            if let Some(held) = self.models.held(owner.account) {
                self.queue(owner.account).jobs_take(held);
            }
        }
        let answer = told.as_ref().map(|told| told.body.clone());
        let ended = Ended { id: id.to_owned(), number, end, answer };
        self.tell(Event::Ended(&ended));
        self.ledger.ended(number, status);
        drop(slot);
        tracing::debug!(job = id, status, end = end.name(), age_ms = (now - started).as_millis(), "job ended");
        self.plan_siblings(&model);
    }

    fn remember(&self, id: &str, size: usize) {
        let (forgotten, forget_at) = self.lock_remembered().add(id, size, Instant::now());
        self.forget(&forgotten);
        if let Some(at) = forget_at {
            self.schedule(at, Due::Forget);
        }
    }

    fn forget(&self, ids: &[String]) {
        for id in ids {
            self.table.remove_if(id, |_, job| job.slot.is_none());
        }
    }

    fn lock_remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, n: u64, held: Uncertain) {
        self.ledger.uncertain(n);
        self.keep(n, held, Instant::now() + self.terms.load().settings.uncertain);
    }

    fn keep(&self, n: u64, held: Uncertain, until: Instant) {
        self.lock_uncertain().insert(n, held);
        self.schedule(until, Due::Certain(n));
    }

    fn release(&self, n: u64) {
        // Its slot is dropped when the lock is free again: that may wake others.
        let held = self.lock_uncertain().remove(&n);
        if held.is_some() {
            self.ledger.given_up(n);
            self.tell(Event::NoEnd(n));
        }
    }

    fn lock_uncertain(&self) -> MutexGuard<'_, HashMap<u64, Uncertain>> {
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Live jobs, for the admin port: the oldest first.
    pub(crate) fn views(&self) -> Vec<View> {
        self.oldest(usize::MAX).1
    }

    /// How many live, and the oldest of them, at most so many.
    pub(crate) fn oldest(&self, most: usize) -> (usize, Vec<View>) {
        let (now, terms) = (Instant::now(), self.terms.load_full());
        let mut live = 0;
        // The youngest of those so far is on top, and the first to go.
        let mut oldest = BinaryHeap::new();
        for job in self.table.iter().filter(|job| matches!(job.slot, Some(Held::Here(_)))) {
            live += 1;
            if oldest.len() < most || oldest.peek().is_some_and(|(youngest, _)| job.started < *youngest) {
                oldest.push((job.started, job.key().clone()));
            }
            if oldest.len() > most {
                oldest.pop();
            }
        }
        let oldest = oldest.into_sorted_vec().into_iter();
        (live, oldest.filter_map(|(_, id)| Some(Self::view(&terms, &*self.table.get(&id)?, id, now))).collect())
    }

    fn view(terms: &Terms, job: &Job, id: String, now: Instant) -> View {
        View {
            id,
            account: terms.accounts[job.owner.account].0.clone(),
            client: terms.clients[job.owner.client].clone(),
            model: job.model.to_string(),
            status: job.status.clone(),
            age_secs: (now - job.started).as_secs_f64(),
            next_look_in_secs: job.due.saturating_duration_since(now).as_secs_f64(),
            looks: job.looks,
        }
    }

    /// Creates whose outcome is unknown and that hold a slot.
    pub(crate) fn uncertain(&self) -> usize {
        self.lock_uncertain().len()
    }

    /// Ended jobs that are remembered, and the bytes of their answers.
    pub(crate) fn remembered(&self) -> (usize, usize) {
        self.lock_remembered().size()
    }
}

impl Job {
    fn new(owner: Owner, number: u64, model: Arc<str>, slot: Slot, status: String, told: Option<Told>) -> Self {
        let told = told.map(Arc::new);
        Self { number, model, slot: Some(Held::Here(slot)), told, ..Self::without_slot(owner, status) }
    }

    fn without_slot(owner: Owner, status: String) -> Self {
        let now = Instant::now();
        Self {
            owner,
            number: 0,
            model: "unknown".into(),
            slot: None,
            started: now,
            status,
            running: now,
            looks: 0,
            vain: 0,
            due: now,
            entry: None,
            looking: false,
            seen_start: true,
            told: None,
            trouble: None,
            odd: Odd::default(),
            changed: None,
            ended: None,
            kept: None,
        }
    }

    /// Tells those who wait that something is new.
    fn ring(&self) {
        if let Some(changed) = &self.changed {
            changed.send_replace(());
        }
    }
}
