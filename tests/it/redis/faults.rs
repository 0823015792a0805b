//! What operators, memory and networks do to the store while replicas use it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{RATE, W, joined, kept, rate_only, saturate_all};
use crate::support::client::With;
use crate::support::redis::{Fleet, Redis, wait_for};
use crate::support::{KEY, get};

/// What docs/scale-out.md says that a user needs.
pub const ACL: &str = "on >cdt_second_key ~sluicegate:* resetchannels -@all +evalsha +script|load +time +info +del +hget +hgetall \
                       +hset +hdel +hlen +zadd +zrem +zcard +zrange +zremrangebyscore +pexpire";

/// The keys that end so.
async fn keys(redis: &Redis, end: &str) -> Vec<String> {
    let found = redis.run(&["KEYS", &format!("sluicegate:*{end}")]).await;
    redis::from_redis_value(found).expect("names")
}

/// Two replicas saturated while this happens, and afterwards; they must be up again, and the plan was kept.
async fn survives(what: &'static [&'static [&'static str]], back: &'static [&'static [&'static str]]) {
    let redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), RATE, 2);
    let sites = fleet.start(&redis.url()).await;
    let until = Instant::now() + W * 4;
    let all = saturate_all(&sites, 20, until);
    sleep(Duration::from_millis(1_100)).await;
    for words in what {
        redis.run(words).await;
    }
    if !back.is_empty() {
        for site in &sites {
            wait_for(site, "noticed", |shared| shared["state"] == "holding").await;
        }
    }
    for words in back {
        // It may be asleep for another second.
        while redis.try_run(words).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    }
    joined(all).await;
    kept(&fleet);
    for site in &sites {
        wait_for(site, "up again", |shared| shared["state"] == "up").await;
    }
    let after = joined(saturate_all(&sites, 20, Instant::now() + W * 2)).await;
    kept(&fleet);
    assert!(after >= 30, "{after} in two windows");
}

#[tokio::test]
async fn flushall_counts_as_a_full_window() {
    survives(&[&["FLUSHALL"]], &[]).await;
}

#[tokio::test]
async fn script_flush_costs_a_reload() {
    survives(&[&["SCRIPT", "FLUSH"], &["SCRIPT", "FLUSH"]], &[]).await;
}

#[tokio::test]
async fn out_of_memory_is_no_answer() {
    survives(&[&["CONFIG", "SET", "maxmemory", "1"]], &[&["CONFIG", "SET", "maxmemory", "0"]]).await;
}

#[tokio::test]
async fn read_only_is_no_answer() {
    survives(&[&["REPLICAOF", "127.0.0.1", "1"]], &[&["REPLICAOF", "NO", "ONE"]]).await;
}

#[tokio::test]
async fn slow_is_no_answer() {
    survives(&[&["CLIENT", "PAUSE", "1500", "ALL"]], &[&["PING"]]).await;
}

#[tokio::test]
async fn one_lost_key_is_as_good_as_all() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), RATE, 2);
    let sites = fleet.start(&redis.url()).await;
    let all = saturate_all(&sites, 20, Instant::now() + W * 3);
    sleep(Duration::from_millis(700)).await;
    for key in keys(&redis, ":places").await {
        redis.run(&["DEL", &key]).await;
    }
    joined(all).await;
    kept(&fleet);
}

#[tokio::test]
async fn an_acl_user_needs_these_commands_and_these_keys_and_the_api_key_is_not_among_them() {
    let redis = Redis::start().await;
    let words: Vec<&str> = ["ACL", "SETUSER", "sluicegate"].into_iter().chain(ACL.split_whitespace()).collect();
    redis.run(&words).await;
    let mut fleet = Fleet::new(rate_only(), RATE, 1);
    fleet.login = "user = \"sluicegate\", password = { env = \"SECOND_KEY\" }, ";
    let site = fleet.replica(&redis.url());
    wait_for(&site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    assert_eq!(site.send(crate::support::create()).await.status, 201);
    sleep(Duration::from_secs(1)).await;
    for key in keys(&redis, "").await {
        let kind: String = redis::from_redis_value(redis.run(&["TYPE", &key]).await).expect("a word");
        let words: &[&str] = if kind == "hash" { &["HGETALL", &key] } else { &["ZRANGE", &key, "0", "-1"] };
        let all = format!("{key} {:?}", redis.run(words).await);
        assert!(!all.contains(KEY) && !all.contains("canary"), "{all}");
    }
    // Another password: nothing is sent, and the password is shown nowhere.
    fleet.login = "user = \"sluicegate\", password = { env = \"WEB_TOKEN\" }, ";
    let stranger = fleet.replica(&redis.url());
    let refused = stranger.send(get("/v1/echo").with("sluicegate-max-wait", "1s")).await;
    assert_eq!(refused.code(), "queue_timeout", "{refused:?}");
    assert_eq!(stranger.proxy.status()["accounts"][0]["shared"]["state"], "joining");
}
