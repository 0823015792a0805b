use serde_json::Value;

use super::*;

fn limited() -> Rejection {
    Rejection::RateLimited { limit: 60, window: Duration::from_secs(60), retry_in: Duration::from_millis(1_200) }
}

fn json(rejection: &Rejection, family: Family) -> Value {
    serde_json::from_slice(rejection.response(family).body()).expect("JSON")
}

#[test]
fn native_answers_are_problems_with_code_and_numbers() {
    let response = limited().response(Family::Native);
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["retry-after-ms"], "1200");
    assert_eq!(response.headers()[LIMIT_SOURCE], "local");
    assert!(!response.headers().contains_key(SHOULD_RETRY), "waiting helps");
    let body = json(&limited(), Family::Native);
    assert_eq!((&body["code"], &body["limit"], &body["status"]), (&"rate_limited".into(), &60.into(), &429.into()));
}

#[test]
fn a_refusal_tells_its_own_numbers_whatever_was_refused_before() {
    let limited = |limit, secs| Rejection::RateLimited {
        limit,
        window: Duration::from_secs(60),
        retry_in: Duration::from_secs(secs),
    };
    for (limit, secs) in [(60, 2), (60, 2), (60, 3), (300, 3), (60, 2)] {
        let told = json(&limited(limit, secs), Family::Native);
        assert_eq!((&told["limit"], &told["retry_after_secs"]), (&limit.into(), &secs.into()));
        assert!(told["detail"].as_str().is_some_and(|detail| detail.ends_with(&format!("in {secs} s"))), "{told}");
    }
}

#[test]
fn each_sdk_gets_its_own_error_form() {
    assert_eq!(json(&limited(), Family::OpenAi)["error"]["code"], "rate_limited");
    assert_eq!(json(&limited(), Family::Anthropic)["error"]["type"], "rate_limit_error");
    assert_eq!(json(&limited(), Family::Gemini)["error"]["status"], "RESOURCE_EXHAUSTED");
    for family in [Family::OpenAi, Family::Anthropic, Family::Gemini] {
        assert_eq!(json(&limited(), family)["code"], "rate_limited");
    }
}

#[test]
fn where_waiting_does_not_help_sdks_are_told_not_to_retry() {
    let response = Rejection::OutcomeUnknown { attempts: 1 }.response(Family::OpenAi);
    assert_eq!(response.headers()[SHOULD_RETRY], "false");
    assert!(!response.headers().contains_key("retry-after"));
    let now = Rejection::QueueTimeout { waited: Duration::ZERO, retry_in: Duration::ZERO };
    assert_eq!(now.response(Family::Native).headers()["retry-after"], "1");
    assert_eq!(now.response(Family::Native).headers()["retry-after-ms"], "1000");
}

#[test]
fn times_are_told_in_milliseconds() {
    let waited = Duration::from_nanos(1_001_168_082);
    let told = json(&Rejection::QueueTimeout { waited, retry_in: Duration::ZERO }, Family::Native);
    assert_eq!(told["detail"], "the request waited 1.001 s in the queue, as long as it might");
    assert_eq!(told["waited_secs"], 1.001);
    let after = Duration::from_nanos(12_150_099_863);
    let told = json(&Rejection::UpstreamTimeout { after, attempts: 2 }, Family::Native);
    assert_eq!(
        (&told["detail"], &told["after_secs"]),
        (&"the upstream did not answer in 12.15 s".into(), &12.15.into())
    );
    let told = Rejection::CircuitOpen { retry_in: Duration::from_nanos(999_999_999) }.to_string();
    assert!(told.ends_with("the next is tried in 1 s"), "{told}");
}

#[test]
fn what_lets_a_body_time_out_is_named() {
    for timeout in [Rejection::ClientTimeout { idle: Duration::from_secs(30) }, Rejection::ClientSlow] {
        assert!(timeout.to_string().contains("server.body_timeout"), "{timeout}");
    }
}

#[test]
fn who_is_not_known_is_told_how_to_say_who_calls() {
    for rejection in [Rejection::Unauthorized, Rejection::AmbiguousCredentials] {
        let response = rejection.response(Family::OpenAi);
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"sluicegate\"");
    }
}

#[test]
fn a_job_of_another_client_looks_like_no_job_at_all() {
    let response = Rejection::NotYours.response(Family::Native);
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers().len(), 1);
    assert_eq!(json(&Rejection::NotYours, Family::Native), json!({"error": "prediction not found"}));
}
