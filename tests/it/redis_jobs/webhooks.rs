//! Webhooks of a fleet: any replica may be called, the app hears once.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate::mock::{Mock, Options};
use tokio::time::{Instant, sleep};

use super::{HOUR, JOBS, until_told};
use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::redis::Redis;
use crate::support::{KEY, poll};
use crate::webhooks::{HOOK, IN, Manner, OUT, Receivers, Stage, create, signed};

/// Replicas with one mock, one app and one store.
struct Fleet {
    toml: String,
    mock: Arc<Mock>,
    receivers: Receivers,
}

impl Fleet {
    fn new(redis: &Redis, webhooks: &str) -> Self {
        Self::with(redis, webhooks, until_told(HOUR))
    }

    fn with(redis: &Redis, webhooks: &str, mock: Options) -> Self {
        let url = redis.url();
        let toml = format!(
            "{webhooks}\n[upstream]\nattempt_timeout = \"2s\"\n[models.\"flux-schnell\"]\ncredits = 1\n[state]\nstore = \"redis\"\nredis = {{ url = \"{url}\", replicas = 3 }}"
        );
        let mock = Arc::new(Mock::in_memory(Options { keys: vec![KEY.into()], ..mock }));
        Self { toml, mock, receivers: Receivers::default() }
    }

    fn replica(&self, scratch: Scratch) -> Stage {
        Stage::planned(JOBS, &self.toml, Arc::clone(&self.mock), self.receivers.clone(), scratch)
    }

    async fn start(&self) -> [Stage; 3] {
        let stages = [(); 3].map(|()| self.replica(Scratch::new()));
        for stage in &stages {
            until(stage, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
        }
        stages
    }
}

async fn until(stage: &Stage, what: &str, is: impl Fn(&Value) -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is(&stage.proxy.status()["accounts"][0]["shared"]) {
        assert!(Instant::now() < until, "never {what}: {}", stage.proxy.status());
        sleep(Duration::from_millis(20)).await;
    }
}

/// What was charged for jobs that have ended, and what is reserved for those that live.
fn books(stage: &Stage) -> [Value; 2] {
    let today = stage.proxy.credits()["today"][0].clone();
    ["charged", "reserved"].map(|what| today[what].clone())
}

#[tokio::test]
async fn created_here_polled_there_and_ended_by_a_webhook_elsewhere() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(&redis, IN);
    let [created, polled, called] = fleet.start().await;
    let id = created.start(HOOK).await;
    let first = polled.send(poll(&id)).await;
    assert_eq!((first.status.as_u16(), first.attempts()), (200, 0), "{first:?}");
    let waits = polled.send(poll(&id).with("prefer", "wait=20"));
    let tell = format!(r#"{{"job_id":"{id}","status":"completed","result":"x"}}"#);
    let call = async {
        let forged = signed(&"0".repeat(32), tell.clone());
        assert_eq!(called.call(forged).await.status, 404);
        let other = signed(&created.token(), r#"{"job_id":"other","status":"completed"}"#);
        assert_eq!(called.call(other).await.status, 400);
        assert_eq!(called.call(signed(&created.token(), tell.clone())).await.status, 200);
    };
    let (answer, ()) = tokio::join!(waits, call);
    assert_eq!((answer.attempts(), answer.json()["result"].clone()), (0, json!("x")), "{answer:?}");
    until(&created, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    assert_eq!(created.proxy.usage().jobs_live, 0);
    // Again, everywhere.
    for stage in [&created, &polled, &called] {
        assert_eq!(stage.call(signed(&created.token(), tell.clone())).await.status, 200);
    }
    sleep(Duration::from_secs(1)).await;
    let hits = fleet.receivers.hits();
    assert_eq!(hits.len(), 1, "{hits:?}");
    for stage in [&created, &polled, &called] {
        let answer = stage.send(poll(&id)).await;
        assert_eq!((answer.attempts(), answer.json()["result"].clone()), (0, json!("x")), "{answer:?}");
    }
    assert_eq!(
        [&created, &polled, &called].map(books),
        [[json!(1), json!(0)], [Value::Null, Value::Null], [Value::Null, Value::Null]],
        "settled once"
    );
}

#[tokio::test]
async fn a_webhook_may_come_before_its_create_s_answer() {
    let redis = Redis::start().await;
    let mock = Options { answer_delay: Duration::from_millis(800), ..until_told(HOUR) };
    let fleet = Fleet::with(&redis, IN, mock);
    let [created, _, called] = fleet.start().await;
    let early = async {
        while fleet.mock.job_ids().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        let id = fleet.mock.job_ids().remove(0);
        let tell = format!(r#"{{"job_id":"{id}","status":"completed","result":"x"}}"#);
        assert_eq!(called.call(signed(&created.token(), tell)).await.status, 200);
    };
    let (id, ()) = tokio::join!(created.start(HOOK), early);
    let answer = created.send(poll(&id).with("prefer", "wait=5")).await;
    assert_eq!((answer.attempts(), answer.json()["result"].clone()), (0, json!("x")), "{answer:?}");
    until(&created, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(fleet.receivers.hits().len(), 1);
    assert_eq!(books(&created), [json!(1), json!(0)]);
}

#[tokio::test]
async fn a_webhook_elsewhere_tells_what_became_of_a_create() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(&redis, IN);
    let [created, called, _] = fleet.start().await;
    fleet.mock.fault_next("POST", "/v1/predictions", sluicegate::mock::Fault::ResetAfter);
    let lost = created.send(create(HOOK, &json!({}))).await;
    assert_eq!(lost.code(), "outcome_unknown");
    assert_eq!(created.proxy.usage().jobs_uncertain, 1);
    let id = fleet.mock.job_ids().pop().expect("it runs");
    let token = created.token();
    let tell = |id: &str, status: &str| signed(&token, format!(r#"{{"job_id":"{id}","status":"{status}"}}"#));
    assert_eq!(called.call(tell(&id, "processing")).await.status, 200);
    until(&created, "it has turned up", |_| created.proxy.usage().jobs_uncertain == 0).await;
    assert_eq!(created.proxy.usage().jobs_live, 1, "its slot is the job's now");
    assert_eq!(called.call(tell("another", "failed")).await.status, 400);
    assert_eq!(called.call(tell(&id, "failed")).await.status, 200);
    until(&created, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(fleet.receivers.hits().len(), 1);
    assert_eq!(books(&created), [json!(0), json!(0)], "refunded");
}

#[tokio::test]
async fn the_webhook_of_a_killed_replica_s_job_is_not_lost() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(&redis, OUT);
    let [killed, one, other] = fleet.start().await;
    let id = killed.start(HOOK).await;
    assert_eq!(books(&killed), [json!(1), json!(0)]);
    let (_, _, scratch) = killed.kill();
    fleet.mock.finish(&id);
    fleet.receivers.wait_for(1).await;
    until(&one, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    // It comes back, and has not forgotten what it owes.
    let back = fleet.replica(scratch);
    until(&back, "up", |shared| shared["state"] == "up").await;
    let answer = back.send(poll(&id).with("prefer", "wait=5")).await;
    assert_eq!(answer.json()["status"], "completed", "{answer:?}");
    sleep(Duration::from_secs(1)).await;
    let hits = fleet.receivers.hits();
    assert_eq!(
        [&back, &one, &other].map(books),
        [[json!(1), json!(0)], [Value::Null, Value::Null], [Value::Null, Value::Null]]
    );
    assert_eq!(hits.len(), 1, "{hits:?}");
}

#[tokio::test]
async fn an_emptied_store_is_told_again_what_the_upstream_may_call_for() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(&redis, IN);
    let [created, called, _] = fleet.start().await;
    let id = created.start(HOOK).await;
    let token = created.token();
    fleet.mock.fault_next("POST", "/v1/predictions", sluicegate::mock::Fault::ResetAfter);
    assert_eq!(created.send(create(HOOK, &json!({}))).await.code(), "outcome_unknown");
    let lost = created.token();
    let unsure = fleet.mock.job_ids().into_iter().find(|job| *job != id).expect("it runs");
    redis.run(&["FLUSHALL"]).await;
    for (token, id) in [(token, id), (lost, unsure)] {
        let tell = format!(r#"{{"job_id":"{id}","status":"completed","result":"x"}}"#);
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let answer = called.call(signed(&token, tell.clone())).await;
            if answer.status == 200 {
                break;
            }
            assert_eq!(answer.status, 503, "a call that nobody knows of is not made again: {answer:?}");
            assert!(Instant::now() < until, "never told again");
            sleep(Duration::from_millis(50)).await;
        }
    }
    until(&created, "all slots are free", |shared| shared["jobs_live"] == 0).await;
    assert_eq!(created.proxy.usage().jobs_uncertain, 0);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.receivers.hits().len(), 2);
    let forged = signed(&"0".repeat(32), "{}");
    until(&called, "settled", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    assert_eq!(called.call(forged).await.status, 404);
}

#[tokio::test]
async fn a_job_that_was_taken_over_is_told_once_though_the_upstream_calls_too() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(&redis, IN);
    let [killed, one, other] = fleet.start().await;
    let id = killed.start(HOOK).await;
    let token = killed.token();
    let (_, _, scratch) = killed.kill();
    let has_it = |stage: &Stage| stage.proxy.usage().jobs_live == 1;
    until(&one, "it is taken over", |_| has_it(&one) || has_it(&other)).await;
    let (owner, other) = if has_it(&one) { (one, other) } else { (other, one) };
    // As long as two deliveries would be under way together.
    fleet.receivers.set(3000, Manner::Slow(Duration::from_millis(700)));
    let tell = signed(&token, format!(r#"{{"job_id":"{id}","status":"completed","result":"x"}}"#));
    let (at_owner, at_other) = tokio::join!(owner.call(tell.clone()), other.call(tell));
    assert_eq!((at_owner.status.as_u16(), at_other.status.as_u16()), (200, 200), "{at_owner:?} {at_other:?}");
    until(&owner, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    let back = fleet.replica(scratch);
    until(&back, "up", |shared| shared["state"] == "up").await;
    sleep(Duration::from_secs(2)).await;
    let hits = fleet.receivers.hits();
    assert_eq!(hits.len(), 1, "{hits:?}");
}

#[tokio::test]
async fn what_a_killed_replica_had_not_delivered_yet_comes_from_another() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(&redis, OUT);
    let [killed, _one, _other] = fleet.start().await;
    let id = killed.start(HOOK).await;
    // The job has ended, its slot is free, and no other replica was ever asked about it.
    fleet.receivers.set(3000, Manner::Fail(1));
    fleet.mock.finish(&id);
    fleet.receivers.wait_for(1).await;
    let (_, _, scratch) = killed.kill();
    // Its claim lasts until 15 s after the attempt that it would have made in a second.
    let hits = fleet.receivers.wait_for(2).await;
    assert_eq!((hits[0].id(), &hits[0].body), (hits[1].id(), &hits[1].body));
    let back = fleet.replica(scratch);
    until(&back, "up", |shared| shared["state"] == "up").await;
    // Its own try is due since long.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.receivers.hits().len(), 2, "the one that comes back knows that it was delivered");
}
