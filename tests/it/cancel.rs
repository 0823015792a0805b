//! Callers that hang up at any point: nothing they took is lost, and no job that was paid for.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::mock::{Options, RunTime};
use tokio::time::{sleep, timeout};

use crate::support::client::{With, request};
use crate::support::{NOTHING, Setup, create, get, poll, post};

#[tokio::test(start_paused = true)]
async fn ten_thousand_hangups_at_random_points_leak_nothing() {
    let setup = Setup {
        mock: Options {
            requests: Some(6000),
            window: Duration::from_secs(6),
            concurrent_jobs: Some(200),
            run_time: RunTime::Uniform(Duration::from_millis(10), Duration::from_millis(400)),
            count_delay: Duration::from_millis(2),
            count_jitter: Duration::from_millis(20),
            answer_delay: Duration::from_millis(15),
            ..Options::default()
        },
        plan: "requests = 6000\nper = \"6s\"\nconcurrent_jobs = 200",
        toml: "[queue]\nmax_waiting = 5000\n[models.flux-schnell]\npoll = \"100ms\"",
        ..Setup::default()
    };
    let site = Arc::new(setup.memory());
    site.wires.delay(Duration::from_millis(5));
    let mut dice = fastrand::Rng::with_seed(7);
    let mut callers = Vec::new();
    for n in 0..10_000 {
        let call = match dice.u8(0..20) {
            0..10 => create(),
            10..13 => create().with("idempotency-key", &format!("order-{}", n / 40)),
            13..15 => post("/v1/echo", vec![1; 5_000]),
            15 => request("POST", "/v1/predictions/upload", vec![b'a'; (1 << 20) + 1]),
            16..18 => poll("nothing"),
            _ => get("/v1/sse?events=5&gap_ms=10"),
        };
        let call = site.send(call);
        let patience = Duration::from_micros(dice.u64(0..if n % 2 == 0 { 60_000 } else { 2_000_000 }));
        callers.push(tokio::spawn(timeout(patience, call)));
        if n % 25 == 0 {
            sleep(Duration::from_millis(dice.u64(0..40))).await;
        }
    }
    for caller in callers {
        let _ = caller.await.expect("no caller panics");
    }
    let usage = site.settled().await;
    assert_eq!(usage, NOTHING);
    let stats = site.mock.stats();
    assert!(stats.max_in_window <= 6000 && stats.jobs_live_peak <= 200, "{stats:?}");
    assert_eq!((stats.refused_rate_429, stats.refused_job_429), (0, 0));
    assert!(stats.creates_accepted > 500, "{stats:?}");
}

/// A slot per accepted job, as long as it runs: a caller that leaves right after sending included.
#[tokio::test(start_paused = true)]
async fn every_job_of_a_caller_that_left_is_known() {
    let setup = Setup {
        mock: Options {
            requests: None,
            concurrent_jobs: None,
            run_time: RunTime::Fixed(Duration::from_secs(36_000)),
            count_jitter: Duration::from_millis(30),
            answer_delay: Duration::from_millis(30),
            ..Options::default()
        },
        plan: "concurrent_jobs = 1000",
        toml: "[jobs]\nmax_age = \"23h\"",
        ..Setup::default()
    };
    let site = setup.memory();
    for n in 0..500 {
        let _ = timeout(Duration::from_micros(n * 200), site.send(create())).await;
    }
    sleep(Duration::from_secs(1)).await;
    let (stats, usage) = (site.mock.stats(), site.proxy.usage());
    assert!(stats.creates_accepted > 100, "{stats:?}");
    assert_eq!(u64::from(usage.jobs_live), stats.creates_accepted);
    assert_eq!((usage.jobs_uncertain, usage.in_flight), (0, 0));
    let sent = site.mock.requests().iter().filter(|seen| seen.method == "POST").count();
    assert_eq!(sent as u64, stats.creates_accepted, "who left before was never sent");
}
