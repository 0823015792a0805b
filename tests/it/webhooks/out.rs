//! From here to apps: signed, tried again, and the upstream never hears of it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate::mock::{Options, RunTime};
use tokio::time::{Instant, sleep};

use super::receivers::Hit;
use super::{HOOK, Manner, OUT, Stage, create, hex, options, secs};
use crate::support::client::{With, request};
use crate::support::{create_with, poll, post};

#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_is_delivered_signed_and_the_upstream_never_sees_the_target() {
    let stage = Stage::new(OUT);
    let body = format!(
        r#"{{ "model":"flux-schnell", "webhook":"{HOOK}", "input":{{"n":1.50e2}}, "webhook_events":["completed"]}}"#
    );
    let created = stage.send(post("/v1/predictions", body)).await;
    assert_eq!(created.status, 201);
    sleep(secs(30)).await;
    let hits = stage.receivers.hits();
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    let status = stage.send(poll(&created.job_id())).await;
    assert_eq!((hit.port, hit.target.as_str(), &hit.body), (3000, "POST /hook?of=app", &status.body));
    assert_eq!(hit.headers["x-webhook-signature"], hex(&hit.body));
    assert_eq!(
        (&hit.headers["content-type"], &hit.headers["host"]),
        (&"application/json".parse().unwrap(), &"localhost:3000".parse().unwrap())
    );
    assert!(hit.headers["user-agent"].to_str().unwrap().starts_with("sluicegate/"));
    assert!(hit.id().starts_with("msg_") && hit.headers["webhook-signature"].to_str().unwrap().starts_with("v1,"));
    let sent = stage.sent();
    assert!(sent.contains("\r\n\r\n{ \"model\":\"flux-schnell\", \"input\":{\"n\":1.50e2}}"), "{sent}");
    assert!(!sent.contains("webhook") && !sent.contains("3000"), "{sent}");
    assert_eq!(stage.mock.stats().webhooks_delivered, 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_secret_nothing_is_sent() {
    let stage = Stage::new("[webhooks]\nallow = [\"localhost:3000\"]");
    let refused = stage.send(create(HOOK, &json!({}))).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (422, "webhook_secret_missing"));
    assert_eq!((refused.header("sluicegate-charge"), refused.header("x-should-retry")), ("not-sent", "false"));
    assert_eq!(stage.mock.stats().attempts, 0);
    assert_eq!(stage.send(create("http://localhost:3001/", &json!({}))).await.status, 201, "not ours to deliver");
}

#[tokio::test(start_paused = true)]
async fn other_webhooks_go_up_as_they_came() {
    let stage = Stage::new("[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"localhost:3000\"]");
    for webhook in [
        "https://example.com/done",
        "http://10.1.2.3/done",
        "http://localhost:3001/",
        "not a URL",
        "ftp://localhost:3000/",
    ] {
        stage.start(webhook).await;
        assert!(stage.sent().contains(&format!("\"webhook\":\"{webhook}\"")), "{}", stage.sent());
    }
    sleep(secs(60)).await;
    assert!(stage.receivers.hits().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_the_events_that_were_asked_for_are_told() {
    let stage = Stage::new(OUT);
    let ask = |port: u16, events: Value, input: Value| {
        let webhook = format!("http://localhost:{port}/");
        create_with(&json!({"model": "m", "input": input, "webhook": webhook, "webhook_events": events}))
    };
    let fails = json!({"fail": true});
    stage.send(ask(3001, json!(["completed"]), json!({}))).await;
    stage.send(ask(3002, json!(["failed"]), json!({}))).await;
    stage.send(ask(3003, json!(["completed"]), fails.clone())).await;
    stage.send(ask(3004, json!(["failed"]), fails.clone())).await;
    stage.send(ask(3005, json!([]), fails)).await;
    let cancelled = stage.send(ask(3006, json!(["failed"]), json!({"run_time_ms": 60_000}))).await.job_id();
    assert!(stage.send(request("DELETE", &format!("/v1/predictions/{cancelled}"), "")).await.status.is_success());
    sleep(secs(60)).await;
    let told: BTreeMap<u16, String> = stage
        .receivers
        .hits()
        .iter()
        .map(|hit| {
            let body: Value = serde_json::from_slice(&hit.body).expect("JSON");
            (hit.port, body["status"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let expected = [(3001, "completed"), (3004, "failed"), (3006, "cancelled")];
    assert_eq!(told, expected.map(|(port, status)| (port, status.to_owned())).into());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_vanishes_or_never_ends_is_told_as_failed() {
    let slow = Options { run_time: RunTime::Fixed(secs(86_400)), ..options() };
    let stage = Stage::with(&format!("{OUT}\n[jobs]\nmax_age = \"1m\""), slow);
    let id = stage.start(HOOK).await;
    sleep(secs(90)).await;
    let hits = stage.receivers.hits();
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    let body: Value = serde_json::from_slice(&hit.body).expect("JSON");
    assert_eq!((body["id"].as_str(), body["job_id"].as_str()), (Some(&*id), Some(&*id)));
    assert_eq!((&body["status"], &body["sluicegate"]["end"]), (&json!("failed"), &json!("expired")));
    assert!(body["error"].as_str().expect("words").contains("jobs.max_age"));
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_with_the_same_id() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3000, Manner::Fail(3));
    stage.start(HOOK).await;
    sleep(secs(120)).await;
    let hits = stage.receivers.hits();
    let [first, second, third, last] = &hits[..] else { panic!("{hits:?}") };
    for (before, after, longest) in [(first, second, 1.0), (second, third, 5.0), (third, last, 30.0)] {
        let waited = (after.at - before.at).as_secs_f64();
        assert!(waited >= longest * 0.8 && waited <= longest + 0.1, "{waited}");
    }
    assert!(hits.iter().all(|hit| hit.id() == first.id() && hit.body == first.body));
    assert_ne!(first.headers["webhook-timestamp"], last.headers["webhook-timestamp"]);
}

#[tokio::test(start_paused = true)]
async fn redirects_are_failures_and_hanging_is_bounded() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3001, Manner::Answer(302));
    stage.receivers.set(3002, Manner::Hang);
    stage.receivers.set(3003, Manner::Refuse);
    for port in [3001, 3002, 3003] {
        stage.start(&format!("http://localhost:{port}/")).await;
    }
    sleep(secs(60)).await;
    assert!(stage.receivers.on(3001).len() >= 3 && stage.receivers.on(3999).is_empty());
    let hung = stage.receivers.on(3002);
    let waited = (hung[1].at - hung[0].at).as_secs_f64();
    assert!((10.7..11.2).contains(&waited), "{waited}");
    stage.receivers.set(3003, Manner::Answer(200));
    sleep(secs(600)).await;
    assert_eq!(stage.receivers.on(3003).len(), 1, "it came in the end");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_hangs_slows_nobody_else() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3001, Manner::Hang);
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(stage.start("http://localhost:3001/").await);
    }
    let good = stage.start("http://localhost:3002/").await;
    ids.push(good.clone());
    sleep(secs(3)).await;
    for id in &ids {
        stage.send(poll(id)).await;
    }
    let seen = Instant::now();
    sleep(secs(5)).await;
    let [hit] = &stage.receivers.on(3002)[..] else { panic!("one") };
    assert!(hit.at - seen < Duration::from_millis(100) && hit.job() == good);
    assert_eq!(stage.receivers.on(3001).len(), 4, "so many at a time");
    stage.receivers.set(3001, Manner::Answer(200));
    sleep(secs(3600)).await;
    let told: HashSet<String> = stage.receivers.on(3001).iter().map(Hit::job).collect();
    assert_eq!(told.len(), 40, "none is lost");
}

#[tokio::test(start_paused = true)]
async fn after_a_day_a_delivery_is_dead_and_410_ends_it_at_once() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3001, Manner::Answer(500));
    stage.receivers.set(3002, Manner::Answer(410));
    stage.start("http://localhost:3001/").await;
    stage.start("http://localhost:3002/").await;
    sleep(secs(3 * 86_400)).await;
    let hits = stage.receivers.on(3001);
    assert_eq!((hits.len(), stage.receivers.on(3002).len()), (11, 1));
    let spread = (hits[10].at - hits[0].at).as_secs() / 3600;
    assert!((18..24).contains(&spread), "{spread} h");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_comes_to_nothing_owes_nothing() {
    let stage = Stage::new(OUT);
    let refused = stage.send(post("/v1/predictions", format!(r#"{{"webhook":"{HOOK}"}}"#))).await;
    assert!(refused.status.is_client_error(), "the mock wants a model: {refused:?}");
    let one = stage.send(create(HOOK, &json!({})).with("idempotency-key", "k")).await;
    let two = stage.send(create(HOOK, &json!({})).with("idempotency-key", "k")).await;
    assert_eq!(one.job_id(), two.job_id(), "the caller's body is compared, not ours");
    sleep(secs(60)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}
