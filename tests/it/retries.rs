//! What is tried again, how often, and what is never sent twice. The mock counts the attempts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use serde_json::json;
use sluicegate::mock::{Fault, Options};
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{Answer, With, request};
use crate::support::{NOTHING, Setup, Site, create, create_with, get, poll, post};

fn unlimited(toml: &'static str) -> Setup {
    Setup {
        mock: Options { requests: None, concurrent_jobs: None, ..Options::default() },
        plan: "concurrent_jobs = 50",
        toml,
        ..Setup::default()
    }
}

fn status(code: u16) -> Fault {
    Fault::Status { code, headers: BTreeMap::new(), execute: false }
}

fn chat() -> Request<Full<Bytes>> {
    let body = json!({"model": "gpt", "messages": [{"role": "user", "content": "hello"}]});
    post("/llm/openai/v1/chat/completions", body.to_string())
}

type Call = (&'static str, fn() -> Request<Full<Bytes>>);
const GET: Call = ("GET", || get("/v1/echo"));
const POLL: Call = ("poll", || poll("nothing"));
const CREATE: Call = ("create", create);
const LLM: Call = ("LLM", chat);

/// Sends one call into this fault, struck as often as it is sent; returns status, code and attempts as the mock counts them.
async fn into(toml: &'static str, call: Call, fault: Fault) -> (u16, String, u64) {
    let site = unlimited(toml).memory();
    site.mock.script([fault.on("", "/").times(100)]);
    let answer = site.send((call.1)()).await;
    let attempts = site.mock.stats().attempts;
    if answer.whole {
        assert_eq!(answer.attempts(), attempts, "{} says what it took", call.0);
    }
    (answer.status.as_u16(), answer.code(), attempts)
}

#[tokio::test(start_paused = true)]
async fn listed_statuses_are_tried_four_times_whatever_the_call() {
    for code in [408, 429, 500, 502, 503, 504] {
        for call in [GET, POLL, CREATE, LLM] {
            let expected = (code, String::new(), 4);
            assert_eq!(into("", call, status(code)).await, expected, "{} {code}", call.0);
        }
    }
    for code in [400, 401, 402, 404, 409, 422, 501] {
        for call in [GET, CREATE, LLM] {
            assert_eq!(into("", call, status(code)).await, (code, String::new(), 1), "{} {code}", call.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_setting_decides_which_statuses_repeat_a_create() {
    let table = [
        ("[retry]\ncreates = \"safe\"", [(503, 4), (429, 4), (500, 1), (408, 1), (504, 1)]),
        ("[retry]\ncreates = \"never\"", [(503, 1), (429, 1), (500, 1), (408, 1), (504, 1)]),
    ];
    for (toml, cases) in table {
        for (code, attempts) in cases {
            assert_eq!(into(toml, CREATE, status(code)).await.2, attempts, "{toml} {code}");
            assert_eq!(into(toml, LLM, status(code)).await.2, attempts, "{toml} LLM {code}");
            assert_eq!(into(toml, GET, status(code)).await.2, 4, "{toml} GET {code}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_repeats_what_is_safe_and_never_what_may_have_been_carried_out() {
    let hang = Fault::Hang { execute: true };
    let garbage = Fault::Garbage { execute: true };
    for fault in [Fault::ResetBefore, Fault::ResetAfter, garbage] {
        for call in [GET, POLL] {
            let expected = (502, "bad_upstream_answer".into(), 4);
            assert_eq!(into("", call, fault.clone()).await, expected, "{} {fault:?}", call.0);
        }
        for call in [CREATE, LLM] {
            let expected = (502, "outcome_unknown".into(), 1);
            assert_eq!(into("", call, fault.clone()).await, expected, "{} {fault:?}", call.0);
        }
    }
    let quick = "[upstream]\nattempt_timeout = \"10s\"\ntotal_timeout = \"2m\"";
    assert_eq!(into(quick, GET, hang.clone()).await, (504, "upstream_timeout".into(), 4));
    for call in [CREATE, LLM] {
        assert_eq!(into(quick, call, hang.clone()).await, (502, "outcome_unknown".into(), 1), "{}", call.0);
    }
}

#[tokio::test(start_paused = true)]
async fn half_an_answer_is_repeated_or_said_to_be_unknown_but_never_passed_as_whole() {
    assert_eq!(into("", POLL, Fault::HalfBody).await, (502, "bad_upstream_answer".into(), 4));
    assert_eq!(into("", CREATE, Fault::HalfBody).await, (502, "outcome_unknown".into(), 1));
    for call in [GET, LLM] {
        let site = unlimited("").memory();
        site.mock.fault_next("", "/", Fault::HalfBody);
        let answer = site.send((call.1)()).await;
        assert_eq!((answer.status.as_u16(), answer.whole), (200, false), "{}: it had begun", call.0);
        assert_eq!(site.mock.stats().attempts, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn refused_connections_send_nothing_and_are_tried_again_for_every_call() {
    for call in [GET, CREATE, LLM] {
        let site = unlimited("").memory();
        site.wires.refuse(3);
        let answer = site.send((call.1)()).await;
        assert!(answer.status.is_success(), "{}: {answer:?}", call.0);
        assert_eq!((site.mock.stats().attempts, answer.attempts()), (1, 4), "{}", call.0);

        site.wires.refuse(100);
        let site = unlimited("").memory();
        site.wires.refuse(100);
        let answer = site.send((call.1)()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (502, "upstream_unreachable".into()), "{}", call.0);
        assert_eq!(site.wires.refusals_left(), 96, "{}", call.0);
        assert_eq!(site.proxy.usage(), NOTHING);
        if call.0 == "create" {
            assert_eq!(answer.header("sluicegate-charge"), "not-sent");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_the_upstream_has_closed_costs_no_attempt() {
    for h2 in [false, true] {
        let site = Setup { h2, ..unlimited("") }.memory();
        for _ in 0..5 {
            site.mock.fault_next("GET", "/v1/echo", Fault::CloseIdle);
            let answer = site.send(get("/v1/echo")).await;
            assert_eq!((answer.status.as_u16(), answer.attempts()), (200, 1));
            sleep(Duration::from_millis(100)).await;
            assert_eq!(site.send(create()).await.status, 201);
        }
        assert_eq!(site.mock.stats().attempts, 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gets_through_in_the_end_is_a_success() {
    let site = unlimited("").memory();
    site.mock.script([status(503).on("POST", "/v1/predictions"), status(500).on("POST", "/v1/predictions")]);
    let begun = Instant::now();
    let answer = site.send(create()).await;
    assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 3));
    assert_eq!(answer.header("sluicegate-charge"), "accepted");
    assert!(begun.elapsed() <= Duration::from_secs(3), "1 s and 2 s at most");
    let keys: Vec<_> = site.mock.requests().iter().map(|seen| seen.headers["idempotency-key"].clone()).collect();
    assert!(keys.iter().all(|key| *key == keys[0]) && keys.len() == 3, "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_is_a_floor_and_one_beyond_the_deadline_ends_the_call() {
    let after = |secs: &str| Fault::Status {
        code: 503,
        headers: [("retry-after".to_owned(), secs.to_owned())].into(),
        execute: false,
    };
    let site = unlimited("").memory();
    site.mock.fault_next("GET", "/v1/echo", after("40"));
    let begun = Instant::now();
    assert_eq!(site.send(get("/v1/echo")).await.attempts(), 2);
    assert!(begun.elapsed() >= Duration::from_secs(40) && begun.elapsed() < Duration::from_secs(42));

    site.mock.fault_next("GET", "/v1/echo", after("301"));
    let begun = Instant::now();
    let answer = site.send(get("/v1/echo")).await;
    assert_eq!((answer.status.as_u16(), answer.attempts()), (503, 1));
    assert_eq!((answer.header("retry-after"), answer.header("x-should-retry")), ("301", "false"));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn retries_of_an_account_have_a_budget() {
    let site = unlimited("").memory();
    site.mock.script([status(503).on("", "/").times(1000)]);
    for _ in 0..20 {
        site.send(get("/v1/echo")).await;
    }
    let begun_again = site.mock.stats().attempts;
    assert!((20..=20 + 10 + 10).contains(&begun_again), "{begun_again}");

    let site = Arc::new(unlimited("").memory());
    site.mock.script([status(503).on("", "/").times(1000)]);
    let calls: Vec<_> = (0..100).map(|_| site.spawn(get("/v1/echo"))).collect();
    for call in calls {
        assert_eq!(call.await.expect("answered").status, 503);
    }
    assert_eq!(site.mock.stats().attempts, 120, "20 % of the first attempts");
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_one_mebibyte_streams_once() {
    let site = unlimited("").memory();
    let upload = || request("POST", "/v1/echo", vec![7; 3 << 20]);
    let answer = site.send(upload()).await;
    assert_eq!(answer.json()["body_bytes"], 3 << 20);
    site.mock.fault_next("POST", "/v1/echo", status(503));
    let answer = site.send(upload()).await;
    assert_eq!((answer.status.as_u16(), site.mock.stats().attempts), (503, 2), "nothing is left to send again");
    site.wires.refuse(2);
    let small = site.send(request("POST", "/v1/echo", vec![7; 1 << 20])).await;
    assert_eq!(small.json()["body_bytes"], 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_of_the_caller_is_honoured_here() {
    let mut setup = unlimited("");
    setup.mock.answer_delay = Duration::from_secs(2);
    let site = Arc::new(setup.memory());
    let keyed = || create().with("idempotency-key", "order-1");
    let (first, joins) = (site.spawn(keyed()), site.spawn(keyed()));
    let (first, joins) = (first.await.expect("answered"), joins.await.expect("answered"));
    assert_eq!(first.job_id(), joins.job_id());
    let told = |answer: &Answer| (answer.attempts(), answer.header("idempotent-replayed").to_owned());
    let mut both = [told(&first), told(&joins)];
    both.sort();
    assert_eq!(both, [(0, "true".to_owned()), (1, String::new())], "one of them was sent");
    assert_ne!(first.header("x-request-id"), joins.header("x-request-id"));
    sleep(Duration::from_secs(23 * 3600)).await;
    let again = site.send(keyed()).await;
    assert_eq!((again.job_id(), told(&again)), (first.job_id(), (0, "true".to_owned())));
    assert!(again.header("server-timing").starts_with("queue;dur=0.0, upstream;dur=0.0,"), "{again:?}");
    assert_eq!(again.header("sluicegate-charge"), "accepted");
    assert_eq!(site.mock.stats().creates_accepted, 1);

    let other = create_with(&json!({"model": "another", "input": {}})).with("idempotency-key", "order-1");
    let mismatch = site.send(other).await;
    assert_eq!((mismatch.status.as_u16(), mismatch.code()), (422, "idempotency_mismatch".into()));
    assert_eq!(mismatch.header("sluicegate-charge"), "not-sent");

    sleep(Duration::from_secs(3600)).await;
    assert_ne!(site.send(keyed()).await.job_id(), first.job_id(), "after 24 h it is forgotten");
    assert_eq!(site.mock.requests()[0].headers["idempotency-key"], "order-1");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_an_idempotency_key_is_refused_before_anything_is_sent() {
    let site = unlimited("").memory();
    let keyed = |key: &str| create().with("idempotency-key", key);
    let twice = |first: &str, second: &'static str| {
        let mut call = keyed(first);
        call.headers_mut().append("idempotency-key", HeaderValue::from_static(second));
        call
    };
    let long = "k".repeat(256);
    for (call, way_out) in [
        (keyed(""), "1 to 255 bytes"),
        (keyed(&long), "a shorter one"),
        (twice("a", "b"), "send one"),
        (twice("a", "a"), "send one"),
    ] {
        let refused = site.send(call).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "bad_request".into()));
        assert_eq!((refused.header("sluicegate-charge"), refused.attempts()), ("not-sent", 0));
        assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains(way_out)), "{refused:?}");
    }
    assert_eq!(site.mock.stats().attempts, 0);
    assert_eq!(site.send(keyed(&long[..255])).await.status, 201);
    // Elsewhere it is the upstream's business.
    assert_eq!(site.send(get("/v1/echo").with("idempotency-key", "")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_create_cost_nothing_may_be_used_again_but_not_one_of_unknown_outcome() {
    let site = unlimited("").memory();
    let keyed = |key: &str| create().with("idempotency-key", key);
    site.mock.fault_next("POST", "/v1/predictions", status(422));
    assert_eq!(site.send(keyed("a")).await.status, 422);
    assert_eq!(site.send(keyed("a")).await.status, 201);

    site.mock.fault_next("POST", "/v1/predictions", Fault::ResetAfter);
    let first = site.send(keyed("b")).await;
    let again = site.send(keyed("b")).await;
    assert_eq!(
        [(first.code(), first.attempts()), (again.code(), again.attempts())],
        [1, 0].map(|n| ("outcome_unknown".into(), n))
    );
    assert_eq!(site.mock.stats().attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_key_that_leaves_does_not_end_what_another_waits_for() {
    let mut setup = unlimited("");
    setup.plan = "requests_per_minute = 1";
    let site: Arc<Site> = Arc::new(setup.memory());
    site.send(get("/v1/echo")).await;
    let keyed = || create().with("idempotency-key", "order-1");
    let (leaves, stays) = (site.spawn(keyed()), site.spawn(keyed()));
    sleep(Duration::from_secs(1)).await;
    leaves.abort();
    assert_eq!(stays.await.expect("answered").status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_whose_body_broke_off_is_framed_as_what_it_is() {
    let mut setup = unlimited("");
    setup.mock.job_limit_status = 403;
    setup.mock.concurrent_jobs = Some(0);
    let site = setup.memory();
    site.mock.fault_next("POST", "/v1/predictions", Fault::HalfBody);
    let answer = timeout(Duration::from_secs(10), site.send(create())).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("sluicegate-charge")), (403, "refused"));
    assert!(answer.body.is_empty() && answer.whole, "{answer:?}");
    assert!(["", "0"].contains(&answer.header("content-length")), "{answer:?}");
}
