//! What every answer carries, and the form of those that are the proxy's own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Request;
use http_body_util::Full;
use serde_json::json;
use sluicegate::mock::Fault;
use tokio::time::sleep;

use crate::support::client::{With, request};
use crate::support::{Answer, Setup, create, get, poll, post};

fn has_all(answer: &Answer, case: &str) {
    assert!(!answer.header("x-request-id").is_empty(), "{case}: {answer:?}");
    assert!(answer.header("server-timing").contains("queue;dur="), "{case}");
    assert!(answer.header("server-timing").contains("upstream;dur="), "{case}");
    answer.attempts();
    let (limit, remaining) = (answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining"));
    assert!(limit == 60 && remaining <= 60, "{case}: {answer:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(answer.number("x-ratelimit-reset") >= now - 1, "{case}");
    assert_eq!(answer.header("ratelimit-policy"), "\"requests\";q=60;w=60", "{case}");
    assert!(answer.header("ratelimit").starts_with(&format!("\"requests\";r={remaining};t=")), "{case}");
}

#[tokio::test(start_paused = true)]
async fn every_answer_carries_id_timings_and_limits() {
    let site = Setup::default().memory();
    let unknown = || Fault::ResetAfter;
    let status = |code| Fault::Status { code, headers: std::collections::BTreeMap::new(), execute: false };
    site.mock.script([unknown().on("POST", "/v1/echo"), status(404).on("PUT", "/v1/echo")]);
    let cases: [(&str, Request<Full<bytes::Bytes>>); 7] = [
        ("GET", get("/v1/echo")),
        ("create", create()),
        ("poll", poll("nothing")),
        ("stream", get("/v1/sse?events=1")),
        ("outcome unknown", post("/v1/echo", "{}")),
        ("upstream error", request("PUT", "/v1/echo", "{}")),
        ("refused wait", get("/v1/echo").with("sluicegate-max-wait", "soon")),
    ];
    for (case, call) in cases {
        let answer = site.send(call.with("x-request-id", "mine-7")).await;
        has_all(&answer, case);
        assert_eq!(answer.header("x-request-id"), "mine-7", "{case}");
        let upstreams = answer.headers.contains_key("sluicegate-upstream-ratelimit-remaining");
        assert_eq!(upstreams, answer.code().is_empty(), "{case}: the upstream's own are kept aside");
        assert_eq!(answer.headers.contains_key("sluicegate-charge"), case == "create", "{case}");
        assert!(!answer.headers.contains_key("transfer-encoding") || case == "stream", "{case}");
    }
    let one = site.send(get("/v1/echo").with("x-request-id", "not fit")).await;
    let two = site.send(get("/v1/echo")).await;
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    assert_eq!(one.header("x-request-id").len(), 32);
}

#[tokio::test(start_paused = true)]
async fn remaining_and_reset_say_when_there_is_more() {
    let site = Setup { plan: "requests_per_minute = 2", ..Setup::default() }.memory();
    let first = site.send(get("/v1/echo")).await;
    assert_eq!(first.number("x-ratelimit-remaining"), 1);
    sleep(Duration::from_secs(10)).await;
    let second = site.send(get("/v1/echo")).await;
    assert_eq!(second.number("x-ratelimit-remaining"), 0);
    assert_eq!(second.header("ratelimit"), "\"requests\";r=0;t=50");
}

#[tokio::test(start_paused = true)]
async fn own_answers_come_in_the_caller_s_dialect() {
    let site = Setup { plan: "requests_per_minute = 1", ..Setup::default() }.memory();
    site.send(get("/v1/echo")).await;
    let table = [
        ("/v1/echo", "application/problem+json"),
        ("/llm/openai/v1/chat/completions", "application/json"),
        ("/llm/anthropic/v1/messages", "application/json"),
        ("/llm/gemini/v1beta/models/m:generateContent", "application/json"),
    ];
    for (path, form) in table {
        let answer = site.send(post(path, "{}").with("sluicegate-max-wait", "1s")).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (429, "rate_limited".into()), "{path}");
        assert_eq!(answer.header("content-type"), form, "{path}");
        assert_eq!(answer.header("sluicegate-limit-source"), "local");
        assert_eq!(answer.header("proxy-status"), "sluicegate; error=http_request_denied; details=\"rate_limited\"");
        assert!(answer.number("retry-after") >= 59 && answer.number("retry-after-ms") <= 60_000);
        let json = answer.json();
        assert_eq!((&json["limit"], &json["window_secs"]), (&json!(1), &json!(60.0)), "{path}");
        match path {
            "/v1/echo" => assert_eq!(json["status"], 429),
            path if path.contains("openai") => assert_eq!(json["error"]["type"], "rate_limit_error"),
            path if path.contains("anthropic") => assert_eq!(json["error"]["type"], "rate_limit_error"),
            _ => assert_eq!(json["error"]["status"], "RESOURCE_EXHAUSTED"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_429_that_stays_is_passed_on_as_the_upstream_s() {
    let site = Setup::default().memory();
    let fault =
        Fault::Status { code: 429, headers: [("retry-after".to_owned(), "600".to_owned())].into(), execute: false };
    site.mock.fault_next("POST", "/v1/predictions", fault);
    let answer = site.send(create()).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (429, String::new()));
    assert_eq!(answer.header("sluicegate-limit-source"), "upstream");
    assert_eq!((answer.header("retry-after"), answer.header("sluicegate-charge")), ("600", "refused"));
}
