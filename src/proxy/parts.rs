//! The parts that all workers share, each with its own lock where it needs one, and the small decisions that need several of them.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header, request};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::{self, Config, Llm, RouteAuth};
use crate::credits::Credits;
use crate::ledger::Ledger;
use crate::metrics::{self, Metrics};
use crate::protocol::{Create, KeyHeaders, Protocol};
use crate::reload::Reloads;
use crate::traces::Traces;
use crate::webhooks::Webhooks;

use super::body::{Bodies, Held, Inbound};
use super::classify::Call;
use super::create::idempotency::Idempotency;
use super::finish::recent::Recent;
use super::guard::Guard;
use super::headers::{self, Outbound};
use super::identify::{self, Clients};
use super::jobs::Jobs;
use super::join::Joins;
use super::queue::{self, NoTurn};
use super::rejection::Rejection;
use super::retry::Budget;
use super::upstream::breaker::Breaker;
use super::upstream::target::Target;

/// What a request lives by: the terms of one configuration, and the parts that outlast it. A reload makes another one; who has begun with
/// this one ends with it.
pub(crate) struct App {
    /// By number. Those that have left the configuration stay, for the jobs that they left behind.
    pub(crate) accounts: Vec<Account>,
    /// By client: number of its account.
    pub(crate) account_of: Vec<usize>,
    pub(crate) clients: Clients,
    pub(crate) guard: Guard,
    pub(crate) routes: Vec<config::Route>,
    pub(crate) retry: config::Retry,
    pub(crate) max_wait: Duration,
    pub(crate) hold: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) total_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    /// Set when there is a newer one. Relaxed: whoever misses it by a moment is told by a 401 if it matters.
    superseded: AtomicBool,
    lasting: Arc<Lasting>,
}

/// The parts that live as long as the process, each with its own lock where it needs one.
pub(crate) struct Lasting {
    pub(crate) protocol: Arc<Protocol>,
    pub(crate) target: Target,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) bodies: Bodies,
    pub(crate) max_body_bytes: u64,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) credits: Arc<Credits>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) idempotency: Idempotency,
    pub(crate) joins: Joins,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recent: Arc<Recent>,
    pub(crate) traces: Traces,
    pub(crate) clock: Clock,
    /// What became of reloads.
    pub(crate) reloads: Reloads,
    /// Creates under way, waited for by the drain.
    pub(crate) tasks: TaskTracker,
    /// Connections that came before the drain, waited for by it.
    pub(crate) connected: TaskTracker,
    /// Cancelled when new work is refused.
    pub(crate) drain: CancellationToken,
    /// Cancelled when those who still wait for their turn are refused too.
    pub(crate) drained: CancellationToken,
}

impl Deref for App {
    type Target = Lasting;

    fn deref(&self) -> &Lasting {
        &self.lasting
    }
}

/// One account of the configuration. Those with the same key share a queue.
pub(crate) struct Account {
    pub(crate) name: String,
    /// It has left the configuration.
    pub(crate) gone: bool,
    /// To be compared, and for nothing else.
    pub(crate) secret: config::Secret,
    pub(crate) key: KeyHeaders,
    pub(crate) queue: Arc<queue::Account>,
    pub(crate) plan: Arc<config::Plan>,
    pub(crate) rules: config::Rules,
    pub(crate) counters: Arc<metrics::accounts::Account>,
    budget: Arc<Mutex<Budget>>,
}

impl Account {
    pub(crate) fn new(
        account: &config::Account,
        key: KeyHeaders,
        queue: Arc<queue::Account>,
        budget: Arc<Mutex<Budget>>,
        counters: Arc<metrics::accounts::Account>,
    ) -> Self {
        let (name, plan, rules) = (account.name.clone(), Arc::clone(&account.plan), account.rules.clone());
        Self { name, gone: false, secret: account.key.clone(), key, queue, plan, rules, counters, budget }
    }

    /// The same, no longer in the configuration. Where another account goes on with its book, its jobs are followed with that one's key.
    pub(crate) fn gone(&self, successor: Option<&Self>) -> Self {
        let Self { secret, key, .. } = successor.unwrap_or(self);
        Self {
            name: self.name.clone(),
            gone: true,
            secret: secret.clone(),
            key: key.clone(),
            queue: Arc::clone(&self.queue),
            plan: Arc::clone(&self.plan),
            rules: self.rules.clone(),
            counters: Arc::clone(&self.counters),
            budget: Arc::clone(&self.budget),
        }
    }

    pub(crate) fn shared_budget(&self) -> Arc<Mutex<Budget>> {
        Arc::clone(&self.budget)
    }

    pub(crate) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// The terms of `config` among these parts.
    pub(crate) fn new(
        config: &Config,
        accounts: Vec<Account>,
        (clients, account_of): (Clients, Vec<usize>),
        lasting: Arc<Lasting>,
    ) -> Self {
        let (server, upstream) = (&config.server, &config.upstream);
        Self {
            accounts,
            account_of,
            clients,
            guard: Guard::new(server, &server.listen),
            routes: config.routes.clone(),
            retry: config.retry.clone(),
            max_wait: config.queue.max_wait,
            hold: config.jobs.hold,
            header_timeout: server.header_timeout,
            attempt_timeout: upstream.attempt_timeout,
            total_timeout: upstream.total_timeout,
            idle_timeout: upstream.idle_timeout,
            drain_timeout: server.drain_timeout,
            superseded: AtomicBool::new(false),
            lasting,
        }
    }

    /// The parts that outlast it.
    pub(crate) fn lasting(&self) -> Arc<Lasting> {
        Arc::clone(&self.lasting)
    }

    /// There is a newer one from now on.
    pub(crate) fn supersede(&self) {
        self.superseded.store(true, Ordering::Relaxed);
    }

    /// Whether a reload has made a newer one.
    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    pub(crate) fn account(&self, account: usize) -> &Account {
        &self.accounts[account]
    }

    /// Whose key a call takes: a job's creator's, else the caller's own account's. Jobs of others look like none.
    pub(crate) fn account_for(&self, client: usize, call: &Call) -> Result<usize, Rejection> {
        match call.job.as_ref().and_then(|id| self.jobs.owner(id)) {
            Some(owner) if self.jobs.visible(owner, client) => Ok(owner.account),
            Some(_) => Err(Rejection::NotYours),
            None => Ok(self.account_of[client]),
        }
    }

    pub(crate) fn refuse_while_draining(&self) -> Result<(), Rejection> {
        if self.drain.is_cancelled() { Err(Rejection::Draining) } else { Ok(()) }
    }

    /// How long this call may wait: `queue.max_wait`, or less if the caller says so.
    pub(crate) fn max_wait(&self, head: &request::Parts) -> Result<Duration, Rejection> {
        let Some(asked) = headers::find(&head.headers, &headers::MAX_WAIT) else {
            return Ok(self.max_wait);
        };
        let asked = asked.to_str().ok().and_then(|text| text.trim().parse::<jiff::SignedDuration>().ok());
        let asked = asked.and_then(|duration| Duration::try_from(duration).ok());
        asked
            .map(|asked| asked.min(self.max_wait))
            .ok_or(Rejection::BadRequest("Sluicegate-Max-Wait is not a duration like 10s"))
    }

    /// Takes the body as far as it is needed before the queue, and the model that it names.
    pub(crate) async fn take_body(
        &self,
        call: &Call,
        path: &str,
        body: Inbound,
    ) -> Result<(Held, Option<String>), Rejection> {
        match call.create {
            Some(Create::Json) => {
                let held = self.bodies.whole(body).await?;
                let model = self.protocol.model(path, held.bytes());
                Ok((held, model))
            }
            Some(Create::Multipart) => {
                let (held, model) = self.bodies.multipart(body).await?;
                Ok((held, self.protocol.model(path, &[]).or(model)))
            }
            None => Ok((self.bodies.small_or_unread(body).await?, None)),
        }
    }

    /// The request's target as the upstream's: below its prefix, without a credential.
    pub(crate) fn retarget(&self, head: &mut request::Parts) -> Result<(), Rejection> {
        let target = match head.uri.query().map(|query| (query, identify::without_key(query))) {
            Some((_, Some(kept))) => self.target.origin_form(head.uri.path(), Some(&kept)),
            Some((query, None)) => self.target.same(&head.uri, Some(query)),
            None => self.target.same(&head.uri, None),
        };
        head.uri = target.ok_or(Rejection::BadRequest("the request target is not valid"))?;
        Ok(())
    }

    /// A caller's fields as those of the attempts: credentials out, key in.
    pub(crate) fn dress(&self, call: &Call, account: usize, headers: &mut HeaderMap) {
        if call.auth == RouteAuth::Client
            && headers.get_all(header::AUTHORIZATION).iter().any(|value| self.clients.is_token(value))
        {
            headers.remove(header::AUTHORIZATION);
        }
        let key = (call.auth == RouteAuth::Account).then(|| self.accounts[account].key.header(call.family));
        let idempotency_key = call.create.map(|_| headers::random_id());
        let out = Outbound {
            host: &self.target.host,
            protocol: &self.protocol,
            key,
            plain_answer: call.observed(),
            idempotency_key,
        };
        headers::prepare(headers, out);
    }

    /// LLM calls of a plan with `llm = "unmetered"` and routes without the account's key spend no quota.
    pub(crate) fn metered(&self, account: usize, call: &Call) -> bool {
        let free = call.family.is_llm() && self.accounts[account].plan.llm == Llm::Unmetered;
        !free && call.auth == RouteAuth::Account
    }

    pub(crate) fn no_turn(
        &self,
        account: usize,
        client: usize,
        no_turn: NoTurn,
        begun: Instant,
        max_wait: Duration,
    ) -> Rejection {
        let limited = |retry_in| {
            let view = self.accounts[account].queue.view(client);
            let (limit, window) = view.map_or((0, Duration::ZERO), |view| (view.limit, view.window));
            Rejection::RateLimited { limit, window, retry_in }
        };
        match no_turn {
            NoTurn::TooLate { retry_in } => limited(retry_in),
            NoTurn::Deadline { retry_in } if max_wait.is_zero() => limited(retry_in),
            NoTurn::Full { waiting, retry_in } => Rejection::QueueFull { waiting, retry_in },
            NoTurn::NoSlot { live, limit } => Rejection::JobLimit { live, limit },
            NoTurn::Deadline { retry_in } => Rejection::QueueTimeout { waited: begun.elapsed(), retry_in },
            NoTurn::NoFunds(no) => self.credits.no_funds(no),
        }
    }

    /// 10 min below `/llm`, where answers are computed while we wait, as configured elsewhere. What the upstream was asked to hold its
    /// answer for comes on top.
    pub(crate) fn attempt_timeout(&self, call: &Call) -> Duration {
        if call.family.is_llm() {
            self.attempt_timeout * 10
        } else {
            self.attempt_timeout + Duration::from_secs(call.held_secs.into())
        }
    }
}

/// The `model` of a JSON body.
pub(super) fn model_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Model {
        model: String,
    }
    serde_json::from_slice::<Model>(body).ok().map(|create| create.model)
}
