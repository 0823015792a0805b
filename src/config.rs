//! What operators write becomes what the program uses.
//!
//! Two layers: a tree of values (`document`), laid out by the keys of `proxy.toml` (`file`), and this module's types, which are what
//! the rest of the crate sees. Building the second from the first (`build`) is the validation, so nothing is checked again later.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

pub use self::change::bound_to_the_start;
pub(crate) use self::change::{Change, change};
pub use self::file::keys;
pub(crate) use self::load::load_text;
pub use self::load::{Attempt, Flags, Loaded, Sources, TEMPLATE, load, load_watched, prepare};
pub use self::report::Report;
pub use self::schema::schema;
pub use self::secret::Secret;
pub use self::source::Spring;
pub use self::watch::Watch;
pub(crate) use self::watch::Watcher;
pub use crate::credits::amount::Amount;
pub use crate::protocol::Protocol;

// In reading order: find the file, parse it, lay the environment over it, check it, build from it.
mod load;

mod document;

mod file;

mod schema;

mod overrides;

mod unknown;

mod reader;

mod build;

mod source;

mod watch;

mod change;

mod address;

mod units;

pub(crate) mod suggest;

mod report;

pub mod secret;

/// Everything the program needs to run, already checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Index into [`Config::accounts`] of the account that serves calls by default.
    pub default_account: usize,
    /// The data port.
    pub server: Server,
    /// The operator's ports.
    pub admin: Admin,
    /// Where attempts are sent.
    pub upstream: Upstream,
    /// Exceptions by path prefix, in file order; the first that matches counts.
    pub routes: Vec<Route>,
    /// All accounts that a client or the default names, in file order.
    pub accounts: Vec<Account>,
    /// Who may call. Empty: everyone is the client `local`.
    pub clients: Vec<Client>,
    /// How long and how many may wait.
    pub queue: Queue,
    /// What is tried again.
    pub retry: Retry,
    /// How long a job may hold its slot.
    pub jobs: Jobs,
    /// What is known of models, by the name that creates use.
    pub models: Vec<Model>,
    /// Where webhooks go and come from.
    pub webhooks: Webhooks,
    /// When a day of credits begins, and what is given back.
    pub credits: Credits,
    /// What survives a restart.
    pub state: State,
    /// How the log is written.
    pub log: Log,
}

/// `[server]`: the data port.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Addresses to listen on; at least one.
    pub listen: Vec<SocketAddr>,
    /// Whether an address beyond this machine is well without clients.
    pub allow_open: bool,
    /// Worker threads; `None`: one per core.
    pub threads: Option<NonZeroUsize>,
    /// Host names accepted beyond loopback names and the listen addresses; lower case, without a port.
    pub allowed_hosts: Vec<String>,
    /// Browser origins accepted, as `scheme://host[:port]`, lower case.
    pub allowed_origins: Vec<String>,
    /// Longest request body, in bytes.
    pub max_body_bytes: u64,
    /// All bodies held for queue or replay, together, in bytes; at least `max_body_bytes`.
    pub buffer_bytes: u64,
    /// From the first byte of a connection or request to the end of its head.
    pub header_timeout: Duration,
    /// Between two pieces of a request body while we read.
    pub body_timeout: Duration,
    /// How long in-flight work may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// How often the file, and those of secrets, are looked at for a change; zero: only on SIGHUP.
    pub reload_interval: Duration,
    /// Connections held open at once.
    pub max_connections: NonZeroUsize,
}

/// `[admin]`: the operator's ports; `None` where the file says `"off"`.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// API, metrics, health.
    pub listen: Option<SocketAddr>,
    /// Only `/livez`, `/readyz` and `/metrics`, for probes.
    pub health_listen: Option<SocketAddr>,
}

/// `[upstream]`: the API in front of which we stand.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Scheme and authority, and an optional path prefix without a slash at its end.
    pub url: Uri,
    /// How jobs are created and followed.
    pub protocol: Arc<Protocol>,
    /// TCP and TLS together.
    pub connect_timeout: Duration,
    /// One attempt, to its response head; below `/llm` ten times as long.
    pub attempt_timeout: Duration,
    /// All attempts and backoff of one call, from the first dispatch to the response head.
    pub total_timeout: Duration,
    /// Between two pieces of a response body.
    pub idle_timeout: Duration,
    /// Which HTTP version is spoken to the upstream.
    pub http2: Http2,
}

/// HTTP versions towards the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// What TLS negotiates; HTTP/1.1 over plain TCP.
    Auto,
    /// HTTP/1.1 only.
    Never,
    /// HTTP/2 only, also over plain TCP (prior knowledge).
    Always,
}

/// `[[routes]]`: an exception by path prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The path prefix, from the leading slash.
    pub prefix: String,
    /// Whose credentials go upstream.
    pub auth: RouteAuth,
}

/// Whose credentials go upstream on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteAuth {
    /// The account's key is injected (everywhere by default).
    Account,
    /// The caller's own `Authorization` passes, nothing is injected.
    Client,
}

/// `[accounts.NAME]`: one upstream API key and its plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// The table's name.
    pub name: String,
    /// Free text for people.
    pub description: Option<String>,
    /// The limits that the upstream sold with this key.
    pub plan: Arc<Plan>,
    /// The API key.
    pub key: Secret,
    /// Where the key came from, for people: `environment variable CORE_API_KEY`, `file /run/secrets/key`, `command op`.
    pub key_origin: String,
    /// The same, to look there again.
    pub spring: Spring,
    /// What its calls may ask for.
    pub rules: Rules,
}

/// What an environment may ask for: cheap models on a developer's machine, all of them in production.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Models that are replaced: the one asked for, and the one that is sent.
    pub substitute: Vec<(String, String)>,
    /// Fields of `input` and the most that each may be.
    pub caps: Vec<(String, serde_json::Number)>,
    /// Which models may be sent.
    pub models: Models,
}

/// Which models an account may be asked for. A name matches whole or by its last segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Models {
    /// All.
    #[default]
    Any,
    /// Only these.
    Only(Vec<String>),
    /// All but these.
    Not(Vec<String>),
}

/// `[plans.NAME]`: limits. What is left out is not limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The table's name.
    pub name: String,
    /// Attempts in any window.
    pub requests: Option<Requests>,
    /// Jobs alive at once.
    pub concurrent_jobs: Option<NonZeroU32>,
    /// How attempts are spread inside the window.
    pub pacing: Pacing,
    /// Whether LLM calls spend the same quota.
    pub llm: Llm,
    /// What a day may cost.
    pub credits_per_day: Option<Amount>,
}

/// A rate: at most `limit` attempts in any `window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests {
    /// L.
    pub limit: NonZeroU32,
    /// W: 60 s for `requests_per_minute`, else `per`. From 10 ms to 24 h.
    pub window: Duration,
    /// J: the most that may pass between our sending an attempt and the upstream's counting it. Default max(W/40, 100 ms).
    pub jitter: Duration,
}

/// How attempts are spread inside the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pacing {
    /// Full burst until the upstream proves stricter than its plan, then paced.
    Auto,
    /// Always evenly spaced.
    Paced,
    /// Always full burst.
    Burst,
}

/// Whether LLM calls spend the account's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Llm {
    /// One bucket with everything else.
    Shared,
    /// Not counted at all.
    Unmetered,
}

/// `[[clients]]`: an app that calls us.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    /// Its name in logs, metrics and the queue.
    pub name: String,
    /// What it sends as its API key.
    pub token: Secret,
    /// Index into [`Config::accounts`].
    pub account: usize,
    /// Limits inside the account's; both must allow.
    pub plan: Option<Arc<Plan>>,
    /// Its share of turns when several clients wait; 1 to 1000.
    pub weight: NonZeroU32,
}

/// `[queue]`: waiting instead of failing.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Longest wait for the first attempt; zero refuses at once.
    pub max_wait: Duration,
    /// Most waiters of one account.
    pub max_waiting: NonZeroUsize,
}

/// `[retry]`: what is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Attempts of one call, the first included.
    pub max_attempts: NonZeroU32,
    /// Ceiling of the first backoff.
    pub initial_backoff: Duration,
    /// Ceiling of every backoff.
    pub max_backoff: Duration,
    /// Statuses that are tried again.
    pub statuses: Vec<http::StatusCode>,
    /// Which failed creates are sent again.
    pub creates: RetryCreates,
    /// Retries in the last 60 s, as a share of first attempts.
    pub budget: f64,
    /// Retries in the last 60 s that are allowed whatever the share.
    pub budget_floor: u32,
}

/// Which failed creates (and other POST, PUT, PATCH) are sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryCreates {
    /// Listed statuses and what provably was not sent.
    Documented,
    /// Only what provably was not sent, 429 and 503.
    Safe,
    /// None.
    Never,
}

/// `[jobs]`: how long a job may hold its slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Jobs {
    /// A job older than this is looked at a last time, then its slot is freed.
    pub max_age: Duration,
    /// How long a create of unknown outcome holds its slot.
    pub uncertain: Duration,
    /// How long an ended job is remembered, its answer given without asking the upstream.
    pub result_ttl: Duration,
    /// A poll of a job that is expected to be news within this is held until it is.
    pub hold: Duration,
    /// Whether every client sees every job.
    pub shared: bool,
}

/// `[models.NAME]`: what is known of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The name that creates use.
    pub name: String,
    /// First interval of the proxy's looks at a job of this model, until its run times are learned.
    pub poll: Duration,
    /// What a call costs; `None`: nothing.
    pub price: Option<Price>,
}

/// What a call of a model costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Price {
    /// Each accepted create or LLM call.
    Call(Amount),
    /// A thousand tokens of what the answer's `usage` says.
    ThousandTokens(Amount),
}

/// `[credits]`: when a day begins, and what is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credits {
    /// East of UTC; where midnight is.
    pub utc_offset_secs: i32,
    /// Jobs that end so cost nothing.
    pub refund: Vec<Refund>,
}

/// An end of a job whose credits may be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refund {
    /// The upstream says so.
    Failed,
    /// By a client.
    Cancelled,
    /// Older than `jobs.max_age`.
    Expired,
    /// The upstream knows it no longer.
    Gone,
}

/// `[webhooks]`: telling apps of their jobs' ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Webhooks {
    /// Signs what goes out, and verifies what the upstream sends.
    pub secret: Option<Secret>,
    /// Where the upstream's own webhooks arrive, and the URL that leads there.
    pub inbound: Option<Inbound>,
    /// Targets that may be delivered to although the upstream could not reach them.
    pub allow: Vec<Allow>,
}

/// Where the upstream's webhooks arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The port of our own.
    pub listen: SocketAddr,
    /// What the upstream is told; `https`, or `http` on this machine; no slash at its end.
    pub public_url: Uri,
}

/// One target that webhooks may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// A host name or address, lower case, without brackets.
    pub host: String,
    /// `None`: every port, written `*`.
    pub port: Option<u16>,
}

/// `[state]`: what survives a restart.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing.
    Memory,
    /// Files in this directory, which exists and is writable once [`prepare`] was called.
    Local(PathBuf),
    /// The same, and what the replicas of the accounts share.
    Redis(PathBuf, Redis),
}

impl State {
    /// The directory, where there is one.
    #[must_use]
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Self::Memory => None,
            Self::Local(path) | Self::Redis(path, _) => Some(path),
        }
    }
}

/// `state.redis`: where replicas share the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Redis {
    /// `redis://` or `rediss://`, host, port and perhaps the number of a database; no user and no password. Of a cluster: the nodes that are
    /// asked for the others. At least one.
    pub urls: Vec<String>,
    /// Redis Cluster.
    pub cluster: bool,
    /// The ACL user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// How many replicas there are at most; 1 to 1000.
    pub replicas: NonZeroU32,
}

/// `[log]`: how the log is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Text, JSON, or what fits the terminal.
    pub format: LogFormat,
    /// A `tracing` filter: `info`, `debug`, `sluicegate=trace`.
    pub level: String,
}

/// The log's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}
