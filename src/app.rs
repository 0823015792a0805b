//! Builds the parts from the configuration. Nothing listens yet: see `server`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::credits::Credits;
use crate::ledger::{Ledger, Place};
use crate::metrics::Metrics;
use crate::protocol::KeyHeaders;
use crate::proxy::accept;
use crate::proxy::body::Bodies;
use crate::proxy::create::idempotency::Idempotency;
use crate::proxy::guard::Guard;
use crate::proxy::identify::Clients;
use crate::proxy::jobs::look::Looker;
use crate::proxy::jobs::{self, Jobs};
use crate::proxy::join::Joins;
use crate::proxy::retry::Budget;
use crate::proxy::upstream::Upstream;
use crate::proxy::upstream::breaker::Breaker;
use crate::proxy::upstream::connect::{Connect, Network};
use crate::proxy::upstream::target::Target;
use crate::proxy::{Account, App, Worker, queue};
use crate::replicas::{self, Replicas};
use crate::state::State;
use crate::webhooks::send::{Dial, Outward};
use crate::webhooks::{self, Webhooks, deliver, receive};

/// Why the proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is valid by itself but not usable here: exit code 2.
    #[error("{0}")]
    Config(String),
    /// The state directory is taken or damaged.
    #[error("state: {0}")]
    State(io::Error),
    /// A port is taken.
    #[error("{what} cannot listen on {address}: {error}; choose another with {change}")]
    Bind {
        /// Which port.
        what: &'static str,
        /// Its address.
        address: SocketAddr,
        /// How to change it.
        change: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The system refused something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// All parts, no port open: what tests serve over memory, and `Server` over TCP.
pub struct Proxy {
    pub(crate) worker: Arc<Worker>,
    pub(crate) connector: Arc<dyn Connect>,
    header_timeout: Duration,
    state: Option<State>,
    background: JoinSet<()>,
    replicas: Replicas,
}

/// What is around the parts: the network, which tests replace, and our own ports.
#[derive(Default)]
pub struct Surroundings {
    /// Connects to the upstream.
    pub connector: Option<Arc<dyn Connect>>,
    /// Connects to the receivers of webhooks.
    pub dial: Option<Arc<dyn Dial>>,
    /// Ports that no webhook is delivered to.
    pub ours: Vec<SocketAddr>,
}

impl Proxy {
    /// Builds the parts and starts what runs beside requests, on the current runtime. `connector` replaces the network in tests.
    ///
    /// # Errors
    /// When the state directory is taken or damaged, or two accounts share a key but not a plan.
    pub fn build(config: &Config, clock: Clock, connector: Option<Arc<dyn Connect>>) -> Result<Self, StartError> {
        Self::build_in(config, clock, Surroundings { connector, ..Surroundings::default() })
    }

    /// As `build`, among these.
    ///
    /// # Errors
    /// As `build`.
    pub fn build_in(config: &Config, clock: Clock, around: Surroundings) -> Result<Self, StartError> {
        let connector = match around.connector {
            Some(connector) => connector,
            None => {
                Arc::new(Network::new(&config.upstream.url, config.upstream.http2, config.upstream.connect_timeout)?)
            }
        };
        let state = config.state.path().map(State::open).transpose().map_err(StartError::State)?;
        let (app, webhooks) = build_app(config, clock, state.as_ref(), around.ours)?;
        let app = Arc::new(app);
        let upstream = Upstream::new(Arc::clone(&connector), Arc::clone(&app.breaker));
        let worker = Arc::new(Worker { app: Arc::clone(&app), upstream });
        let mut background = JoinSet::new();
        for queue in app.queues() {
            background.spawn(queue.keep_time());
        }
        let replicas = Replicas::start(config, state.as_ref(), &app, &mut background)?;
        let looker = Arc::new(Looker(Arc::clone(&worker)));
        background.spawn(Arc::clone(&app.jobs).keep_looking(looker, app.tasks.clone()));
        let dial = around.dial.unwrap_or_else(|| Arc::new(Outward::default()));
        background.spawn(deliver::run(Arc::clone(&app.webhooks), dial, webhooks));
        let header_timeout = config.server.header_timeout;
        Ok(Self { worker, connector, header_timeout, state, background, replicas })
    }

    /// Serves one connection; the future ends with it.
    pub fn serve<I>(&self, io: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        accept::connection(Arc::clone(&self.worker), io, self.header_timeout)
    }

    /// Serves one connection of the upstream's own webhooks; the future ends with it.
    pub fn serve_webhooks<I>(&self, io: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        receive::connection(io, Arc::clone(&self.worker.app))
    }

    /// Tells those who share the accounts that this replica sends nothing any more.
    pub(crate) async fn leave(&mut self) {
        self.replicas.leave().await;
    }

    /// Ends what runs beside requests, writes what is to be kept and lets the state directory go.
    pub(crate) fn stop(&mut self) {
        self.background.abort_all();
        self.worker.app.jobs.save_learned();
        self.worker.app.ledger.close();
        drop(self.state.take());
    }

    /// What is taken at this moment: all zero when nothing is under way.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let app = &self.worker.app;
        let queues: Vec<_> = app.queues().map(|queue| queue.snapshot()).collect();
        Usage {
            in_flight: app.metrics.in_flight.get(),
            waiting: queues.iter().map(|queue| queue.waiting).sum::<usize>() + app.breaker.waiting(),
            jobs_live: queues.iter().map(|queue| queue.live).sum(),
            jobs_uncertain: app.jobs.uncertain(),
            tasks_running: app.tasks.len(),
            held_bytes: app.bodies.held_bytes(),
        }
    }

    /// The live jobs, the limits and the queue as the admin port tells them.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        admin::status(&self.worker.app)
    }

    /// The credits used, as the admin port tells them.
    #[must_use]
    pub fn credits(&self) -> serde_json::Value {
        self.worker.app.credits.report()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What is taken at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Requests whose answer has not ended.
    pub in_flight: i64,
    /// Requests in queues, or waiting for the upstream to be reachable.
    pub waiting: usize,
    /// Job slots.
    pub jobs_live: u32,
    /// Those of them held by creates of unknown outcome.
    pub jobs_uncertain: usize,
    /// Tasks that outlive their callers: creates, and looks at jobs.
    pub tasks_running: usize,
    /// Bytes of request bodies.
    pub held_bytes: u64,
}

type Due = mpsc::UnboundedReceiver<webhooks::Due>;

fn build_app(
    config: &Config,
    clock: Clock,
    state: Option<&State>,
    ours: Vec<SocketAddr>,
) -> Result<(App, Due), StartError> {
    let now = Instant::now();
    let names: Vec<String> = config.accounts.iter().map(|account| account.name.clone()).collect();
    let protocol = Arc::clone(&config.upstream.protocol);
    let clients = Clients::new(&config.clients, &protocol);
    let metrics = Arc::new(Metrics::new(&names));
    let ledger = open_ledger(state, clock, metrics.ledger_failures.clone()).map_err(StartError::State)?;
    let known = ledger.known().map_err(|error| StartError::State(io::Error::other(error)))?;
    let (ledger, key_of) = (Arc::new(ledger), keys(&config.accounts));
    let accounts = build_accounts(config, state, clock, now)?;
    let around = webhooks::Parts { ledger: Arc::clone(&ledger), clock, metrics: metrics.webhooks.clone(), ours };
    let (hooks, due) = Webhooks::new(&config.webhooks, Arc::clone(&protocol), around);
    let hooks = Arc::new(hooks);
    let credits = Credits::open(config, clients.names(), &key_of, Arc::clone(&ledger), metrics.credits.clone());
    let credits = Arc::new(credits.map_err(|error| StartError::State(io::Error::other(error)))?);
    let mut jobs = Jobs::new(
        Arc::clone(&protocol),
        config.jobs.clone(),
        &config.models,
        Arc::clone(&ledger),
        accounts.iter().map(|account| Arc::clone(&account.queue)).collect(),
        clients.names().to_vec(),
    );
    let observer = Arc::clone(&hooks);
    jobs.observe(Box::new(move |event| observer.saw(event)));
    let book = Arc::clone(&credits);
    jobs.observe(Box::new(move |event| book.saw(event)));
    let ends = Arc::clone(&metrics);
    jobs.observe(Box::new(move |event| {
        if let jobs::Event::Ended(ended) = event {
            ends.job_ended(ended.end);
        }
    }));
    let jobs = Arc::new(jobs);
    jobs.restore(known).map_err(|error| StartError::State(io::Error::other(error)))?;
    let account_of = if config.clients.is_empty() {
        vec![config.default_account]
    } else {
        config.clients.iter().map(|client| client.account).collect()
    };
    let (server, upstream) = (&config.server, &config.upstream);
    let app = App {
        accounts,
        account_of,
        clients,
        guard: Guard::new(server, &server.listen),
        routes: config.routes.clone(),
        protocol,
        target: Target::new(&upstream.url).ok_or_else(|| StartError::Config("upstream.url has no host".into()))?,
        breaker: Arc::new(Breaker::new(config.queue.max_waiting.get(), metrics.circuit.clone())),
        bodies: Bodies::new(server.buffer_bytes, server.max_body_bytes, server.body_timeout),
        max_body_bytes: server.max_body_bytes,
        ledger,
        webhooks: hooks,
        credits,
        jobs,
        idempotency: Idempotency::default(),
        joins: Joins::default(),
        retry: config.retry.clone(),
        max_wait: config.queue.max_wait,
        hold: config.jobs.hold,
        attempt_timeout: upstream.attempt_timeout,
        total_timeout: upstream.total_timeout,
        idle_timeout: upstream.idle_timeout,
        metrics,
        recent: Arc::default(),
        clock,
        tasks: TaskTracker::new(),
        drain: CancellationToken::new(),
        drained: CancellationToken::new(),
    };
    app.restore_webhooks().map_err(|error| StartError::State(io::Error::other(error)))?;
    Ok((app, due))
}

fn open_ledger(state: Option<&State>, clock: Clock, failures: Counter) -> io::Result<Ledger> {
    let Some(file) = state.map(State::ledger) else { return Ledger::open(Place::Memory, clock, failures) };
    let place = if clock.may_pause() { Place::FileInline(&file) } else { Place::File(&file) };
    Ledger::open(place, clock, failures)
}

fn build_accounts(
    config: &Config,
    state: Option<&State>,
    clock: Clock,
    now: Instant,
) -> Result<Vec<Account>, StartError> {
    let mut shares: Vec<_> = config.clients.iter().map(|client| (client.plan.clone(), client.weight.get())).collect();
    if shares.is_empty() {
        shares.push((None, 1));
    }
    let mut built: Vec<Account> = Vec::new();
    for account in &config.accounts {
        let twin = config.accounts.iter().zip(&built).find(|(other, _)| other.key == account.key);
        let queue = match twin {
            Some((other, _)) if other.plan != account.plan => {
                return Err(StartError::Config(format!(
                    "accounts {} and {} have the same key but different plans: the upstream counts them together, give both one plan",
                    other.name, account.name
                )));
            }
            Some((_, built)) => Arc::clone(&built.queue),
            None => {
                let ring = match (state, &account.plan.requests) {
                    (Some(state), Some(requests)) => {
                        Some(state.ring(&account.key, requests, clock).map_err(StartError::State)?)
                    }
                    _ => None,
                };
                let max_waiting = config.queue.max_waiting.get();
                let queue = queue::Account::new(account.name.clone(), &account.plan, &shares, max_waiting, ring, now);
                replicas::share(config, state, account, &queue).map_err(StartError::State)?;
                queue
            }
        };
        let key = KeyHeaders::new(&account.key, &config.upstream.protocol).ok_or_else(|| {
            StartError::Config(format!("the key of account {} cannot stand in a header", account.name))
        })?;
        built.push(Account::new(account, key, queue, Budget::new(config.retry.budget, config.retry.budget_floor, now)));
    }
    Ok(built)
}

/// By account: the first one with the same key.
fn keys(accounts: &[config::Account]) -> Vec<usize> {
    let first = |account: &config::Account| accounts.iter().position(|other| other.key == account.key);
    accounts.iter().map(|account| first(account).unwrap_or_default()).collect()
}

impl App {
    /// Every queue once, also where accounts share one.
    pub(crate) fn queues(&self) -> impl Iterator<Item = Arc<queue::Account>> {
        let unique = self.accounts.iter().enumerate().filter(|(index, account)| {
            !self.accounts[..*index].iter().any(|earlier| Arc::ptr_eq(&earlier.queue, &account.queue))
        });
        unique.map(|(_, account)| Arc::clone(&account.queue))
    }
}
