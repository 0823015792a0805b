//! What is counted, under the prefix `sluicegate_`. Children of hot paths are looked up once, at the start.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::proxy::queue::{Account, Class};
use crate::proxy::quota::Refused;
use crate::proxy::retry::Outcome;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requests {
    class: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempts {
    account: String,
    class: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    account: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabel {
    account: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

type PerAccount = Family<AccountLabel, Gauge>;

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    /// Requests accepted whose answer has not ended.
    pub(crate) in_flight: Gauge,
    /// Open connections on the data port.
    pub(crate) connections: Gauge,
    requests: Family<Requests, Counter>,
    rejections: Family<Code, Counter>,
    attempts: Family<Attempts, Counter>,
    retries: Family<Reason, Counter>,
    upstream_429: Family<Reason, Counter>,
    queue_wait: [Histogram; 4],
    duration: [Histogram; 4],
    accounts: Vec<String>,
    window_used: PerAccount,
    window_limit: PerAccount,
    jobs_live: PerAccount,
    jobs_limit: PerAccount,
    waiting: PerAccount,
    paced: PerAccount,
    drift: PerAccount,
    jobs_uncertain: Gauge,
    held_bytes: Gauge,
    ready: Gauge,
}

/// Waits and durations: from a local hit to half an hour in the queue.
const BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0,
];

impl Metrics {
    /// For these accounts, by index.
    pub(crate) fn new(accounts: Vec<String>) -> Self {
        let mut registry = Registry::with_prefix("sluicegate");
        let waits = Family::<ClassLabel, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let durations = Family::<ClassLabel, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let per_class = |family: &Family<ClassLabel, Histogram>| {
            Class::ALL.map(|class| family.get_or_create_owned(&ClassLabel { class: class.name() }))
        };
        let metrics = Self {
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            requests: Family::default(),
            rejections: Family::default(),
            attempts: Family::default(),
            retries: Family::default(),
            upstream_429: Family::default(),
            queue_wait: per_class(&waits),
            duration: per_class(&durations),
            accounts,
            window_used: Family::default(),
            window_limit: Family::default(),
            jobs_live: Family::default(),
            jobs_limit: Family::default(),
            waiting: Family::default(),
            paced: Family::default(),
            drift: Family::default(),
            jobs_uncertain: Gauge::default(),
            held_bytes: Gauge::default(),
            ready: Gauge::default(),
            registry: Registry::default(),
        };
        let info = Family::<VersionLabel, Gauge<i64, std::sync::atomic::AtomicI64>>::default();
        info.get_or_create_owned(&VersionLabel {
            version: env!("CARGO_PKG_VERSION"),
        })
        .set(1);
        registry.register("build_info", "The running version", info);
        registry.register(
            "in_flight",
            "Requests whose answer has not ended",
            metrics.in_flight.clone(),
        );
        registry.register(
            "connections",
            "Open connections on the data port",
            metrics.connections.clone(),
        );
        registry.register(
            "requests",
            "Finished requests, by class and status class",
            metrics.requests.clone(),
        );
        registry.register(
            "rejections",
            "Answers of the proxy itself, by code",
            metrics.rejections.clone(),
        );
        registry.register(
            "attempts",
            "Requests sent upstream, by outcome",
            metrics.attempts.clone(),
        );
        registry.register("retries", "Attempts after the first, by cause", metrics.retries.clone());
        registry.register(
            "upstream_429",
            "429 answers of the upstream, by what they meant",
            metrics.upstream_429.clone(),
        );
        registry.register_with_unit("queue_wait", "Time in the queue", Unit::Seconds, waits);
        registry.register_with_unit(
            "request_duration",
            "From the request's head to its answer's end",
            Unit::Seconds,
            durations,
        );
        registry.register(
            "window_used",
            "Attempts the upstream may be counting",
            metrics.window_used.clone(),
        );
        registry.register(
            "window_limit",
            "Attempts the plan allows in a window",
            metrics.window_limit.clone(),
        );
        registry.register("jobs_live", "Job slots taken", metrics.jobs_live.clone());
        registry.register("jobs_limit", "Job slots of the plan", metrics.jobs_limit.clone());
        registry.register(
            "queue_waiting",
            "Requests waiting for their turn",
            metrics.waiting.clone(),
        );
        registry.register("paced", "1 where attempts are evenly spaced", metrics.paced.clone());
        registry.register("drift", "Attempts of others on the same key", metrics.drift.clone());
        registry.register(
            "jobs_uncertain",
            "Creates of unknown outcome that hold a slot",
            metrics.jobs_uncertain.clone(),
        );
        registry.register_with_unit(
            "held_bodies",
            "Request bodies held",
            Unit::Bytes,
            metrics.held_bytes.clone(),
        );
        registry.register("ready", "1 while new work is taken", metrics.ready.clone());
        Self { registry, ..metrics }
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
        let status = ["1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(status.as_u16() / 100).clamp(1, 5) - 1];
        let name = class.map_or("refused", Class::name);
        self.requests
            .get_or_create_owned(&Requests { class: name, status })
            .inc();
        if let Some(code) = code {
            self.rejections.get_or_create_owned(&Code { code }).inc();
        }
        if let Some(class) = class {
            self.queue_wait[class as usize].observe(queued.as_secs_f64());
            self.duration[class as usize].observe(took.as_secs_f64());
        }
    }

    /// An attempt has ended.
    pub(crate) fn attempt(&self, account: usize, class: Class, outcome: Outcome) {
        let labels = Attempts {
            account: self.accounts[account].clone(),
            class: class.name(),
            outcome: word(outcome),
        };
        self.attempts.get_or_create_owned(&labels).inc();
    }

    /// Another attempt follows this outcome.
    pub(crate) fn retry(&self, account: usize, outcome: Outcome) {
        let labels = Reason {
            account: self.accounts[account].clone(),
            reason: word(outcome),
        };
        self.retries.get_or_create_owned(&labels).inc();
    }

    /// The upstream answered 429.
    pub(crate) fn upstream_429(&self, account: usize, refused: Refused) {
        let reason = match refused {
            Refused::Window => "window",
            Refused::Jobs => "jobs",
        };
        self.upstream_429
            .get_or_create_owned(&Reason {
                account: self.accounts[account].clone(),
                reason,
            })
            .inc();
    }

    /// Everything as `OpenMetrics` text, with gauges as they are now.
    pub(crate) fn render(&self, accounts: &[Arc<Account>], uncertain: usize, held_bytes: u64, ready: bool) -> String {
        for account in accounts {
            let now = account.snapshot();
            let set = |gauge: &PerAccount, value: u32| {
                gauge
                    .get_or_create_owned(&AccountLabel {
                        account: account.name.clone(),
                    })
                    .set(i64::from(value));
            };
            set(&self.window_used, now.used);
            set(&self.jobs_live, now.live);
            set(&self.waiting, u32::try_from(now.waiting).unwrap_or(u32::MAX));
            set(&self.paced, u32::from(now.paced));
            set(&self.drift, now.drift);
            if let Some(limit) = now.limit {
                set(&self.window_limit, limit);
            }
            if let Some(limit) = now.jobs_limit {
                set(&self.jobs_limit, limit);
            }
        }
        self.jobs_uncertain.set(i64::try_from(uncertain).unwrap_or(i64::MAX));
        self.held_bytes.set(i64::try_from(held_bytes).unwrap_or(i64::MAX));
        self.ready.set(i64::from(ready));
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unsent => "unsent",
        Outcome::Silent => "silent",
        Outcome::Answer(status) => match status.as_u16() {
            429 => "429",
            408 => "408",
            500.. => "5xx",
            400.. => "4xx",
            300.. => "3xx",
            _ => "2xx",
        },
    }
}
