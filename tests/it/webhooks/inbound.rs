//! The upstream's own calls: verified, relayed, and a job's end.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use sluicegate::mock::{Mock, Options, RunTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep};

use super::{HOOK, IN, Receivers, Stage, create, hex, options, secs, signed};
use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::{PIPE_BYTES, create_with, get, post};

#[tokio::test(start_paused = true)]
async fn the_upstream_s_call_frees_the_slot_and_is_relayed_once() {
    let stage = Stage::with(IN, Options { run_time: RunTime::Fixed(secs(3_600)), ..options() });
    let body = json!({"model": "m", "input": {}, "webhook": HOOK, "webhook_events": ["completed"]});
    let id = stage.send(create_with(&body)).await.job_id();
    let sent = stage.sent();
    assert!(!sent.contains("3000") && sent.contains(r#""webhook_events":["completed","failed"]"#), "{sent}");
    let token = stage.token();
    let tell = format!(r#"{{ "job_id":"{id}", "status":"completed", "result":"https://cdn.example.test/x.png" }}"#);

    // What is not the upstream's changes nothing.
    let unsigned = post(&format!("/in/{token}"), tell.clone());
    assert_eq!(stage.call(unsigned).await.status, 401);
    let wrong = post(&format!("/in/{token}"), tell.clone()).with("x-webhook-signature", &hex(b"another body"));
    assert_eq!(stage.call(wrong).await.status, 401);
    assert_eq!(stage.call(signed(&"0".repeat(32), tell.clone())).await.status, 404);
    assert_eq!(stage.call(signed("", tell.clone())).await.status, 404);
    assert_eq!(stage.call(get(&format!("/in/{token}"))).await.status, 405);
    assert_eq!(stage.call(signed(&token, "x".repeat((1 << 20) + 1))).await.status, 413);
    assert_eq!(stage.call(signed(&token, "no JSON")).await.status, 400);
    assert_eq!(stage.call(signed(&token, r#"{"job_id":"other","status":"completed"}"#)).await.status, 400);
    let running = format!(r#"{{"job_id":"{id}","status":"processing"}}"#);
    assert_eq!(stage.call(signed(&token, running)).await.status, 200);
    assert_eq!(stage.proxy.usage().jobs_live, 1);

    let attempts = stage.mock.stats().attempts;
    let prefixed = post(&format!("/{token}"), tell.clone())
        .with("x-webhook-signature", &format!("sha256={}", hex(tell.as_bytes())));
    assert_eq!(stage.call(prefixed).await.status, 200);
    assert_eq!(stage.proxy.usage().jobs_live, 0, "the slot is free at once");
    for _ in 0..3 {
        assert_eq!(stage.call(signed(&token, tell.clone())).await.status, 200);
    }
    sleep(secs(60)).await;
    let hits = stage.receivers.hits();
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    assert_eq!((hit.port, &hit.body), (3000, &Bytes::from(tell)));
    assert_eq!(hit.headers["x-webhook-signature"], hex(&hit.body));
    assert_eq!(stage.mock.stats().attempts, attempts, "nothing was asked");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_comes_loses_nothing_and_one_that_comes_late_adds_nothing() {
    let stage = Stage::new(IN);
    let id = stage.start(HOOK).await;
    sleep(secs(30)).await;
    assert_eq!(stage.receivers.hits().len(), 1, "the proxy's own look made up for it");
    let tell = format!(r#"{{"job_id":"{id}","status":"completed"}}"#);
    assert_eq!(stage.call(signed(&stage.token(), tell)).await.status, 200);
    sleep(secs(30)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_about_a_create_of_unknown_outcome_is_relayed() {
    let stage = Stage::with(IN, Options { run_time: RunTime::Fixed(secs(3_600)), ..options() });
    stage.mock.fault_next("POST", "/v1/predictions", sluicegate::mock::Fault::ResetAfter);
    let lost = stage.send(create(HOOK, &json!({}))).await;
    assert_eq!(lost.code(), "outcome_unknown");
    let id = stage.mock.job_ids().pop().expect("it runs");
    let tell = format!(r#"{{"job_id":"{id}","status":"completed"}}"#);
    assert_eq!(stage.call(signed(&stage.token(), tell)).await.status, 200);
    sleep(secs(1)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_about_a_create_of_unknown_outcome_settles_its_slot_and_its_credits() {
    let toml = format!("{IN}\n[models.\"flux-schnell\"]\ncredits = 1\n[state]\nstore = \"local\"");
    let slow = Options { run_time: RunTime::Fixed(secs(3_600)), ..options() };
    for killed in [false, true] {
        let mut stage = Stage::on(&toml, Arc::new(Mock::in_memory(slow.clone())), Receivers::default(), Scratch::new());
        for _ in 0..2 {
            stage.mock.fault_next("POST", "/v1/predictions", sluicegate::mock::Fault::ResetAfter);
            assert_eq!(stage.send(create(HOOK, &json!({}))).await.code(), "outcome_unknown");
        }
        let token = stage.token();
        if killed {
            let (mock, receivers, scratch) = stage.kill();
            stage = Stage::on(&toml, mock, receivers, scratch);
        }
        let books = |stage: &Stage| {
            let today = stage.proxy.credits()["today"][0].clone();
            let usage = stage.proxy.usage();
            let amounts = ["charged", "unknown", "refunded", "reserved"].map(|what| today[what].clone());
            (amounts, usage.jobs_live, usage.jobs_uncertain)
        };
        assert_eq!(books(&stage), ([json!(2), json!(2), json!(0), json!(0)], 2, 2), "killed: {killed}");
        let id = stage.mock.job_ids().pop().expect("it runs");
        let tell = |status: &str| signed(&token, format!(r#"{{"job_id":"{id}","status":"{status}"}}"#));
        assert_eq!(stage.call(tell("processing")).await.status, 200);
        assert_eq!(books(&stage), ([json!(2), json!(1), json!(0), json!(0)], 2, 1), "its slot is the job's now");
        assert_eq!(stage.call(tell("failed")).await.status, 200);
        assert_eq!(books(&stage), ([json!(1), json!(1), json!(1), json!(0)], 1, 1));
        sleep(secs(121)).await;
        assert_eq!(books(&stage), ([json!(1), json!(1), json!(1), json!(0)], 0, 0), "the other is unknown for ever");
        assert_eq!(stage.receivers.hits().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_send_what_it_announced_is_let_go() {
    let stage = Stage::new(IN);
    let (mut near, far) = duplex(PIPE_BYTES);
    tokio::spawn(stage.proxy.serve_webhooks(far));
    near.write_all(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{").await.expect("open");
    let begun = Instant::now();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.expect("an end");
    assert!(
        answer.starts_with(b"HTTP/1.1 408") && begun.elapsed() < secs(15),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
}
