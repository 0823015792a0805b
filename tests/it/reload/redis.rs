//! What replicas share follows a reload as far as it may.

use redis::from_redis_value;

use super::Gate;
use crate::support::client::With;
use crate::support::patience::until;
use crate::support::redis::Redis;
use crate::support::{create, poll};

const PLAN: &str = "requests = 2000\nper = \"2s\"\nconcurrent_jobs = 5";

fn shared(redis: &Redis, jobs: &str) -> String {
    let url = redis.url();
    format!("[jobs]\n{jobs}\n[state]\nstore = \"redis\"\npath = \"state\"\nredis = {{ url = \"{url}\", replicas = 1 }}")
}

/// For how many seconds the store keeps the first entry of this set.
async fn kept_for(redis: &Redis, set: &str) -> f64 {
    let text = |value| from_redis_value::<Vec<String>>(value).expect("texts");
    let keys = text(redis.run(&["KEYS", &format!("*:{set}")]).await);
    let first = text(redis.run(&["ZRANGE", &keys[0], "0", "0", "WITHSCORES"]).await);
    let time = text(redis.run(&["TIME"]).await);
    let number = |text: &str| text.parse::<f64>().expect("a number");
    number(&first[1]) / 1e3 - number(&time[0])
}

#[tokio::test]
async fn the_store_keeps_jobs_for_as_long_as_the_file_says_now() {
    let redis = Redis::start().await;
    let before = shared(&redis, "max_age = \"1h\"\nresult_ttl = \"1h\"");
    let mut gate = Gate::new(PLAN, &before);
    until("up and free", || async {
        let shared = gate.proxy.status()["accounts"][0]["shared"].clone();
        (shared["state"] == "up" && !shared["waits_for"].is_string(), shared)
    })
    .await;
    let job = gate.send(create()).await.job_id();
    let kept = kept_for(&redis, "live").await;
    assert!((7_000.0..7_400.0).contains(&kept), "{kept}");
    let after = shared(&redis, "max_age = \"10h\"\nresult_ttl = \"3h\"");
    gate.reload(PLAN, &after).await.expect("taken");
    gate.vault.finish(&job);
    let ended = gate.send(poll(&job).with("prefer", "wait=10")).await;
    assert_eq!(ended.json()["status"], "completed", "{ended:?}");
    let other = gate.send(create()).await.job_id();
    assert_ne!(other, job);
    let (live, ended) = (kept_for(&redis, "live").await, kept_for(&redis, "ended").await);
    assert!((46_000.0..47_200.0).contains(&live), "{live}");
    assert!((10_700.0..10_801.0).contains(&ended), "{ended}");
}
