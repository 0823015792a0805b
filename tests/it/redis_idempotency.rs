//! Idempotency keys among replicas: one create for each, whichever of them is asked, and the same answer at all.
//!
//! Time is real, around one real redis-server.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use sluicegate::mock::{Fault, Options, RunTime};
use tokio::time::{Instant, sleep};

use crate::support::client::{Answer, With};
use crate::support::redis::{Fleet, Redis, wait_for};
use crate::support::relay::{Passes, Relay};
use crate::support::{Site, create, create_with};

/// Jobs alone; a fresh store is full for 2.1 s, and a lease lasts 1.5 s.
const PLAN: &str = "requests = 1000\nper = \"1s\"\nconcurrent_jobs = 2";

fn fleet(replicas: usize) -> Fleet {
    let (window, run_time) = (Duration::from_secs(1), RunTime::Fixed(Duration::from_secs(3600)));
    Fleet::new(Options { requests: Some(1_000), window, run_time, ..Options::default() }, PLAN, replicas)
}

fn keyed(key: &str) -> Request<Full<Bytes>> {
    create().with("idempotency-key", key)
}

async fn free(site: &Site) {
    wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
}

async fn soon(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < until, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Two replicas; one of them can be cut off from the store.
struct Pair {
    _redis: Redis,
    relay: Relay,
    fleet: Fleet,
    silent: Site,
    other: Site,
}

async fn pair() -> Pair {
    let redis = Redis::start().await;
    let relay = Relay::to(redis.address()).await;
    let fleet = fleet(2);
    let (silent, other) = (fleet.replica(&relay.url()), fleet.replica(&redis.url()));
    free(&silent).await;
    free(&other).await;
    Pair { _redis: redis, relay, fleet, silent, other }
}

#[tokio::test]
async fn one_key_fired_at_three_replicas_is_one_create_and_three_equal_answers() {
    let redis = Redis::start().await;
    let fleet = fleet(3);
    let sites = fleet.start(&redis.url()).await;
    // Long enough that the others have to wait for it.
    let late = Fault::SlowHead { delay: Duration::from_millis(700) };
    fleet.mock.fault_next("POST", "/v1/predictions", late);
    let calls: Vec<_> = sites.iter().map(|site| site.spawn(keyed("order-1"))).collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.expect("no panic"));
    }
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &answer.body), (201, &answers[0].body), "{answer:?}");
        assert_eq!(answer.header("content-type"), answers[0].header("content-type"));
        assert_eq!(answer.header("sluicegate-charge"), "accepted");
    }
    // Later it is the same, another body is refused, and another key is another create.
    let again = sites[2].send(keyed("order-1")).await;
    assert_eq!(again.body, answers[0].body);
    let replayed = |answer: &&Answer| answer.header("idempotent-replayed") == "true" && answer.attempts() == 0;
    assert_eq!(answers.iter().chain([&again]).filter(replayed).count(), answers.len(), "all but the first");
    let other = create_with(&json!({"model": "flux-schnell", "input": {"prompt": "another"}}));
    let refused = sites[1].send(other.with("idempotency-key", "order-1")).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (422, "idempotency_mismatch".to_owned()));
    let stats = fleet.mock.stats();
    assert_eq!((stats.creates_accepted, stats.attempts), (1, 1));
    assert_ne!(sites[1].send(keyed("order-2")).await.body, answers[0].body);
}

#[tokio::test]
async fn a_refused_create_leaves_its_key_to_the_next() {
    let redis = Redis::start().await;
    let fleet = fleet(2);
    let sites = fleet.start(&redis.url()).await;
    let refusal = Fault::Status { code: 422, headers: [].into(), execute: false };
    fleet.mock.fault_next("POST", "/v1/predictions", refusal);
    assert_eq!(sites[0].send(keyed("order-1")).await.code(), "");
    assert_eq!(sites[1].send(keyed("order-1")).await.status, 201);
    assert_eq!(sites[0].send(keyed("order-1")).await.status, 201);
    assert_eq!(fleet.mock.stats().creates_accepted, 1);
}

#[tokio::test]
async fn a_create_whose_replica_falls_silent_is_never_sent_a_second_time() {
    let Pair { _redis, relay, fleet, silent, other } = pair().await;
    let late = Fault::SlowHead { delay: Duration::from_secs(8) };
    fleet.mock.fault_next("POST", "/v1/predictions", late);
    let sent = silent.spawn(keyed("order-1"));
    soon("it is sent", || fleet.mock.stats().creates_accepted > 0).await;
    relay.let_pass(Passes::Nothing);
    // It waits for as long as the other may be about, and then nobody knows.
    let unknown = other.send(keyed("order-1")).await;
    assert_eq!((unknown.status.as_u16(), unknown.code()), (502, "outcome_unknown".to_owned()), "{unknown:?}");
    assert_eq!(unknown.header("sluicegate-charge"), "unknown");
    relay.let_pass(Passes::All);
    let answer = sent.await.expect("no panic");
    assert_eq!(answer.status, 201);
    // It has told the store by now, or will in a moment.
    let until = Instant::now() + Duration::from_secs(10);
    let again = loop {
        let again = other.send(keyed("order-1")).await;
        if again.status == 201 {
            break again;
        }
        assert!(Instant::now() < until, "never told: {again:?}");
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(again.body, answer.body);
    assert_eq!(fleet.mock.stats().creates_accepted, 1);
}

#[tokio::test]
async fn a_create_that_only_waited_is_taken_over_and_not_sent_by_both() {
    let Pair { _redis, relay, fleet, silent, other } = pair().await;
    let jobs = [other.start_job().await, other.start_job().await];
    let waits = silent.spawn(keyed("order-1"));
    soon("it waits", || silent.proxy.usage().waiting > 0).await;
    relay.let_pass(Passes::Nothing);
    let taken = other.spawn(keyed("order-1"));
    soon("it is taken over", || other.proxy.usage().waiting > 0).await;
    for job in &jobs {
        fleet.mock.finish(job);
        other.send(crate::support::poll(job)).await;
    }
    relay.let_pass(Passes::All);
    let (one, both) = (taken.await.expect("no panic"), waits.await.expect("no panic"));
    assert_eq!((one.status.as_u16(), &one.body), (201, &both.body), "{one:?} {both:?}");
    assert_eq!(fleet.mock.stats().creates_accepted, 3, "two before, one with the key");
}

#[tokio::test]
async fn an_emptied_store_is_told_the_answers_again() {
    let redis = Redis::start().await;
    let fleet = fleet(2);
    let sites = fleet.start(&redis.url()).await;
    let first = sites[0].send(keyed("order-1")).await;
    assert_eq!(first.status, 201);
    redis.run(&["FLUSHALL"]).await;
    wait_for(&sites[1], "noticed", |shared| shared["waits_for"].is_string()).await;
    for site in &sites {
        free(site).await;
    }
    let again = sites[1].send(keyed("order-1")).await;
    assert_eq!((again.status.as_u16(), &again.body), (201, &first.body));
    assert_eq!(fleet.mock.stats().creates_accepted, 1);
}

#[tokio::test]
async fn without_the_store_no_keyed_create_is_sent() {
    let mut redis = Redis::start().await;
    let fleet = fleet(1);
    let sites = fleet.start(&redis.url()).await;
    redis.kill();
    let refused = sites[0].send(keyed("order-1").with("sluicegate-max-wait", "1s")).await;
    assert_eq!(refused.code(), "queue_timeout", "{refused:?}");
    assert_eq!(refused.header("sluicegate-charge"), "not-sent");
    assert_eq!(fleet.mock.stats().attempts, 0);
}

#[tokio::test]
async fn whoever_waits_for_a_key_and_then_in_line_waits_no_longer_than_max_wait() {
    let Pair { _redis, relay, fleet, silent, other } = pair().await;
    // No slot is left for it.
    for _ in 0..2 {
        other.start_job().await;
    }
    relay.let_pass(Passes::Nothing);
    let begun = Instant::now();
    let waits = silent.spawn(keyed("order-1").with("sluicegate-max-wait", "5s"));
    sleep(Duration::from_secs(3)).await;
    relay.let_pass(Passes::All);
    let refused = waits.await.expect("no panic");
    let waited = begun.elapsed();
    assert_eq!((refused.code().as_str(), refused.header("sluicegate-charge")), ("queue_timeout", "not-sent"));
    // Each wait of its own would make it 8 s and more.
    assert!((4_500..6_500).contains(&waited.as_millis()), "{waited:?}: {refused:?}");
    assert_eq!(fleet.mock.stats().creates_accepted, 2);
    // Its key is free again.
    for job in fleet.mock.job_ids() {
        fleet.mock.finish(&job);
        other.send(crate::support::poll(&job)).await;
    }
    assert_eq!(other.send(keyed("order-1")).await.status, 201);
}
