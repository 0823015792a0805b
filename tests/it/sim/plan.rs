//! What a seed means: limits, callers, faults, deaths of the proxy, steps of the clock.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use sluicegate::mock::{Counter, Fault, Options, Planned, RunTime};

use super::net::Weather;
use crate::support::KEY;

/// A run, all of it.
pub struct Plan {
    pub seed: u64,
    /// The account's plan, and the rest of `proxy.toml`.
    pub limits: String,
    pub toml: String,
    pub mock: Options,
    pub requests: u32,
    pub jobs: u32,
    pub weather: Weather,
    pub faults: Vec<Planned>,
    pub callers: Vec<Caller>,
    /// When the proxy dies, and for how long it stays so. Only with state on disk.
    pub deaths: Vec<(Duration, Duration)>,
    /// When the wall clock steps, and by how many seconds.
    pub steps: Vec<(Duration, i64)>,
    pub creates: &'static str,
    pub priced: bool,
}

/// One caller and its habits.
#[derive(Debug, Clone)]
pub struct Caller {
    pub starts: Duration,
    /// Its token, where there are clients.
    pub token: Option<&'static str>,
    pub habit: Habit,
    pub max_wait: Option<u32>,
    /// Speaks HTTP/2, one stream a connection.
    pub http2: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Habit {
    /// Creates, and polls until the end. `wait`: with `Prefer`, so many seconds. `cancel`: after so long.
    Follows { wait: Option<u32>, fails: bool, cancel: Option<Duration> },
    /// Creates and hangs up after so long.
    Leaves(Duration),
    /// Creates with an idempotency key, tries again with it, and `twins` do so at once.
    Keyed { twins: u32, tries: u32 },
    /// Creates by a form, in whose `model` part the proxy has to read, and polls until the end.
    Uploads { bytes: usize },
    /// A chat whose answer is streamed.
    Chats,
    /// Something that is no job.
    Echo,
    /// Asks for a job that nobody has.
    Stranger,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let requests = rng.u32(3..=30);
        let jobs = rng.u32(1..=5);
        let window = Duration::from_millis([2_000, 5_000, 10_000, 60_000][rng.usize(..4)]);
        let jitter = Duration::from_millis(rng.u64(200..=800));
        let lag = jitter.mul_f64(0.4 * rng.f64());
        let local = rng.u32(..10) < 7;
        let priced = rng.bool();
        let creates = ["documented", "safe", "never"][rng.usize(..3)];
        let clients = if rng.bool() { 2 } else { 0 };
        let mut limits = format!(
            "requests = {requests}\nper = \"{}ms\"\njitter = \"{}ms\"\nconcurrent_jobs = {jobs}\npacing = \"{}\"\n",
            window.as_millis(),
            jitter.as_millis(),
            ["auto", "auto", "paced", "burst"][rng.usize(..4)],
        );
        if priced {
            let _ = writeln!(limits, "credits_per_day = {}", rng.u32(5..60));
        }
        let mut toml = format!(
            "[upstream]\nattempt_timeout = \"{}s\"\ntotal_timeout = \"{}s\"\n[queue]\nmax_wait = \"{}s\"\nmax_waiting = {}\n\
             [retry]\ncreates = \"{creates}\"\nmax_attempts = {}\n[jobs]\nuncertain = \"2m\"\nhold = \"{}ms\"\nresult_ttl = \"{}s\"\n",
            rng.u32(5..40),
            rng.u32(40..200),
            [1, 20, 600, 1800][rng.usize(..4)],
            [3, 20, 1000][rng.usize(..3)],
            rng.u32(1..=5),
            rng.u32(0..4_000),
            rng.u32(1..600),
        );
        if priced {
            toml.push_str("[models.\"flux-schnell\"]\ncredits = 1\n");
        }
        if clients > 0 {
            let _ = write!(
                toml,
                "[plans.share]\nrequests = {}\nper = \"{}ms\"\nconcurrent_jobs = {}\n[[clients]]\nname = \"web\"\ntoken = {{ env = \"WEB_TOKEN\" }}\n\
                 weight = {}\n[[clients]]\nname = \"batch\"\ntoken = {{ env = \"BATCH_TOKEN\" }}\nplan = \"share\"\n",
                rng.u32(2..=requests),
                window.as_millis(),
                rng.u32(1..=jobs),
                rng.u32(1..=3),
            );
        }
        if local {
            toml.push_str("[state]\nstore = \"local\"\n");
        }
        let slowest = rng.u64(500..20_000);
        let mock = Options {
            requests: Some(requests),
            window,
            counter: [Counter::Sliding, Counter::Sliding, Counter::Fixed, Counter::Anchored][rng.usize(..4)].clone(),
            concurrent_jobs: Some(jobs),
            run_time: RunTime::Uniform(Duration::from_millis(200), Duration::from_millis(200 + slowest)),
            keys: vec![KEY.to_owned()],
            rate_headers: rng.bool(),
            count_delay: jitter.mul_f64(0.3 * rng.f64()),
            answer_delay: Duration::from_millis(rng.u64(..300)),
            seed,
            ..Options::default()
        };
        let troubled = [0, 0, 5, 20][rng.usize(..4)];
        let faults = [0, 0, 4, 12][rng.usize(..4)];
        let faults = (0..faults).map(|_| fault(rng)).collect();
        let callers = rng.u32(5..=40);
        let spread = rng.u64(..60_000);
        let callers = (0..callers).map(|_| caller(rng, spread, clients > 0)).collect();
        let deaths = if local && rng.bool() { rng.u32(1..=3) } else { 0 };
        let at = |rng: &mut Rng| Duration::from_millis(rng.u64(..spread + 40_000));
        let mut deaths: Vec<_> = (0..deaths).map(|_| (at(rng), Duration::from_millis(rng.u64(..5_000)))).collect();
        deaths.sort();
        let steps = if rng.u32(..4) == 0 { rng.u32(1..=2) } else { 0 };
        let mut steps: Vec<_> = (0..steps).map(|_| (at(rng), rng.i64(-86_400..=86_400))).collect();
        steps.sort();
        let weather = Weather { lag, troubled };
        Self { seed, limits, toml, mock, requests, jobs, weather, faults, callers, deaths, steps, creates, priced }
    }

    /// Nothing makes the upstream do what it does not tell.
    pub fn tells_the_truth(&self) -> bool {
        !self.faults.iter().any(|planned| matches!(planned.fault, Fault::Status { execute: true, .. }))
    }
}

fn caller(rng: &mut Rng, spread: u64, clients: bool) -> Caller {
    let habit = match rng.u32(..24) {
        0..=8 => Habit::Follows {
            wait: (rng.u32(..3) == 0).then(|| rng.u32(..40)),
            fails: rng.u32(..8) == 0,
            cancel: (rng.u32(..8) == 0).then(|| Duration::from_millis(rng.u64(..5_000))),
        },
        9..=11 => Habit::Leaves(Duration::from_millis(rng.u64(..8_000))),
        12..=15 => Habit::Keyed { twins: rng.u32(1..=3), tries: rng.u32(1..=4) },
        16..=18 => Habit::Echo,
        19..=20 => Habit::Uploads { bytes: rng.usize(..200_000) },
        21..=22 => Habit::Chats,
        _ => Habit::Stranger,
    };
    Caller {
        starts: Duration::from_millis(rng.u64(..=spread)),
        token: clients.then(|| ["web-token", "batch-token"][rng.usize(..2)]),
        habit,
        max_wait: (rng.u32(..4) == 0).then(|| rng.u32(..30)),
        http2: rng.u32(..4) == 0,
    }
}

fn fault(rng: &mut Rng) -> Planned {
    let create = rng.bool();
    let (method, path) = match (create, rng.u32(..8)) {
        (_, 0) => ("POST", "/llm/"),
        (true, _) => ("POST", "/v1/predictions"),
        (false, _) => ("GET", "/v1/"),
    };
    let status = |code, execute| Fault::Status { code, headers: BTreeMap::new(), execute };
    let fault = match rng.u32(..16) {
        0 => Fault::ResetBefore,
        1 => Fault::ResetAfter,
        2 => Fault::HalfBody,
        3 => Fault::Hang { execute: rng.bool() },
        4 | 5 => Fault::SlowHead { delay: Duration::from_millis(rng.u64(..30_000)) },
        6 => Fault::Garbage { execute: rng.bool() },
        7 => Fault::CloseIdle,
        8 => Fault::OtherBody { body: ["", "{", "[]", "{\"status\":7}", "<html>"][rng.usize(..5)].to_owned() },
        9 => {
            let headers = BTreeMap::from([("retry-after".to_owned(), rng.u32(..10).to_string())]);
            Fault::Status { code: [429, 503][rng.usize(..2)], headers, execute: false }
        }
        10 => status(429, false),
        11 => status(if create { 422 } else { 403 }, false),
        _ => status([408, 500, 502, 503, 504][rng.usize(..5)], false),
    };
    let fault = match fault {
        Fault::Status { code: code @ (408 | 500 | 502 | 504), headers, .. } => {
            Fault::Status { code, headers, execute: create && rng.u32(..3) == 0 }
        }
        other => other,
    };
    fault.on(method, path).after(rng.u32(..6)).times(rng.u32(1..=2))
}
