//! One day's budget for all replicas: never more than it, all of it, whatever happens to any of them. The upstream counts what was carried out.
//!
//! Time is real, around one real redis-server; the day's end is played in the histories of `proxy::queue::shared`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use sluicegate::mock::{Options, RunTime};
use tokio::time::sleep;

use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::redis::{Fleet, Redis, wait_for};
use crate::support::{Answer, Site, create, create_with, poll, post};

/// A fresh store is full for 2.1 s, a lease lasts 1.5 s, and slots of a replica that is gone are taken over after 4.5 s.
const PLAN: &str = "requests = 1000\nper = \"1s\"\nconcurrent_jobs = 20\ncredits_per_day = 50";
const PRICES: &str = "[models.\"flux-schnell\"]\ncredits = 1\n[models.\"gpt-5.1\"]\ncredits_per_1k_tokens = 2";

fn fleet(replicas: usize, run_time: Duration) -> Fleet {
    let mock = Options {
        requests: Some(1_000),
        window: Duration::from_secs(1),
        concurrent_jobs: Some(20),
        run_time: RunTime::Fixed(run_time),
        ..Options::default()
    };
    Fleet { more: PRICES, ..Fleet::new(mock, PLAN, replicas) }
}

fn failing() -> Request<Full<Bytes>> {
    create_with(&json!({"model": "flux-schnell", "input": {"fail": true}}))
}

/// Follows a job to its end.
async fn ended(site: &Site, created: &Answer) -> String {
    let ended = site.send(poll(&created.job_id()).with("prefer", "wait=20")).await;
    ended.json()["status"].as_str().unwrap_or_default().to_owned()
}

/// What the account has used, as this replica tells it.
fn used(site: &Site) -> f64 {
    site.proxy.credits()["accounts"][0]["used"].as_f64().expect("a number")
}

async fn until_used(site: &Site, credits: f64) {
    for _ in 0..500 {
        if (used(site) - credits).abs() < 1e-9 {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{} used, never {credits}", used(site));
}

/// Creates until the budget is gone; how many were accepted.
async fn spend(site: &Site) -> usize {
    for accepted in 0.. {
        let answer = site.send(create()).await;
        if answer.code() == "credits_exhausted" {
            return accepted;
        }
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    unreachable!()
}

#[tokio::test]
async fn three_replicas_spend_one_budget_and_all_of_it_and_refunds_can_be_spent_again() {
    let redis = Redis::start().await;
    let fleet = fleet(3, Duration::from_millis(200));
    let sites = fleet.start(&redis.url()).await;
    // Twenty jobs that fail, and callers that want more than there is.
    let callers: Vec<_> = (0..12)
        .map(|n| {
            let site = Arc::clone(&sites[n % 3]);
            tokio::spawn(async move {
                let (mut paid, mut failed) = (0, 0);
                for turn in 0..40 {
                    let fails = turn % 4 == 0 && failed < 5;
                    let answer = site.send(if fails { failing() } else { create() }).await;
                    if answer.code() == "credits_exhausted" {
                        return (paid, failed);
                    }
                    assert_eq!(answer.status, 201, "{answer:?}");
                    let status = ended(&site, &answer).await;
                    if status == "failed" { failed += 1 } else { paid += 1 }
                }
                (paid, failed)
            })
        })
        .collect();
    let (mut paid, mut failed) = (0, 0);
    for caller in callers {
        let (one, other) = caller.await.expect("no panic");
        (paid, failed) = (paid + one, failed + other);
    }
    assert!(paid <= 50 && failed > 0, "{paid} paid, {failed} failed");
    // Refunds that came late can still be spent, at any of them.
    until_used(&sites[1], f64::from(paid)).await;
    let rest = spend(&sites[1]).await;
    assert_eq!(usize::try_from(paid).expect("few") + rest, 50, "all of it");
    let stats = fleet.mock.stats();
    let accepted = usize::try_from(stats.creates_accepted).expect("few");
    assert_eq!(accepted - usize::try_from(failed).expect("few"), 50, "as the upstream counts");

    let refused = sites[0].send(create()).await;
    assert_eq!((refused.status.as_u16(), refused.header("sluicegate-charge")), (402, "not-sent"));
    let body = refused.json();
    assert_eq!((&body["needed"], &body["left"], &body["limit"]), (&json!(1), &json!(0), &json!(50)));
    assert!((1..=86_400).contains(&refused.number("retry-after")), "{refused:?}");
    until_used(&sites[2], 50.0).await;
    let account = &sites[2].proxy.credits()["accounts"][0];
    assert_eq!(
        (&account["shared"], &account["remaining"], &account["frozen"]),
        (&json!(true), &json!(0), &json!(false))
    );
    // A storm of refusals is no traffic.
    redis.run(&["CONFIG", "RESETSTAT"]).await;
    for _ in 0..200 {
        assert_eq!(sites[0].send(create()).await.code(), "credits_exhausted");
    }
    assert!(redis.calls().await <= 40, "beats alone: {}", redis.calls().await);
}

#[tokio::test]
async fn what_a_killed_replica_has_reserved_stays_charged_until_its_jobs_are_seen_to_fail() {
    let redis = Redis::start().await;
    let fleet = fleet(2, Duration::from_secs(12));
    let (killed, other) = (fleet.replica_in(Scratch::new(), &redis.url()), fleet.replica(&redis.url()));
    for site in [&killed, &other] {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    for n in 0..10 {
        let answer = killed.send(if n < 4 { failing() } else { create() }).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    until_used(&other, 10.0).await;
    // As by `kill -9`: it tells nobody. It comes back, and is killed for good.
    let Site { proxy, scratch, .. } = killed;
    drop(proxy);
    let killed = fleet.replica_in(scratch, &redis.url());
    wait_for(&killed, "up again", |shared| shared["state"] == "up").await;
    drop(killed);
    wait_for(&other, "the jobs are taken over", |_| other.proxy.usage().jobs_live == 10).await;
    assert!((used(&other) - 10.0).abs() < 1e-9, "still charged");
    until_used(&other, 6.0).await;
}

#[tokio::test]
async fn a_restarted_replica_goes_on_with_its_part_and_an_emptied_store_forgets_nothing() {
    let redis = Redis::start().await;
    let fleet = fleet(2, Duration::from_secs(3600));
    let one = fleet.replica_in(Scratch::new(), &redis.url());
    let other = fleet.replica(&redis.url());
    for site in [&one, &other] {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    for _ in 0..7 {
        assert_eq!(one.send(create()).await.status, 201);
    }
    assert_eq!(other.send(create()).await.status, 201);
    let Site { proxy, scratch, .. } = one;
    drop(proxy);
    redis.run(&["FLUSHALL"]).await;
    let one = fleet.replica_in(scratch, &redis.url());
    for site in [&one, &other] {
        wait_for(site, "up again", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
        until_used(site, 8.0).await;
        assert_eq!(site.proxy.credits()["accounts"][0]["frozen"], false);
    }
}

#[tokio::test]
async fn an_emptied_store_whose_spender_is_gone_grants_nothing() {
    let redis = Redis::start().await;
    let fleet = fleet(2, Duration::from_secs(3600));
    let sites = fleet.start(&redis.url()).await;
    let [gone, other] = <[Arc<Site>; 2]>::try_from(sites).ok().expect("two");
    assert_eq!(gone.send(create()).await.status, 201);
    until_used(&other, 1.0).await;
    drop(gone);
    redis.run(&["FLUSHALL"]).await;
    wait_for(&other, "noticed", |shared| shared["waits_for"].is_string()).await;
    wait_for(&other, "up again", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    // It may have spent more than was heard of.
    let refused = other.send(create()).await;
    assert_eq!((refused.code().as_str(), &refused.json()["left"]), ("credits_exhausted", &json!(0)), "{refused:?}");
    let account = &other.proxy.credits()["accounts"][0];
    assert_eq!((&account["frozen"], &account["used"]), (&json!(true), &json!(1)));
    assert_eq!(fleet.mock.stats().creates_accepted, 1);
}

#[tokio::test]
async fn calls_paid_by_tokens_are_settled_for_all_and_wait_while_the_store_is_gone() {
    let mut redis = Redis::start().await;
    let fleet = fleet(2, Duration::from_secs(1));
    let sites = fleet.start(&redis.url()).await;
    let chat = |most: u32| {
        let body = json!({"model": "gpt-5.1", "messages": [], "max_tokens": most});
        post("/llm/openai/v1/chat/completions", body.to_string())
    };
    let answer = sites[0].send(chat(10_000)).await;
    assert_eq!((answer.status.as_u16(), answer.header("sluicegate-credits-reserved")), (200, "20"), "{answer:?}");
    let tokens = answer.json()["usage"]["total_tokens"].as_f64().expect("counted");
    until_used(&sites[1], tokens * 2.0 / 1_000.0).await;
    let refused = sites[1].send(chat(100_000)).await;
    assert_eq!(refused.code(), "credits_exhausted", "{refused:?}");
    let attempts = fleet.mock.stats().attempts;
    redis.kill();
    wait_for(&sites[0], "cut off", |shared| shared["state"] == "holding" || shared["state"] == "share").await;
    let waits = sites[0].send(chat(10).with("sluicegate-max-wait", "1s")).await;
    assert_eq!(waits.code(), "rate_limited", "the hold is longer: {waits:?}");
    wait_for(&sites[0], "its share", |shared| shared["state"] == "share").await;
    // What costs nothing goes, within the share.
    let free = sites[0].send(crate::support::get("/v1/echo")).await;
    assert_eq!(free.status, 200);
    let waits = sites[0].send(chat(10).with("sluicegate-max-wait", "500ms")).await;
    assert_eq!(waits.code(), "queue_timeout", "{waits:?}");
    assert_eq!(fleet.mock.stats().attempts, attempts + 1);
}
