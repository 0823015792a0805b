//! Traces of callers (W3C Trace Context) go through as they came, whatever happens to the call.

use serde_json::json;
use sluicegate::mock::{Fault, Options};

use crate::support::client::With;
use crate::support::{Setup, create, get, post};

/// What is told of them to a collector.
#[cfg(feature = "otel")]
mod collector;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: &str = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";

#[tokio::test(start_paused = true)]
async fn a_trace_reaches_the_upstream_on_every_kind_of_call_and_on_every_attempt() {
    for h2 in [false, true] {
        let site = Setup { mock: Options::default(), h2, ..Setup::default() }.memory();
        let chat = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}).to_string();
        let busy = Fault::Status { code: 503, headers: [].into(), execute: false };
        site.mock.script([busy.on("GET", "/v1/echo").times(2)]);
        for call in [get("/v1/echo"), create(), post("/llm/openai/v1/chat/completions", chat)] {
            let answer = site.send(call.with("traceparent", PARENT).with("tracestate", STATE)).await;
            assert!(answer.status.is_success(), "{answer:?}");
        }
        let seen = site.mock.requests();
        let asked: Vec<_> = seen.iter().filter(|seen| !seen.path.starts_with("/v1/predictions/")).collect();
        assert_eq!(asked.len(), 5, "three calls, one of them in three attempts");
        for seen in asked {
            assert_eq!(seen.headers.get("traceparent").expect("passed on"), PARENT, "{}", seen.path);
            assert_eq!(seen.headers.get("tracestate").expect("passed on"), STATE, "{}", seen.path);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_trace_gets_none() {
    let site = Setup::default().memory();
    site.send(get("/v1/echo")).await;
    let seen = site.mock.requests();
    assert!(!seen[0].headers.contains_key("traceparent") && !seen[0].headers.contains_key("tracestate"));
}
