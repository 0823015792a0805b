//! What is counted, under the prefix `sluicegate_`. Children of hot paths are looked up once, at the start.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::protocol::End;
use crate::proxy::queue::{self, Class};
use crate::proxy::rejection::CODES;

use self::accounts::Account;

/// What is counted of each account's attempts.
pub(crate) mod accounts;

/// What is counted of connecting to the upstream.
pub(crate) mod circuit;

/// What is counted of credits.
pub(crate) mod credits;

/// What is counted of reloads.
pub(crate) mod reload;

/// What is counted of the store that replicas share.
pub(crate) mod shared;

/// The page that lists them all, and the metrics, are the same.
#[cfg(test)]
mod tests;

/// Waits and durations: from a local hit to half an hour in the queue.
const BUCKETS: [f64; 12] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0];
const STATUSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Requests refused before they were classified.
const UNCLASSIFIED: &str = "refused";

type Labels = [(&'static str, String); 1];
type PerAccount = Family<Labels, Gauge>;
type PerClient = Family<Labels, Gauge>;

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    begun: Instant,
    /// Requests accepted whose answer has not ended.
    pub(crate) in_flight: Gauge,
    /// Open connections on the data port.
    pub(crate) connections: Gauge,
    /// Operations that the ledger lost or refused.
    pub(crate) ledger_failures: Counter,
    pub(crate) webhooks: WebhookMetrics,
    pub(crate) credits: credits::Metrics,
    pub(crate) circuit: circuit::Metrics,
    pub(crate) shared: shared::Metrics,
    pub(crate) reload: reload::Metrics,
    /// By class (the last: unclassified) and status class.
    requests: [[Counter; 5]; 5],
    /// By place in `CODES`, which has all of them (a test of `explain` looks).
    rejections: [Counter; CODES.len()],
    queue_wait: [Histogram; 4],
    duration: [Histogram; 4],
    accounts: accounts::Families,
    /// By how they ended.
    jobs_ended: Family<[(&'static str, &'static str); 1], Counter>,
    gauges: Gauges,
    rendering: Mutex<()>,
}

/// Counted by the deliverer and the listener of webhooks.
#[derive(Debug, Clone)]
pub(crate) struct WebhookMetrics {
    pub(crate) delivered: Counter,
    /// Attempts that will be repeated.
    pub(crate) failed: Counter,
    pub(crate) dead: Counter,
    pub(crate) pending: Gauge,
    pub(crate) rejected: Counter,
}

impl WebhookMetrics {
    fn register(registry: &mut Registry) -> Self {
        let deliveries = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "webhook_deliveries",
            "Attempts to deliver a webhook, by what came of it",
            deliveries.clone(),
        );
        let (pending, rejected) = (Gauge::default(), Counter::default());
        registry.register("webhook_pending", "Webhooks that are due and not delivered", pending.clone());
        registry.register("webhook_rejected", "Calls at webhooks.listen without a valid signature", rejected.clone());
        let [delivered, failed, dead] =
            ["delivered", "failed", "dead"].map(|outcome| deliveries.get_or_create_owned(&[("outcome", outcome)]));
        Self { delivered, failed, dead, pending, rejected }
    }
}

/// What only the moment knows.
pub(crate) struct Levels<'a> {
    pub(crate) clients: Vec<ClientLevel<'a>>,
    pub(crate) jobs_uncertain: usize,
    /// How many, and the bytes of their answers.
    pub(crate) remembered: (usize, usize),
    pub(crate) held_bytes: u64,
    pub(crate) ready: bool,
}

/// What a client has at the moment.
pub(crate) struct ClientLevel<'a> {
    pub(crate) name: &'a str,
    pub(crate) waiting: usize,
    pub(crate) jobs_live: u32,
}

/// Set when they are read.
#[derive(Default)]
struct Gauges {
    window_used: PerAccount,
    window_limit: PerAccount,
    window_remaining: PerAccount,
    jobs_live: PerAccount,
    jobs_limit: PerAccount,
    waiting: PerAccount,
    paced: PerAccount,
    drift: PerAccount,
    client_waiting: PerClient,
    client_jobs_live: PerClient,
    up: Gauge<f64, AtomicU64>,
    jobs_uncertain: Gauge,
    jobs_remembered: Gauge,
    remembered_answers: Gauge,
    held_bodies: Gauge,
    ready: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("sluicegate");
        let gauges = Gauges::default();
        gauges.register(&mut registry);
        let (in_flight, connections) = (Gauge::default(), Gauge::default());
        registry.register("in_flight", "Requests whose answer has not ended", in_flight.clone());
        registry.register("connections", "Open connections on the data port", connections.clone());
        let webhooks = WebhookMetrics::register(&mut registry);
        let ledger_failures = Counter::default();
        registry.register("ledger_failures", "Writes to the ledger that failed", ledger_failures.clone());
        let credits = credits::Metrics::register(&mut registry);
        let circuit = circuit::Metrics::register(&mut registry);
        let jobs_ended = Family::default();
        registry.register("jobs_ended", "Jobs seen to end, or given up", jobs_ended.clone());
        let shared = shared::Metrics::register(&mut registry);
        let reload = reload::Metrics::register(&mut registry);
        let info = Family::<[(&str, &str); 1], Gauge>::default();
        info.get_or_create_owned(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The running version", info);

        let requests = Family::<[(&str, &str); 2], Counter>::default();
        registry.register("requests", "Finished requests, by class and status class", requests.clone());
        let rejections = Family::<[(&str, &str); 1], Counter>::default();
        registry.register("rejections", "Answers of the proxy itself, by code", rejections.clone());
        let rejections = CODES.map(|code| rejections.get_or_create_owned(&[("code", code)]));
        let classes = [0, 1, 2, 3, 4].map(|class| Class::ALL.get(class).map_or(UNCLASSIFIED, |class| class.name()));
        let requests = classes
            .map(|class| STATUSES.map(|status| requests.get_or_create_owned(&[("class", class), ("status", status)])));
        let histograms = |registry: &mut Registry, name: &str, help: &str| {
            let family = Family::<[(&str, &str); 1], Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            Class::ALL.map(|class| family.get_or_create_owned(&[("class", class.name())]))
        };
        Self {
            queue_wait: histograms(&mut registry, "queue_wait", "Time in the queue"),
            duration: histograms(&mut registry, "request_duration", "From a request's head to its answer's end"),
            accounts: accounts::Families::register(&mut registry),
            registry,
            begun: Instant::now(),
            jobs_ended,
            in_flight,
            connections,
            ledger_failures,
            webhooks,
            credits,
            circuit,
            shared,
            reload,
            requests,
            rejections,
            gauges,
            rendering: Mutex::default(),
        }
    }

    /// A request has ended.
    pub(crate) fn finished(
        &self,
        class: Option<Class>,
        status: StatusCode,
        code: Option<&'static str>,
        queued: Duration,
        took: Duration,
    ) {
        let status = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.requests[class.map_or(4, |class| class as usize)][status].inc();
        if let Some(place) = code.and_then(|code| CODES.iter().position(|known| *known == code)) {
            self.rejections[place].inc();
        }
        if let Some(class) = class {
            self.queue_wait[class as usize].observe(queued.as_secs_f64());
            self.duration[class as usize].observe(took.as_secs_f64());
        }
    }

    /// Counts for the account of this name; two of one name count together.
    pub(crate) fn account(&self, name: &str) -> Account {
        self.accounts.of(name)
    }

    /// Answers of the proxy itself so far, by code; none that is zero.
    pub(crate) fn rejected(&self) -> BTreeMap<&'static str, u64> {
        let counted = CODES.into_iter().zip(self.rejections.iter().map(Counter::get));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// Jobs so far, by how they ended; none that is zero.
    pub(crate) fn ended(&self) -> BTreeMap<&'static str, u64> {
        let counted = |end: End| Some((end.name(), self.jobs_ended.get(&[("end", end.name())])?.get()));
        End::ALL.into_iter().filter_map(counted).collect()
    }

    /// How long it has been counting.
    pub(crate) fn uptime(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A job has ended.
    pub(crate) fn job_ended(&self, end: End) {
        self.jobs_ended.get_or_create_owned(&[("end", end.name())]).inc();
    }

    /// Everything as `OpenMetrics` text, with gauges as they are now.
    pub(crate) fn render(&self, accounts: &[(String, Arc<queue::Account>)], levels: &Levels<'_>) -> String {
        // One at a time, so that nobody reads between the clearing and the setting.
        let _alone = self.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        self.gauges.up.set(self.uptime().as_secs_f64());
        // Accounts and limits come and go with the configuration.
        self.gauges.clear();
        self.gauges.set(accounts, levels);
        for (name, account) in accounts {
            if let Some(view) = account.shared_view() {
                self.shared.set(name, &view);
            }
        }
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Gauges {
    fn register(&self, registry: &mut Registry) {
        registry.register("window_used", "Attempts the upstream may be counting", self.window_used.clone());
        registry.register("window_limit", "Attempts the plan allows in a window", self.window_limit.clone());
        registry.register("window_remaining", "Attempts that could leave now", self.window_remaining.clone());
        registry.register("jobs_live", "Job slots taken", self.jobs_live.clone());
        registry.register("jobs_limit", "Job slots of the plan", self.jobs_limit.clone());
        registry.register("queue_waiting", "Requests waiting for their turn", self.waiting.clone());
        registry.register("paced", "1 where attempts are evenly spaced", self.paced.clone());
        registry.register("drift", "Attempts of others on the same key", self.drift.clone());
        registry.register("client_waiting", "Requests of a client waiting for their turn", self.client_waiting.clone());
        registry.register("client_jobs_live", "Job slots that a client has taken", self.client_jobs_live.clone());
        registry.register_with_unit("uptime", "Since the parts were built", Unit::Seconds, self.up.clone());
        registry.register("jobs_uncertain", "Creates of unknown outcome that hold a slot", self.jobs_uncertain.clone());
        registry.register("jobs_remembered", "Ended jobs whose polls cost nothing", self.jobs_remembered.clone());
        let help = "Answers of ended jobs that are remembered";
        registry.register_with_unit("remembered_answers", help, Unit::Bytes, self.remembered_answers.clone());
        registry.register_with_unit("held_bodies", "Request bodies held", Unit::Bytes, self.held_bodies.clone());
        registry.register("ready", "1 while new work is taken", self.ready.clone());
    }

    fn clear(&self) {
        let Self { window_used, window_limit, window_remaining, jobs_live, jobs_limit, waiting, paced, drift, .. } =
            self;
        for gauge in [window_used, window_limit, window_remaining, jobs_live, jobs_limit, waiting, paced, drift] {
            gauge.clear();
        }
        self.client_waiting.clear();
        self.client_jobs_live.clear();
    }

    fn set(&self, accounts: &[(String, Arc<queue::Account>)], levels: &Levels<'_>) {
        for (name, account) in accounts {
            let now = account.snapshot();
            let set = |gauge: &PerAccount, value: u32| {
                gauge.get_or_create_owned(&[("account", name.clone())]).set(i64::from(value));
            };
            set(&self.window_used, now.used);
            set(&self.jobs_live, now.live);
            set(&self.waiting, u32::try_from(now.waiting).unwrap_or(u32::MAX));
            set(&self.paced, u32::from(now.paced));
            set(&self.drift, now.drift);
            if let Some(view) = now.view {
                set(&self.window_remaining, view.remaining);
            }
            if let Some(limit) = now.limit {
                set(&self.window_limit, limit);
            }
            if let Some(limit) = now.jobs_limit {
                set(&self.jobs_limit, limit);
            }
        }
        for client in &levels.clients {
            let labels = [("client", client.name.to_owned())];
            let waiting = i64::try_from(client.waiting).unwrap_or(i64::MAX);
            self.client_waiting.get_or_create_owned(&labels).set(waiting);
            self.client_jobs_live.get_or_create_owned(&labels).set(i64::from(client.jobs_live));
        }
        let count = |gauge: &Gauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        count(&self.jobs_uncertain, levels.jobs_uncertain);
        count(&self.jobs_remembered, levels.remembered.0);
        count(&self.remembered_answers, levels.remembered.1);
        self.held_bodies.set(i64::try_from(levels.held_bytes).unwrap_or(i64::MAX));
        self.ready.set(i64::from(levels.ready));
    }
}
