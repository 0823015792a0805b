//! Builds the parts from the configuration. Nothing listens yet: see `server`.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::clock::Clock;
use crate::config::{Amount, Config, Sources, Watch};
use crate::credits::{self, Credits, Purse};
use crate::ledger::{Ledger, Place};
use crate::metrics::Metrics;
use crate::proxy::accept;
use crate::proxy::body::Bodies;
use crate::proxy::create::idempotency::Idempotency;
use crate::proxy::identify::Clients;
use crate::proxy::jobs::look::Looker;
use crate::proxy::jobs::{self, Jobs};
use crate::proxy::join::Joins;
use crate::proxy::queue::Part;
use crate::proxy::upstream::Upstream;
use crate::proxy::upstream::breaker::Breaker;
use crate::proxy::upstream::connect::{Connect, Network};
use crate::proxy::upstream::target::Target;
use crate::proxy::{Account, App, Lasting, Seat, queue};
use crate::reload::{Refused, Reloaded, Reloader, Reloading, Reloads};
use crate::replicas::Replicas;
use crate::state::State;
use crate::traces::Traces;
use crate::webhooks::send::{Dial, Outward};
use crate::webhooks::{self, Webhooks, deliver, receive};

/// Accounts, with the books of the configuration before.
mod accounts;

/// Names and their numbers.
mod roster;

/// Everyone, where the configuration names no clients.
const LOCAL: &str = "local";

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
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) connector: Arc<dyn Connect>,
    seat: Arc<Seat>,
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
        let mut background = JoinSet::new();
        let replicas = Replicas::start(config, state.as_ref(), &app, &mut background)?;
        let reloader = Arc::new(Reloader::new(config.clone(), Arc::clone(&app), state));
        let seat = Seat::new(Arc::clone(&app), upstream, Arc::clone(&reloader));
        reloader.seat(&seat);
        let looker = Arc::new(Looker(Arc::clone(&seat)));
        background.spawn(Arc::clone(&app.jobs).keep_looking(looker, app.tasks.clone()));
        let dial = around.dial.unwrap_or_else(|| Arc::new(Outward::default()));
        background.spawn(deliver::run(Arc::clone(&app.webhooks), dial, webhooks));
        Ok(Self { reloader, connector, seat, background, replicas })
    }

    /// Serves one connection; the future ends with it.
    pub fn serve<I>(&self, io: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        accept::connection(Arc::clone(&self.seat), io)
    }

    /// Serves one connection of the upstream's own webhooks; the future ends with it.
    pub fn serve_webhooks<I>(&self, io: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        receive::connection(io, Arc::clone(&self.reloader))
    }

    /// The terms that are in force.
    pub(crate) fn app(&self) -> Arc<App> {
        self.reloader.latest()
    }

    /// Puts another configuration in force, for requests that begin from now on: all of it, or nothing.
    ///
    /// # Errors
    /// Where it changes what cannot change while the proxy runs, or does not fit together.
    pub fn reload(&self, config: &Config) -> Result<Reloaded, Refused> {
        self.reloader.apply(config.clone())
    }

    /// Reads these sources again when that is due; `path` and `watch` are what they came to at the start.
    #[must_use]
    pub fn reloading(&self, sources: Sources, path: Option<PathBuf>, watch: Watch) -> Reloading {
        Reloading::new(Arc::clone(&self.reloader), sources, path, watch)
    }

    /// Tells those who share the accounts that this replica sends nothing any more.
    pub(crate) async fn leave(&mut self) {
        self.replicas.leave().await;
    }

    /// Ends what runs beside requests, writes what is to be kept and lets the state directory go.
    pub(crate) fn stop(&mut self) {
        self.background.abort_all();
        let app = self.app();
        app.jobs.save_learned();
        app.ledger.close();
        self.reloader.end();
    }

    /// What is taken at this moment: all zero when nothing is under way.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let app = self.app();
        let queues: Vec<_> = app.queues().map(|(_, queue)| queue.snapshot()).collect();
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
        admin::status(&self.app())
    }

    /// The credits used, as the admin port tells them.
    #[must_use]
    pub fn credits(&self) -> serde_json::Value {
        self.app().credits.report()
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

/// Who may call, by number: names, what each may have of an account, and the number of its account.
struct Callers {
    names: Vec<String>,
    present: Vec<usize>,
    parts: Vec<Part>,
}

impl Callers {
    /// Those of this configuration, with the numbers of those that were known before.
    fn new(config: &Config, known: &[String]) -> Self {
        let local = config.clients.is_empty().then_some(LOCAL);
        let (names, present) =
            roster::number(known, config.clients.iter().map(|client| client.name.as_str()).chain(local));
        let mut parts: Vec<Part> = vec![None; names.len()];
        for (client, number) in config.clients.iter().zip(&present) {
            parts[*number] = Some((client.plan.clone(), client.weight.get()));
        }
        if local.is_some() {
            for number in &present {
                parts[*number] = Some((None, 1));
            }
        }
        Self { names, present, parts }
    }

    /// By client: the number of its account, that which it had before where it is gone.
    fn accounts(&self, config: &Config, numbers: &[usize], before: &[usize]) -> Vec<usize> {
        let default = numbers[config.default_account];
        let mut of: Vec<usize> =
            (0..self.names.len()).map(|client| before.get(client).copied().unwrap_or(default)).collect();
        for (place, client) in self.present.iter().enumerate() {
            of[*client] = config.clients.get(place).map_or(default, |client| numbers[client.account]);
        }
        of
    }

    /// Their budgets, by number.
    fn budgets(&self) -> Vec<(Arc<str>, Option<Amount>)> {
        let budget = |part: &Part| part.as_ref()?.0.as_ref()?.credits_per_day;
        self.names.iter().zip(&self.parts).map(|(name, part)| (name.as_str().into(), budget(part))).collect()
    }
}

/// Accounts' money. Accounts with one book share one budget.
fn purses(accounts: &[Account]) -> Vec<Purse> {
    let first = |account: &Account| {
        let first = accounts.iter().find(|other| Arc::ptr_eq(&other.queue, &account.queue));
        first.map_or(account.name.as_str(), |first| first.name.as_str()).into()
    };
    let purse = |account: &Account| Purse {
        name: account.name.as_str().into(),
        first: first(account),
        budget: account.plan.credits_per_day,
        shared: account.queue.shares_credits().then(|| Arc::clone(&account.queue)),
    };
    accounts.iter().map(purse).collect()
}

fn job_terms(config: &Config, accounts: &[Account], names: &[String]) -> jobs::Terms {
    let accounts = accounts.iter().map(|account| (account.name.clone(), Arc::clone(&account.queue))).collect();
    jobs::Terms::new(config.jobs.clone(), &config.models, accounts, names.to_vec())
}

fn build_app(
    config: &Config,
    clock: Clock,
    state: Option<&State>,
    ours: Vec<SocketAddr>,
) -> Result<(App, Due), StartError> {
    let now = Instant::now();
    let broken = |error| StartError::State(io::Error::other(error));
    let protocol = Arc::clone(&config.upstream.protocol);
    let callers = Callers::new(config, &[]);
    let metrics = Arc::new(Metrics::new());
    let ledger = open_ledger(state, clock, metrics.ledger_failures.clone()).map_err(StartError::State)?;
    let known = ledger.known().map_err(broken)?;
    let ledger = Arc::new(ledger);
    let around = accounts::Around {
        known: &[],
        past: &HashSet::new(),
        parts: &callers.parts,
        state,
        metrics: &metrics,
        clock,
        now,
    };
    let built = accounts::build(config, &around)?;
    let around = webhooks::Parts { ledger: Arc::clone(&ledger), clock, metrics: metrics.webhooks.clone(), ours };
    let (hooks, due) = Webhooks::new(&config.webhooks, Arc::clone(&protocol), around);
    let hooks = Arc::new(hooks);
    let terms = credits::Terms::new(config, purses(&built.accounts), callers.budgets());
    let offset = config.credits.utc_offset_secs;
    let credits = Credits::open(terms, offset, Arc::clone(&ledger), metrics.credits.clone());
    let credits = Arc::new(credits.map_err(broken)?);
    credits.tell_spent();
    let terms = job_terms(config, &built.accounts, &callers.names);
    let mut jobs = Jobs::new(Arc::clone(&protocol), terms, Arc::clone(&ledger));
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
    jobs.restore(known).map_err(broken)?;
    let account_of = callers.accounts(config, &built.numbers, &[]);
    let (server, url) = (&config.server, &config.upstream.url);
    let clients = Clients::new(&config.clients, (callers.names, callers.present), &protocol);
    let lasting = Lasting {
        protocol,
        target: Target::new(url).ok_or_else(|| StartError::Config("upstream.url has no host".into()))?,
        breaker: Arc::new(Breaker::new(config.queue.max_waiting.get(), metrics.circuit.clone())),
        bodies: Bodies::new(server.buffer_bytes, server.max_body_bytes, server.body_timeout),
        max_body_bytes: server.max_body_bytes,
        ledger,
        webhooks: hooks,
        credits,
        jobs,
        idempotency: Idempotency::default(),
        joins: Joins::default(),
        reloads: Reloads::new(clock, metrics.reload.clone()),
        metrics,
        recent: Arc::default(),
        traces: Traces::default(),
        clock,
        tasks: TaskTracker::new(),
        connected: TaskTracker::new(),
        drain: CancellationToken::new(),
        drained: CancellationToken::new(),
    };
    let app = App::new(config, built.accounts, (clients, account_of), Arc::new(lasting));
    app.restore_webhooks().map_err(broken)?;
    Ok((app, due))
}

/// The terms of another configuration, among the parts of `old`; and the books that are new. Where it fails, nothing has changed.
pub(crate) fn next(
    (running, past): (&Config, &HashSet<String>),
    config: &Config,
    old: &App,
    state: Option<&State>,
    now: Instant,
) -> Result<(App, Vec<Arc<queue::Account>>), StartError> {
    let callers = Callers::new(config, old.clients.names());
    let (metrics, clock) = (&old.metrics, old.clock);
    let around = accounts::Around { known: &old.accounts, past, parts: &callers.parts, state, metrics, clock, now };
    let mut built = accounts::build(config, &around)?;
    built.commit(config, &callers.parts, now);
    // Before anybody lives by the new terms: whoever does may use its numbers everywhere.
    old.credits.replan(credits::Terms::new(config, purses(&built.accounts), callers.budgets()));
    old.jobs.replan(job_terms(config, &built.accounts, &callers.names));
    old.webhooks.replan(&running.webhooks, &config.webhooks);
    old.breaker.allow(config.queue.max_waiting.get());
    let account_of = callers.accounts(config, &built.numbers, &old.account_of);
    let clients = Clients::new(&config.clients, (callers.names, callers.present), &old.protocol);
    Ok((App::new(config, built.accounts, (clients, account_of), old.lasting()), built.new))
}

fn open_ledger(state: Option<&State>, clock: Clock, failures: Counter) -> io::Result<Ledger> {
    let Some(file) = state.map(State::ledger) else { return Ledger::open(Place::Memory, clock, failures) };
    let place = if clock.may_pause() { Place::FileInline(&file) } else { Place::File(&file) };
    Ledger::open(place, clock, failures)
}

impl App {
    /// Every book once, also where accounts share one, under the name of the first that is in the configuration. Those that only accounts
    /// have that are gone come while something of theirs lives.
    pub(crate) fn queues(&self) -> impl Iterator<Item = (&str, Arc<queue::Account>)> {
        let mut order: Vec<&Account> = self.accounts.iter().filter(|account| !account.gone).collect();
        order.extend(self.accounts.iter().filter(|account| account.gone && account.queue.is_busy()));
        let mut unique: Vec<&Account> = Vec::new();
        for account in order {
            if !unique.iter().any(|earlier| Arc::ptr_eq(&earlier.queue, &account.queue)) {
                unique.push(account);
            }
        }
        unique.into_iter().map(|account| (account.name.as_str(), Arc::clone(&account.queue)))
    }
}
