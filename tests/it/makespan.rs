//! How long whole workloads take through the proxy, beside an oracle that knows every run time: paused time, callers with the vendor's
//! habits, the imitated API as the judge. `benches/plan.rs` has the whole table; here is what must not be lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use sluicegate::bench::{Limits, makespan};
use sluicegate::mock::{Counter, Dialect, Options, RunTime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Setup, Site, get, post};

const MINUTE: Duration = Duration::from_secs(60);
const FREE: Limits = Limits { requests: 60, window: MINUTE, jobs: 5 };
const PRO: Limits = Limits { requests: 300, window: MINUTE, jobs: 20 };

/// Does jobs of these run times in seconds, after the first `before` of them and a pause if there are any. Gives the oracle's share.
async fn share(limits: Limits, callers: usize, secs: &[f64], before: usize) -> f64 {
    let mock = Options {
        requests: u32::try_from(limits.requests).ok(),
        window: limits.window,
        counter: Counter::Sliding,
        concurrent_jobs: u32::try_from(limits.jobs).ok(),
        run_time: RunTime::Fixed(Duration::from_secs(1)),
        dialect: Dialect::B,
        answer_delay: Duration::from_millis(5),
        ..Options::default()
    };
    let plan = if limits == FREE {
        "requests_per_minute = 60\nconcurrent_jobs = 5"
    } else {
        "requests_per_minute = 300\nconcurrent_jobs = 20"
    };
    let setup = Setup { mock, plan, toml: "[queue]\nmax_wait = \"1h\"", ..Setup::default() };
    let site = Arc::new(setup.memory());
    all(&site, callers, &secs[..before]).await;
    if before > 0 {
        sleep(Duration::from_secs(90)).await; // the window is fresh again
    }
    let begun = Instant::now();
    all(&site, callers, secs).await;
    let took = begun.elapsed();
    let stats = site.mock.stats();
    assert_eq!(stats.refused_rate_429 + stats.refused_job_429, 0);
    let run_times: Vec<Duration> = secs.iter().copied().map(Duration::from_secs_f64).collect();
    makespan(&run_times, limits).as_secs_f64() / took.as_secs_f64()
}

/// So many callers, each taking the next job when it is through with one.
async fn all(site: &Arc<Site>, callers: usize, secs: &[f64]) {
    let jobs = Arc::new(Mutex::new(secs.iter().copied().collect::<VecDeque<f64>>()));
    let mut working = JoinSet::new();
    for _ in 0..callers {
        let (site, jobs) = (Arc::clone(site), Arc::clone(&jobs));
        let next = move || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        working.spawn(async move {
            while let Some(secs) = next() {
                one(&site, secs).await;
            }
        });
    }
    while let Some(done) = working.join_next().await {
        done.expect("every job is done");
    }
}

/// Polls at once, then after a second, growing by half up to ten.
async fn one(site: &Site, secs: f64) {
    let body = json!({"model": "flux-schnell", "input": {"prompt": "x", "run_time_ms": secs * 1e3}});
    let created = site.send(post("/v1/predictions", body.to_string())).await;
    let id = created.json()["job_id"].as_str().expect("an id").to_owned();
    let mut wait = Duration::from_secs(1);
    loop {
        let state = site.send(get(&format!("/v1/predictions/{id}"))).await;
        if state.json()["status"] == "completed" {
            return;
        }
        sleep(wait).await;
        wait = wait.mul_f64(1.5).min(Duration::from_secs(10));
    }
}

fn at_least(goal: f64, share: f64) {
    assert!(share >= goal, "{share:.3} of the oracle, not {goal}");
}

#[tokio::test(start_paused = true)]
async fn short_jobs_are_done_in_the_oracle_s_time_and_a_twentieth() {
    for callers in [5, 20] {
        at_least(0.95, share(FREE, callers, &[2.5; 50], 0).await);
    }
    at_least(0.98, share(FREE, 20, &[2.5; 190], 0).await);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_need_all_attempts_and_all_slots_are_learned_in_ten() {
    at_least(0.88, share(FREE, 20, &[10.0; 50], 0).await);
    at_least(0.95, share(FREE, 20, &[10.0; 50], 10).await);
    at_least(0.93, share(FREE, 20, &[9.0; 50], 10).await);
}

#[tokio::test(start_paused = true)]
async fn slots_do_not_wait_for_news_where_attempts_are_plenty() {
    at_least(0.95, share(PRO, 40, &[30.0; 60], 0).await);
    // Their callers sleep for up to ten seconds when the last ones end.
    for secs in [20.5, 26.0, 33.0] {
        at_least(0.87, share(PRO, 40, &[secs; 60], 0).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_time_that_doubles_is_followed() {
    let secs = [[4.0; 50], [8.0; 50]].concat();
    at_least(0.90, share(FREE, 20, &secs, 0).await);
}
