//! Webhooks: apps are told of their jobs' ends where the upstream cannot reach them, or by way of us.
//!
//! *Out*: a create whose `webhook` the operator allowed goes up without it; when the job ends, whoever sees it, the message is delivered
//! from here. *In*: with `webhooks.public_url` the create goes up with a URL of ours in its place; the upstream's call is verified, ends the
//! job's slot at once, and is relayed. Either way a message is owed from before the create is sent until a receiver has taken it, in the
//! ledger, and it is the first sight of the end that makes it due: a callback that never comes loses nothing, one that comes twice
//! changes nothing.
//!
//! Absent on purpose: no delivery without a signature, to a port of ours, or to where a redirect leads.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{self, Allow};
use crate::ledger::Ledger;
use crate::ledger::outbox::{Left, Message, Owed, Rest, Waiting};
use crate::metrics::WebhookMetrics;
use crate::protocol::{Create, End, Protocol};
use crate::proxy::App;
use crate::proxy::dispatch::Outgoing;
use crate::proxy::jobs::fleet::Fleets;
use crate::proxy::jobs::{Event, Owner, may_have_been_done};
use crate::proxy::rejection::Rejection;

use self::event::Events;
use self::intake::Shape;
use self::signature::Keys;
use self::target::{Place, Target};

// In the order of a webhook's life.

/// The create without its webhook.
pub(crate) mod intake;

/// The same in forms.
mod form;

/// Where one may go.
pub(crate) mod target;

/// Which ends are told, and in which words.
pub(crate) mod event;

/// The upstream's calls.
pub(crate) mod receive;

/// Both signatures.
pub(crate) mod signature;

/// What the replicas tell each other of them.
mod fleet;

/// Who is next, and how many at a time.
pub(crate) mod deliver;

/// When again.
pub(crate) mod schedule;

/// One attempt.
pub(crate) mod send;

/// How long the upstream may sign with a secret that was replaced.
const SECRETS_OVERLAP: Duration = Duration::from_secs(600);
/// Hosts that the log was told of.
const HOSTS_TOLD: usize = 64;

/// What webhooks need from the rest, and what they remember.
pub(crate) struct Webhooks {
    /// What a reload replaces.
    pub(crate) terms: ArcSwap<Terms>,
    /// The URL that the upstream is given, but for its token.
    public_url: Option<String>,
    protocol: Arc<Protocol>,
    ledger: Arc<Ledger>,
    clock: Clock,
    pub(crate) metrics: WebhookMetrics,
    /// The ports that nothing is delivered to.
    ours: Vec<SocketAddr>,
    /// By job: what is owed at its end. As many as there are live jobs with a webhook.
    waiting: Mutex<HashMap<String, Vec<Waiting>>>,
    /// To the deliverer. Unbounded: one entry a job that ended, and it always takes them.
    due: mpsc::UnboundedSender<Due>,
    /// Rows that were given to it.
    given: AtomicU64,
    /// What it has come to.
    progress: watch::Sender<Progress>,
    /// Hosts of webhooks that nobody can reach, told in the log once each; bounded by `HOSTS_TOLD`.
    told: Mutex<HashSet<String>>,
    /// Set once, where replicas share jobs.
    fleets: OnceLock<Arc<Fleets>>,
}

/// With what is signed, and whereto is delivered.
#[derive(Default)]
pub(crate) struct Terms {
    pub(crate) keys: Option<Keys>,
    /// The secret before this one, and until when the upstream may still sign with it.
    before: Option<(Keys, Instant)>,
    pub(crate) allow: Vec<Allow>,
}

impl Terms {
    fn new(config: &config::Webhooks) -> Self {
        Self { keys: config.secret.as_ref().and_then(Keys::new), before: None, allow: config.allow.clone() }
    }

    /// Whether the upstream has signed this call, be it with the secret that was replaced a short time ago.
    pub(crate) fn verify(&self, headers: &HeaderMap, wall: SystemTime, body: &[u8]) -> bool {
        let before = self.before.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(keys, _)| keys);
        self.keys.iter().chain(before).any(|keys| keys.verify(headers, wall, body))
    }
}

/// What webhooks are built from, beside their configuration.
pub(crate) struct Parts {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) clock: Clock,
    pub(crate) metrics: WebhookMetrics,
    pub(crate) ours: Vec<SocketAddr>,
}

/// What the deliverer has come to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Rows that it took.
    taken: u64,
    /// Nothing is under way or waits for a receiver: what it has rests until its next attempt.
    idle: bool,
}

/// A row that is due.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) id: i64,
    /// For the queue of its receiver.
    pub(crate) target: String,
    /// How long until then.
    pub(crate) wait: Duration,
    /// As the ledger has it, should the ledger fail.
    pub(crate) message: Option<Message>,
}

impl Webhooks {
    /// And the other end of the deliverer's queue.
    pub(crate) fn new(
        config: &config::Webhooks,
        protocol: Arc<Protocol>,
        parts: Parts,
    ) -> (Self, mpsc::UnboundedReceiver<Due>) {
        let (due, queue) = mpsc::unbounded_channel();
        let Parts { ledger, clock, metrics, ours } = parts;
        let inbound = config.inbound.as_ref();
        let hooks = Self {
            terms: ArcSwap::from_pointee(Terms::new(config)),
            public_url: inbound.map(|inbound| inbound.public_url.to_string().trim_end_matches('/').to_owned()),
            protocol,
            ledger,
            clock,
            metrics,
            ours,
            waiting: Mutex::default(),
            due,
            given: AtomicU64::new(0),
            progress: watch::Sender::new(Progress { taken: 0, idle: true }),
            told: Mutex::default(),
            fleets: OnceLock::new(),
        };
        (hooks, queue)
    }

    /// From now on another secret, other targets. What the upstream signs with the secret before is taken for a while yet.
    pub(crate) fn replan(&self, before: &config::Webhooks, config: &config::Webhooks) {
        if (&before.secret, &before.allow) == (&config.secret, &config.allow) {
            return;
        }
        let old = self.terms.load();
        let overlap = if before.secret == config.secret {
            old.before.clone()
        } else {
            old.keys.clone().map(|keys| (keys, Instant::now() + SECRETS_OVERLAP))
        };
        self.terms.store(Arc::new(Terms { before: overlap, ..Terms::new(config) }));
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Vec<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what an earlier process left. The jobs that are waited for come back, with their accounts' names: some may have ended unseen.
    pub(crate) fn restore(&self) -> Result<Vec<(String, Owed)>, crate::ledger::Error> {
        let Left { waiting, due } = self.ledger.left_webhooks()?;
        if self.terms.load().keys.is_none() && !(waiting.is_empty() && due.is_empty()) {
            let owed = waiting.len() + due.len();
            tracing::warn!(owed, "webhooks of an earlier run are held back: there is no webhooks.secret any more");
            return Ok(Vec::new());
        }
        let now = self.now_ms();
        for Rest { id, target, attempts, next_ms } in due {
            let next_ms = u64::try_from(next_ms).unwrap_or_default();
            self.deliver(Due { id, target, wait: schedule::left(attempts, next_ms, now), message: None });
        }
        let mut jobs = Vec::new();
        for row in waiting {
            let Some(job) = row.job.clone() else { continue };
            jobs.push((job.clone(), row.owed.clone()));
            self.waiting().entry(job).or_default().push(row);
        }
        Ok(jobs)
    }

    /// What is to become of a create's webhook. `body` is changed where it does not go up as it is; `None` where it does.
    fn intake(
        self: &Arc<Self>,
        shape: &Shape,
        body: &mut Bytes,
        account: &str,
        client: &str,
    ) -> Result<Option<Intent>, Rejection> {
        let Some(asked) = shape.asked(body) else { return Ok(None) };
        let Some(target) = Target::parse(&asked.url) else { return Ok(None) };
        let terms = self.terms.load();
        let place = target.place(&terms.allow);
        let relayed = match (place, &self.public_url) {
            (Place::Allowed, url) => url.as_ref(),
            (Place::Public, Some(url)) if target.https => Some(url),
            (Place::Public, _) => return Ok(None),
            (Place::Local, _) => {
                self.tell_of(&target);
                return Ok(None);
            }
        };
        if terms.keys.is_none() {
            return Err(Rejection::WebhookSecretMissing);
        }
        let token = relayed.map(|_| random_token());
        let ours = relayed.zip(token.as_ref()).map(|(url, token)| format!("{url}/{token}"));
        let Some(new) = shape.rewritten(body, ours.as_deref()) else { return Ok(None) };
        *body = new;
        let Events { completed, failed } = asked.events;
        let (account, client, target) = (account.to_owned(), client.to_owned(), asked.url.trim().to_owned());
        let number = Some(self.ledger.number());
        let owed = Owed { number, token, account, client, target, completed, failed };
        Ok(Some(Intent { hooks: Arc::clone(self), owed, id: None }))
    }

    fn tell_of(&self, target: &Target) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < HOSTS_TOLD && told.insert(target.receiver()) {
            tracing::warn!(
                receiver = target.receiver(),
                "a create names a webhook that the upstream cannot reach: passed on as it is. To have it delivered from here, add the target to webhooks.allow"
            );
        }
    }

    /// A job has ended: what is owed for it is due. The first sight counts.
    pub(crate) fn saw(&self, event: Event<'_>) {
        if let Event::Ended(ended) = event {
            self.end(&ended.id, ended.end, ended.answer.as_ref());
        }
    }

    fn end(&self, job: &str, end: End, answer: Option<&Bytes>) {
        let Some(rows) = self.waiting().remove(job) else { return };
        for row in rows {
            let events = Events { completed: row.owed.completed, failed: row.owed.failed };
            if !events.include(end) {
                self.ledger.owe_nothing(row.id);
                continue;
            }
            let hook = fleet::hook(&row.owed);
            let message = Message {
                id: event::message_id(job, end, &row.owed.target),
                account: row.owed.account,
                target: row.owed.target,
                body: event::message(&self.protocol, job, end, answer),
                attempts: 0,
            };
            self.ledger.due(row.id, end.name(), message.clone());
            self.tell_due(&message, job, end, hook);
            self.deliver(Due {
                id: row.id,
                target: message.target.clone(),
                wait: Duration::ZERO,
                message: Some(message),
            });
        }
    }

    /// Waits until all that was given has been tried, for the drain. What rests until a later attempt is not waited for.
    pub(crate) async fn tried(&self) {
        // SeqCst: whoever was told of a job's end before the drain began is counted.
        let all = |progress: &Progress| progress.idle && progress.taken == self.given.load(Ordering::SeqCst);
        // An error: the deliverer has ended.
        let _ = self.progress.subscribe().wait_for(all).await;
    }

    fn deliver(&self, due: Due) {
        self.given.fetch_add(1, Ordering::SeqCst);
        // Without a deliverer the proxy is ending; the ledger keeps the row.
        let _ = self.due.send(due);
    }

    /// What is owed waits for this job now.
    fn wait_for(&self, job: &str, row: Waiting) {
        let mut waiting = self.waiting();
        let rows = waiting.entry(job.to_owned()).or_default();
        if !rows.iter().any(|known| known.id == row.id) {
            rows.push(row);
        }
    }

    /// Takes back `wait_for`.
    fn wait_no_more(&self, job: &str, id: i64) {
        let mut waiting = self.waiting();
        if let Some(rows) = waiting.get_mut(job) {
            rows.retain(|row| row.id != id);
            if rows.is_empty() {
                waiting.remove(job);
            }
        }
    }

    /// Tries a dead or failing delivery again, now. False where there is none with this number.
    pub(crate) async fn replay(&self, id: i64) -> Result<bool, crate::ledger::Error> {
        let found = self.ledger.replay(id).await?;
        if found && let Some(message) = self.ledger.message(id).await? {
            self.give_up_claim(id, &message).await;
            self.deliver(Due { id, target: message.target, wait: Duration::ZERO, message: None });
        }
        Ok(found)
    }

    fn now_ms(&self) -> u64 {
        let since = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl App {
    /// Takes a create's webhook out of its body where it is ours to deliver, and writes down that it will be owed. Of a form that was not read
    /// whole, only what stands before its model is seen.
    pub(crate) async fn take_webhook(&self, outgoing: &mut Outgoing) -> Result<(), Rejection> {
        let shape = match outgoing.call.create {
            Some(Create::Json) => Shape::Json,
            Some(Create::Multipart) => match form::boundary(&outgoing.head.headers) {
                Some(boundary) => Shape::Form(boundary),
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        let (account, client) = (&self.accounts[outgoing.account].name, self.clients.name(outgoing.client));
        let Some(body) = outgoing.held.front_mut() else { return Ok(()) };
        let Some(mut intent) = self.webhooks.intake(&shape, body, account, client)? else { return Ok(()) };
        shape.describe(&mut outgoing.head.headers, body);
        intent.keep().await?;
        outgoing.webhook = Some(Box::new(intent));
        Ok(())
    }

    /// Has the jobs looked at whose webhooks an earlier process left: what the job table does not know of may have ended unseen.
    pub(crate) fn restore_webhooks(&self) -> Result<(), crate::ledger::Error> {
        for (job, owed) in self.webhooks.restore()? {
            let account = self.accounts.iter().position(|account| account.name == owed.account);
            let client = self.clients.names().iter().position(|name| *name == owed.client);
            let owner = Owner { account: account.unwrap_or_default(), client: client.unwrap_or_default() };
            self.jobs.look_again(&job, owner);
        }
        Ok(())
    }
}

/// A webhook whose create is on its way. Dropped before a job is known, nothing is owed.
#[must_use]
pub(crate) struct Intent {
    hooks: Arc<Webhooks>,
    owed: Owed,
    /// The row, once it is written.
    id: Option<i64>,
}

impl Intent {
    /// What the create is called for ever.
    pub(crate) fn number(&self) -> Option<u64> {
        self.owed.number
    }

    /// Writes down what will be owed. A create is not sent before.
    pub(crate) async fn keep(&mut self) -> Result<(), Rejection> {
        match self.hooks.ledger.owe(self.owed.clone()).await {
            Ok(id) => {
                self.id = Some(id);
                self.hooks.tell_token(&self.owed).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "a create with a webhook is refused: what it would be owed cannot be kept");
                Err(Rejection::Internal)
            }
        }
    }

    /// The create was answered with this job.
    async fn accepted(mut self, job: &str) {
        let Some(id) = self.id.take() else { return };
        self.hooks.tell_job(&self.owed, job);
        // In this order: the upstream's call may be here already, and whoever comes second must find that it is.
        self.hooks.wait_for(job, Waiting { id, job: Some(job.to_owned()), owed: self.owed.clone() });
        match self.hooks.ledger.owed_for(id, job.to_owned()).await {
            Ok(true) => {}
            Ok(false) => self.hooks.wait_no_more(job, id),
            Err(error) => tracing::error!(%error, job, "a restart would not know of this job's webhook"),
        }
    }

    /// The upstream's final answer to the create.
    pub(crate) async fn answered(self, protocol: &Protocol, status: StatusCode, body: &Bytes) {
        if !status.is_success() {
            if may_have_been_done(status) {
                self.unknown();
            }
            return;
        }
        match protocol.read(body).and_then(|answer| answer.id) {
            Some(job) => self.accepted(&job).await,
            None => self.unknown(),
        }
    }

    /// The outcome of the create is not known. If the upstream knows a URL of ours, it may still tell.
    pub(crate) fn unknown(mut self) {
        if self.owed.token.is_some() {
            self.id = None;
            self.hooks.await_call(&self.owed);
        }
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.hooks.ledger.owe_nothing(id);
        }
    }
}

/// 128 bits that nobody guesses: whoever knows them may still only send what is signed.
fn random_token() -> String {
    let mut bytes = [0_u8; 16];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        // No entropy: the signature is what protects.
        bytes = fastrand::u128(..).to_ne_bytes();
    }
    hex(&bytes)
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
