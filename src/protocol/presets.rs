//! The protocols that are built in, in the words that `[protocols.NAME]` has too.

use http::Method;

use super::auth::Auth;
use super::pattern::Pattern;
use super::pointer::Pointer;
use super::took::TellsTime;
use super::wait::{WaitField, around};
use super::{Create, Does, Model, Protocol, Rule, Signature};

const VALID: &str = "presets are tested";

/// `api.core.today`. Two dialects exist (`id`/`succeeded` and `job_id`/`completed`); both are understood at once.
pub(crate) fn core_today() -> Protocol {
    Protocol {
        name: "core.today".into(),
        url: Some("https://api.core.today"),
        rules: rules(&[
            ("POST /v1/predictions", Does::Create(Create::Json)),
            ("POST /v1/predictions/upload", Does::Create(Create::Multipart)),
            ("GET /v1/predictions/{id}", Does::Status),
            ("DELETE /v1/predictions/{id}", Does::Cancel),
        ]),
        ids: pointers(&["/job_id", "/id"]),
        // Some routes wrap their answer in {"success": true, "data": {...}}.
        wrapper: Some(pointer("/data")),
        state: pointer("/status"),
        tells_time: tells_time(),
        succeeded: words(&["succeeded", "completed"]),
        failed: words(&["failed"]),
        cancelled: words(&["cancelled", "canceled"]),
        models: vec![Model::Body(pointer("/model"))],
        auth: auth("X-API-Key: {key}"),
        llm_auth: Some(auth("Authorization: Bearer {key}")),
        headers: Vec::new(),
        rewrite: Vec::new(),
        wait: None,
        prefer_wait: false,
        not_found: r#"{"error":"prediction not found"}"#.into(),
        webhook: Some(pointer("/webhook")),
        webhook_events: Some(pointer("/webhook_events")),
        webhook_signature: Signature::Hex,
    }
}

/// `api.replicate.com`. Its limits, 600 creates and 3,000 other requests a minute, are a plan's.
pub(crate) fn replicate() -> Protocol {
    Protocol {
        name: "replicate".into(),
        url: Some("https://api.replicate.com"),
        rules: rules(&[
            ("POST /v1/predictions", Does::Create(Create::Json)),
            ("POST /v1/models/{owner}/{name}/predictions", Does::Create(Create::Json)),
            ("POST /v1/deployments/{owner}/{name}/predictions", Does::Create(Create::Json)),
            ("GET /v1/predictions/{id}", Does::Status),
            ("POST /v1/predictions/{id}/cancel", Does::Cancel),
            ("GET /v1/predictions", Does::List),
        ]),
        ids: pointers(&["/id"]),
        wrapper: None,
        state: pointer("/status"),
        tells_time: tells_time(),
        succeeded: words(&["succeeded"]),
        failed: words(&["failed", "aborted"]),
        cancelled: words(&["canceled"]),
        models: vec![
            Model::Path(Pattern::parse("{owner}/{name}").expect(VALID)),
            Model::Body(pointer("/model")),
            Model::Body(pointer("/version")),
        ],
        auth: auth("Authorization: Bearer {key}"),
        llm_auth: None,
        headers: Vec::new(),
        // All of them: those of other hosts, as `stream` and `web` may be, are left alone.
        rewrite: pointers(&["/urls/*", "/results/*/urls/*", "/next", "/previous"]),
        wait: Some(WaitField { at: pointer("/detail"), around: around("~{seconds}s") }),
        prefer_wait: true,
        not_found: r#"{"detail":"The requested resource could not be found.","status":404,"title":"Not found"}"#.into(),
        webhook: Some(pointer("/webhook")),
        webhook_events: Some(pointer("/webhook_events_filter")),
        webhook_signature: Signature::Standard,
    }
}

/// What a table that says nothing means: what most APIs do.
pub(crate) fn usual() -> Protocol {
    Protocol {
        name: String::new(),
        url: None,
        rules: Vec::new(),
        ids: pointers(&["/id"]),
        wrapper: None,
        state: pointer("/status"),
        tells_time: TellsTime::default(),
        succeeded: Vec::new(),
        failed: Vec::new(),
        cancelled: Vec::new(),
        models: vec![Model::Body(pointer("/model"))],
        auth: auth("Authorization: Bearer {key}"),
        llm_auth: None,
        headers: Vec::new(),
        rewrite: Vec::new(),
        wait: None,
        prefer_wait: false,
        not_found: r#"{"error":"not found"}"#.into(),
        webhook: None,
        webhook_events: None,
        webhook_signature: Signature::None,
    }
}

fn rules(list: &[(&str, Does)]) -> Vec<Rule> {
    let rule = |(text, does): &(&str, Does)| {
        let (method, path) = text.split_once(' ').expect(VALID);
        Rule {
            method: Method::from_bytes(method.as_bytes()).expect(VALID),
            path: Pattern::path(path).expect(VALID),
            does: *does,
        }
    };
    super::ordered(list.iter().map(rule).collect())
}

fn pointer(text: &str) -> Pointer {
    Pointer::parse(text).expect(VALID)
}

fn pointers(list: &[&str]) -> Vec<Pointer> {
    list.iter().map(|text| pointer(text)).collect()
}

/// By both dialects of the one and by the other. From the acceptance of a job, as looks count from there too.
fn tells_time() -> TellsTime {
    TellsTime {
        secs: pointers(&["/metrics/total_time"]),
        begun: pointers(&["/created_at", "/started_at"]),
        ended: pointers(&["/completed_at", "/finished_at"]),
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn auth(text: &str) -> Auth {
    Auth::parse(text).expect(VALID)
}
