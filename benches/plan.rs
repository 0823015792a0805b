//! Makespans of whole workloads, in paused time, with the imitated API as the judge: no proxy with the vendor's habits, no proxy with a
//! fixed interval, this proxy, and an oracle that knows every run time. `cargo bench --bench plan [-- PART OF A NAME]`.

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts of a few hundred")]

#[allow(dead_code, unreachable_pub, missing_docs, clippy::pedantic, reason = "made for the tests")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sluicegate::bench::{Limits, makespan};
use sluicegate::mock::{Counter, Dialect, Options, RunTime};
use support::{Answer, Setup, Site, get, post};
use tokio::io::duplex;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// What is to be done, under which plan.
struct Work {
    name: &'static str,
    /// Run times in seconds, by job, and the model's name.
    jobs: Vec<(&'static str, f64)>,
    callers: usize,
    plan: &'static str,
    limits: Limits,
    /// Jobs of the same kind that went before, so that run times are learned.
    before: usize,
}

/// How the callers reach the API.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Three tries at 1 s and 2 s; polls at once, then after 1 s, growing by half up to 10 s.
    Direct,
    /// The same, but polls every two seconds.
    DirectFixed,
    /// The vendor's habits, through the proxy.
    Proxy,
}

/// What came of it.
struct Done {
    secs: f64,
    lost: usize,
    attempts: u64,
    refused: u64,
}

const FREE: (&str, Limits) = (
    "requests_per_minute = 60\nconcurrent_jobs = 5",
    Limits { requests: 60, window: Duration::from_secs(60), jobs: 5 },
);
const PRO: (&str, Limits) = (
    "requests_per_minute = 300\nconcurrent_jobs = 20",
    Limits { requests: 300, window: Duration::from_secs(60), jobs: 20 },
);

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let same = |name, secs, jobs, callers, plan: (&'static str, Limits), before| Work {
        name,
        jobs: vec![("flux-schnell", secs); jobs],
        callers,
        plan: plan.0,
        limits: plan.1,
        before,
    };
    let mut works = vec![
        same("50 x 2.5 s, 5 callers, Free", 2.5, 50, 5, FREE, 0),
        same("50 x 2.5 s, 20 callers, Free", 2.5, 50, 20, FREE, 0),
        same("190 x 2.5 s, 20 callers, Free", 2.5, 190, 20, FREE, 0),
        same("60 x 30 s, 40 callers, Pro", 30.0, 60, 40, PRO, 0),
        same("50 x 10 s, 20 callers, Free, cold", 10.0, 50, 20, FREE, 0),
        same("50 x 10 s, 20 callers, Free, learned", 10.0, 50, 20, FREE, 10),
    ];
    // Neighbours of the above, so that nothing is tuned to their numbers.
    works.extend([
        same("50 x 2.7 s, 5 callers, Free", 2.7, 50, 5, FREE, 0),
        same("50 x 2.7 s, 20 callers, Free", 2.7, 50, 20, FREE, 0),
        same("50 x 9 s, 20 callers, Free, cold", 9.0, 50, 20, FREE, 0),
        same("50 x 9 s, 20 callers, Free, learned", 9.0, 50, 20, FREE, 10),
        same("50 x 11 s, 20 callers, Free, learned", 11.0, 50, 20, FREE, 10),
    ]);
    works.extend((1..=5).map(log_normal));
    works.push(doubling());
    works.retain(|work| work.name.contains(&wanted));
    println!(
        "{:<37} {:>6} | {:>20} | {:>21} | {:>6} {:>4} {:>8} {:>4} {:>6} | {:>6} {:>4} {:>8} {:>4} {:>6}",
        "",
        "oracle",
        "no proxy: secs, lost",
        "fixed 2 s: secs, lost",
        "proxy",
        "lost",
        "attempts",
        "429s",
        "score",
        "told",
        "lost",
        "attempts",
        "429s",
        "score"
    );
    for work in &works {
        let run_times: Vec<Duration> = work.jobs.iter().map(|(_, secs)| Duration::from_secs_f64(*secs)).collect();
        let oracle = makespan(&run_times, work.limits).as_secs_f64();
        let direct = run(work, Way::Direct, Dialect::B);
        let fixed = run(work, Way::DirectFixed, Dialect::B);
        let proxy = run(work, Way::Proxy, Dialect::B);
        let told = run(work, Way::Proxy, Dialect::A);
        let jobs = work.jobs.len() as f64;
        println!(
            "{:<37} {oracle:>6.1} | {:>13.1} {:>6} | {:>14.1} {:>6} | {:>6.1} {:>4} {:>8.2} {:>4} {:>6.3} | {:>6.1} {:>4} {:>8.2} {:>4} {:>6.3}",
            work.name,
            direct.secs,
            direct.lost,
            fixed.secs,
            fixed.lost,
            proxy.secs,
            proxy.lost,
            proxy.attempts as f64 / jobs,
            proxy.refused,
            oracle / proxy.secs,
            told.secs,
            told.lost,
            told.attempts as f64 / jobs,
            told.refused,
            oracle / told.secs,
        );
    }
}

/// Three models, medians 2, 5 and 12 s, σ = 0.4.
fn log_normal(seed: u64) -> Work {
    let mut random = fastrand::Rng::with_seed(seed);
    let models = [("model-a", 2.0_f64), ("model-b", 5.0), ("model-c", 12.0)];
    let jobs = (0..200).map(|_| {
        let (model, median) = models[random.usize(0..3)];
        let (u, v) = (random.f64().max(1e-12), random.f64());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        (model, median * (0.4 * normal).exp())
    });
    let name =
        ["log-normal, seed 1", "log-normal, seed 2", "log-normal, seed 3", "log-normal, seed 4", "log-normal, seed 5"];
    let name = name[(seed - 1) as usize % 5];
    Work { name, jobs: jobs.collect(), callers: 20, plan: FREE.0, limits: FREE.1, before: 0 }
}

/// A model whose jobs take twice as long from the middle on.
fn doubling() -> Work {
    let jobs = (0..100).map(|n| ("drifts", if n < 50 { 4.0 } else { 8.0 })).collect();
    Work { name: "100 x 4 s, then 8 s, 20 callers, Free", jobs, callers: 20, plan: FREE.0, limits: FREE.1, before: 0 }
}

/// Dialect A tells the run time of a finished job, B does not.
fn run(work: &Work, way: Way, dialect: Dialect) -> Done {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let limits = work.limits;
        let mock = Options {
            requests: Some(limits.requests as u32),
            window: limits.window,
            counter: Counter::Sliding,
            concurrent_jobs: Some(limits.jobs as u32),
            run_time: RunTime::Fixed(Duration::from_secs(1)),
            dialect,
            answer_delay: Duration::from_millis(5),
            ..Options::default()
        };
        let setup = Setup { mock, plan: work.plan, toml: "[queue]\nmax_wait = \"1h\"", ..Setup::default() };
        let site = Arc::new(setup.memory());
        let before: VecDeque<_> = work.jobs.iter().copied().take(work.before).collect();
        all(&site, way, before, work.callers).await;
        if work.before > 0 {
            sleep(Duration::from_secs(90)).await; // the window is fresh again
        }
        let counted = site.mock.stats().attempts;
        let begun = Instant::now();
        let lost = all(&site, way, work.jobs.iter().copied().collect(), work.callers).await;
        let stats = site.mock.stats();
        Done {
            secs: begun.elapsed().as_secs_f64(),
            lost,
            attempts: stats.attempts - counted,
            refused: stats.refused_rate_429 + stats.refused_job_429,
        }
    })
}

/// Does the jobs with so many callers, each taking the next when it is through with one. Returns how many were lost.
async fn all(site: &Arc<Site>, way: Way, jobs: VecDeque<(&'static str, f64)>, callers: usize) -> usize {
    let queue = Arc::new(Mutex::new(jobs));
    let callers = (0..callers).map(|_| {
        let (site, queue) = (Arc::clone(site), Arc::clone(&queue));
        tokio::spawn(async move {
            let mut lost = 0;
            loop {
                let Some((model, secs)) = queue.lock().await.pop_front() else { return lost };
                if !one(&site, way, model, secs).await {
                    lost += 1;
                }
            }
        })
    });
    let mut lost = 0;
    for caller in callers.collect::<Vec<_>>() {
        lost += caller.await.expect("a caller");
    }
    lost
}

/// One job by the vendor's habits. True if its end was seen.
async fn one(site: &Site, way: Way, model: &str, secs: f64) -> bool {
    let body = serde_json::json!({"model": model, "input": {"prompt": "x", "run_time_ms": secs * 1e3}});
    let created = tries(site, way, || post("/v1/predictions", body.to_string())).await;
    let Some(created) = created else { return false };
    let id = created["job_id"].as_str().or(created["id"].as_str()).expect("an id").to_owned();
    let mut wait = Duration::from_secs(1);
    let begun = Instant::now();
    // The vendor's loop gives up after five minutes.
    while begun.elapsed() < Duration::from_secs(300) {
        let Some(state) = tries(site, way, || get(&format!("/v1/predictions/{id}"))).await else { return false };
        if state["status"] == "completed" || state["status"] == "succeeded" {
            return true;
        }
        if way == Way::DirectFixed {
            sleep(Duration::from_secs(2)).await;
        } else {
            sleep(wait).await;
            wait = wait.mul_f64(1.5).min(Duration::from_secs(10));
        }
    }
    false
}

/// Three tries, waiting 1 s and 2 s between them.
async fn tries(
    site: &Site,
    way: Way,
    request: impl Fn() -> http::Request<http_body_util::Full<bytes::Bytes>>,
) -> Option<Value> {
    for pause in [1, 2, 0] {
        let answer = send(site, way, request()).await;
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).ok();
        }
        sleep(Duration::from_secs(pause)).await;
    }
    None
}

async fn send(site: &Site, way: Way, mut request: http::Request<http_body_util::Full<bytes::Bytes>>) -> Answer {
    if way == Way::Proxy {
        return site.send(request).await;
    }
    request.headers_mut().insert("x-api-key", http::HeaderValue::from_static(support::KEY));
    let (near, far) = duplex(64 * 1024);
    let mock = Arc::clone(&site.mock);
    mock.serve(far);
    support::client::exchange(near, request).await
}
