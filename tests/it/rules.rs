//! What an environment may ask for: substitutes, caps, models allowed and denied.

use sluicegate::mock::{Dialect, Options};

use crate::support::client::{With, request};
use crate::support::{Answer, KEY, Setup, Site, create_with, get, post};

/// The default account substitutes and caps, `strict` allows one model, `wary` denies one.
const RULES: &str = r#"
[accounts.main.substitute]
"flux-pro" = "flux-schnell"
"gpt-5.1" = "gpt-4.1-nano"
"gemini-2.5-pro" = "gemini-2.5-flash"
[accounts.main.caps]
duration = 5
[accounts.strict]
plan = "main"
key = { env = "KEY" }
allow_models = ["flux-schnell"]
[accounts.wary]
plan = "main"
key = { env = "KEY" }
deny_models = ["kling"]
"#;
const CLIENTS: &str = r#"
[[clients]]
name = "web"
token = { env = "WEB_TOKEN" }
account = "strict"
[[clients]]
name = "batch"
token = { env = "BATCH_TOKEN" }
account = "wary"
"#;

fn site(toml: &'static str) -> Site {
    let mock = Options { dialect: Dialect::A, keys: vec![KEY.into()], ..Options::default() };
    Setup { mock, toml, ..Setup::default() }.memory()
}

fn told(answer: &Answer, name: &str) -> Vec<String> {
    answer.headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn models_are_replaced_and_inputs_capped_and_the_answer_says_so() {
    let site = site(RULES);
    let body = serde_json::json!({"model": "bfl/flux-pro", "input": {"prompt": "a gate", "duration": 10}});
    let answer = site.send(create_with(&body)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.json()["model"], "flux-schnell");
    assert_eq!(answer.json()["input"], serde_json::json!({"prompt": "a gate", "duration": 5}));
    assert_eq!(told(&answer, "sluicegate-substituted"), ["bfl/flux-pro -> flux-schnell"]);
    assert_eq!(told(&answer, "sluicegate-capped"), ["duration 10 -> 5"]);

    let body = serde_json::json!({"model": "flux-dev", "input": {"prompt": "a gate", "duration": 3}});
    let answer = site.send(create_with(&body)).await;
    assert_eq!(
        (answer.json()["model"].as_str(), answer.json()["input"]["duration"].as_u64()),
        (Some("flux-dev"), Some(3))
    );
    assert!(told(&answer, "sluicegate-substituted").is_empty() && told(&answer, "sluicegate-capped").is_empty());
}

#[tokio::test(start_paused = true)]
async fn llm_calls_get_the_substitute_too() {
    let site = site(RULES);
    let body = r#"{"model": "gpt-5.1", "messages": [{"role": "user", "content": "hello"}]}"#;
    let answer = site.send(post("/llm/openai/v1/chat/completions", body)).await;
    assert_eq!(answer.json()["model"], "gpt-4.1-nano");
    assert_eq!(told(&answer, "sluicegate-substituted"), ["gpt-5.1 -> gpt-4.1-nano"]);
    let body = r#"{"contents": [{"parts": [{"text": "hello"}]}]}"#;
    let answer = site.send(post("/llm/gemini/v1beta/models/gemini-2.5-pro:generateContent", body)).await;
    assert_eq!(answer.json()["modelVersion"], "gemini-2.5-flash");
    assert_eq!(told(&answer, "sluicegate-substituted"), ["gemini-2.5-pro -> gemini-2.5-flash"]);
}

#[tokio::test(start_paused = true)]
async fn a_denied_model_is_refused_before_the_queue_and_spends_nothing() {
    let site = site(joined(RULES, CLIENTS));
    let create = |model: &str, token| {
        create_with(&serde_json::json!({"model": model, "input": {}})).with("sluicegate-token", token)
    };
    for (model, token, status) in [
        ("flux-schnell", "web-token", 201),
        ("bfl/flux-schnell", "web-token", 201),
        ("flux-pro", "web-token", 403),
        ("kling", "batch-token", 403),
        ("kuaishou/Kling", "batch-token", 403),
        ("flux-pro", "batch-token", 201),
    ] {
        let answer = site.send(create(model, token)).await;
        assert_eq!(answer.status, status, "{model} for {token}: {answer:?}");
        if status == 403 {
            assert_eq!((answer.code().as_str(), answer.json()["model"].as_str()), ("model_denied", Some(model)));
            assert_eq!((answer.header("x-should-retry"), answer.header("sluicegate-charge")), ("false", "not-sent"));
            assert_eq!(answer.attempts(), 0);
        }
    }
    let llm = post("/llm/anthropic/v1/messages", r#"{"model": "claude", "messages": []}"#);
    let answer = site.send(llm.with("sluicegate-token", "web-token")).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"]["type"].as_str()), (403, Some("permission_error")));
    assert_eq!(site.mock.stats().attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn multipart_creates_are_allowed_or_denied_by_their_model_part() {
    let site = site(joined(RULES, CLIENTS));
    let form = |model: &str| {
        let body = format!(
            "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n\
             --x\r\nContent-Disposition: form-data; name=\"input\"\r\n\r\n{{}}\r\n--x--\r\n"
        );
        let form = request("POST", "/v1/predictions/upload", body);
        form.with("content-type", "multipart/form-data; boundary=x").with("sluicegate-token", "web-token")
    };
    assert_eq!(site.send(form("flux-schnell")).await.status, 201);
    assert_eq!(site.send(form("flux-pro")).await.code(), "model_denied");
    let nameless = request("POST", "/v1/predictions/upload", "--x--\r\n").with("sluicegate-token", "web-token");
    assert_eq!(site.send(nameless).await.code(), "model_denied", "a model that cannot be read may be any");
}

#[tokio::test(start_paused = true)]
async fn other_calls_are_left_alone() {
    let site = site(joined(RULES, CLIENTS));
    for path in ["/v1/echo", "/llm/openai/v1/models"] {
        assert_eq!(site.send(get(path).with("sluicegate-token", "web-token")).await.status, 200, "{path}");
    }
}

/// Two pieces of a configuration that lives as long as the tests.
fn joined(one: &str, two: &str) -> &'static str {
    Box::leak(format!("{one}{two}").into_boxed_str())
}
