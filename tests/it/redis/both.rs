//! One list of rules for both stores: what holds for one process alone holds for one that shares its plan. The same calls, once with each.

use std::collections::BTreeMap;
use std::time::Duration;

use sluicegate::mock::{Fault, Options, RunTime};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::client::{With, request};
use crate::support::redis::{Fleet, Redis, wait_for};
use crate::support::{NOTHING, Setup, Site, create, get, poll};

const PLAN: &str = "requests = 10\nper = \"2s\"\nconcurrent_jobs = 2";
const PACED: &str = "requests = 10\nper = \"2s\"\npacing = \"paced\"";
const W: Duration = Duration::from_secs(2);
/// How long an outcome that nobody knows holds its slot.
const UNCERTAIN: Duration = Duration::from_millis(1_500);
const TABLES: &str = "[jobs]\nuncertain = \"1500ms\"\n";

fn options() -> Options {
    Options {
        requests: Some(10),
        window: W,
        concurrent_jobs: Some(2),
        run_time: RunTime::Fixed(Duration::from_secs(3600)),
        ..Options::default()
    }
}

/// One process alone.
fn alone(plan: &'static str) -> Site {
    Setup { mock: options(), plan, toml: TABLES, ..Setup::default() }.memory()
}

/// One of two replicas, once both are members of a store that is past its first hold.
async fn shared(redis: &Redis, plan: &'static str) -> [Site; 2] {
    let fleet = Fleet { more: TABLES, ..Fleet::new(options(), plan, 2) };
    let sites = [fleet.replica(&redis.url()), fleet.replica(&redis.url())];
    for site in &sites {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    sites
}

/// Runs each rule with one process alone and with one of two replicas.
macro_rules! on_both_stores {
    ($($plan:ident: $($name:ident)+;)+) => {
        mod alone {
            $($(#[tokio::test] async fn $name() { super::$name(&super::alone(super::$plan)).await; })+)+
        }
        mod shared {
            $($(#[tokio::test] async fn $name() {
                let redis = super::Redis::start().await;
                let [site, _other] = super::shared(&redis, super::$plan).await;
                super::$name(&site).await;
            })+)+
        }
    };
}

on_both_stores! {
    PLAN:
        the_burst_goes_at_once_and_the_next_waits_a_window
        without_patience_it_is_refused_at_once
        who_comes_back_when_told_is_served
        those_who_come_together_are_not_refused_for_each_other
        a_third_job_waits_until_one_ends
        a_cancelled_job_gives_its_slot_back
        a_refused_create_gives_its_slot_back
        a_429_keeps_everyone_waiting
        a_create_without_an_answer_keeps_its_slot_for_a_while
        who_hangs_up_in_the_queue_takes_nothing;
    PACED:
        paced_attempts_are_evenly_spaced;
}

fn now() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    get("/v1/echo").with("sluicegate-max-wait", "0s")
}

async fn the_burst_goes_at_once_and_the_next_waits_a_window(site: &Site) {
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    }
    assert!(begun.elapsed() < W / 2);
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    assert!(begun.elapsed() >= W);
    let stats = site.mock.stats();
    assert_eq!((stats.max_in_window, stats.refused_rate_429), (10, 0));
}

async fn without_patience_it_is_refused_at_once(site: &Site) {
    for left in (0..10).rev() {
        let answer = site.send(now()).await;
        assert_eq!((answer.status.as_u16(), answer.number("x-ratelimit-remaining")), (200, left));
    }
    let begun = Instant::now();
    let refused = site.send(now()).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "rate_limited".to_owned()));
    assert!((1..=2).contains(&refused.number("retry-after")), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert_eq!(site.mock.stats().attempts, 10);
}

async fn those_who_come_together_are_not_refused_for_each_other(site: &Site) {
    let all: Vec<_> = (0..12).map(|_| site.spawn(now())).collect();
    let mut codes = Vec::new();
    for one in all {
        codes.push(one.await.expect("no panic").code());
    }
    codes.sort();
    assert_eq!(codes[..10], [const { String::new() }; 10], "{codes:?}");
    assert_eq!(codes[10..], ["rate_limited", "rate_limited"]);
}

async fn a_third_job_waits_until_one_ends(site: &Site) {
    let first = site.start_job().await;
    site.start_job().await;
    let refused = site.send(create().with("sluicegate-max-wait", "0s")).await;
    assert_eq!(refused.code(), "job_limit", "{refused:?}");
    let third = site.spawn(create());
    sleep(Duration::from_millis(500)).await;
    assert!(!third.is_finished());
    site.mock.finish(&first);
    site.send(poll(&first).with("prefer", "wait=20")).await;
    assert_eq!(third.await.expect("no panic").status, 201);
    let stats = site.mock.stats();
    assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (2, 0));
}

async fn a_refused_create_gives_its_slot_back(site: &Site) {
    let refusal = Fault::Status { code: 422, headers: BTreeMap::new(), execute: false };
    for _ in 0..3 {
        site.mock.fault_next("POST", "/v1/predictions", refusal.clone());
        assert_eq!(site.send(create()).await.status, 422);
    }
    assert_eq!(site.proxy.usage(), NOTHING);
    site.start_job().await;
    site.start_job().await;
}

async fn a_429_keeps_everyone_waiting(site: &Site) {
    let headers = BTreeMap::from([("retry-after".to_owned(), "2".to_owned())]);
    site.mock.fault_next("GET", "/v1/echo", Fault::Status { code: 429, headers, execute: false });
    let begun = Instant::now();
    let (one, other) = tokio::join!(site.send(get("/v1/echo")), async {
        sleep(Duration::from_millis(300)).await;
        site.send(get("/v1/echo")).await
    });
    assert_eq!((one.status.as_u16(), other.status.as_u16()), (200, 200));
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let log = site.mock.requests();
    assert!(log[1].at - log[0].at >= Duration::from_secs(2));
}

async fn a_create_without_an_answer_keeps_its_slot_for_a_while(site: &Site) {
    site.mock.fault_next("POST", "/v1/predictions", Fault::ResetAfter);
    assert_eq!(site.send(create()).await.code(), "outcome_unknown");
    let begun = Instant::now();
    let known = site.start_job().await;
    let refused = site.send(create().with("sluicegate-max-wait", "500ms")).await;
    assert_eq!(refused.code(), "queue_timeout", "{refused:?}");
    // The one that nobody knows of has to end, or the upstream would refuse.
    for job in site.mock.job_ids().iter().filter(|job| **job != known) {
        site.mock.finish(job);
    }
    site.start_job().await;
    assert!(begun.elapsed() >= UNCERTAIN.mul_f64(0.9), "{:?}", begun.elapsed());
    let stats = site.mock.stats();
    assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (2, 0));
}

async fn a_cancelled_job_gives_its_slot_back(site: &Site) {
    let first = site.start_job().await;
    site.start_job().await;
    assert_eq!(site.send(create().with("sluicegate-max-wait", "0s")).await.code(), "job_limit");
    assert!(site.send(request("DELETE", &format!("/v1/predictions/{first}"), "")).await.status.is_success());
    site.start_job().await;
    let stats = site.mock.stats();
    assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (2, 0));
}

async fn who_comes_back_when_told_is_served(site: &Site) {
    for _ in 0..10 {
        assert_eq!(site.send(get("/v1/echo")).await.status, 200);
        sleep(Duration::from_millis(20)).await;
    }
    let begun = Instant::now();
    let refused = site.send(now()).await;
    let told = Duration::from_millis(refused.number("retry-after-ms"));
    assert!(told <= W + Duration::from_millis(500), "{refused:?}");
    // A little earlier is too early: it is what is provable, and no guess.
    sleep_until(begun + told.saturating_sub(Duration::from_millis(150))).await;
    assert_eq!(site.send(now()).await.code(), "rate_limited");
    sleep_until(Instant::now().max(begun + told + Duration::from_millis(30))).await;
    assert_eq!(site.send(now()).await.status, 200);
    let stats = site.mock.stats();
    assert_eq!((stats.max_in_window, stats.refused_rate_429), (10, 0));
}

async fn paced_attempts_are_evenly_spaced(site: &Site) {
    let all: Vec<_> = (0..6).map(|_| site.spawn(get("/v1/echo"))).collect();
    for one in all {
        assert_eq!(one.await.expect("no panic").status, 200);
    }
    // b = 2 and T = (W + J)/(L - b + 1) = 234 ms.
    let period = Duration::from_millis(234);
    let log = site.mock.requests();
    let close = log.windows(3).filter(|three| three[2].at - three[0].at < period.mul_f64(0.8)).count();
    assert_eq!(close, 0, "three at once");
    let took = log[5].at - log[0].at;
    assert!(took >= period.mul_f64(3.8) && took < period * 7, "{took:?}");
}

async fn who_hangs_up_in_the_queue_takes_nothing(site: &Site) {
    for _ in 0..10 {
        assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    }
    let waiting: Vec<_> = (0..5).map(|_| site.spawn(get("/v1/echo"))).collect();
    sleep(Duration::from_millis(300)).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    sleep(W).await;
    assert_eq!(site.mock.stats().attempts, 10);
    for _ in 0..10 {
        assert_eq!(site.send(now()).await.status, 200);
    }
}
