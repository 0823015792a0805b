//! The key goes to the upstream and nowhere else; the callers' credentials go nowhere at all.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use sluicegate::mock::Fault;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::{Answer, KEY, Setup, create, get, poll, post};

/// Everything that was logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panics").clone()).expect("text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn show(answer: &Answer) -> String {
    format!("{:?} {:?}", answer.headers, String::from_utf8_lossy(&answer.body))
}

/// The subscriber is this thread's, and so are all tasks of a test in memory.
#[tokio::test(start_paused = true)]
async fn the_key_shows_in_no_log_at_any_level_and_in_no_answer() {
    // With one subscriber alone, `tracing` takes the interest of whatever thread logs first for everybody's.
    let _spare = tracing::Dispatch::new(tracing_subscriber::registry());
    for h2 in [false, true] {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(log.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let site = Setup { h2, ..Setup::default() }.memory();
        let headers = [("x-echo", format!("you sent {KEY}")), ("x-other", "stays".into())];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
        let told_back = Fault::Status { code: 200, headers, execute: false };
        site.mock.script([
            Fault::ResetAfter.on("PATCH", "/"),
            Fault::Garbage { execute: true }.on("GET", "/v1/echo/garbage").times(4),
            Fault::HalfBody.on("GET", "/v1/bytes"),
            told_back.on("GET", "/v1/told"),
        ]);
        let mut seen = String::new();
        let chat = || post("/llm/openai/v1/chat/completions", r#"{"messages":[]}"#);
        for call in [
            create(),
            poll("nothing"),
            chat(),
            crate::support::client::request("PATCH", "/v1/echo", "x"),
            get("/v1/echo/garbage"),
            get("/v1/bytes/1000"),
            get("/v1/echo").with("sluicegate-max-wait", "soon"),
            get(&format!("/v1/templates?key={KEY}")),
        ] {
            seen.push_str(&show(&site.send(call).await));
        }
        let told = site.send(get("/v1/told")).await;
        assert_eq!((told.header("x-echo"), told.header("x-other")), ("", "stays"));
        seen.push_str(&show(&told));
        site.wires.refuse(9);
        seen.push_str(&show(&site.send(create()).await));
        seen.push_str(&site.proxy.status().to_string());
        seen.extend([format!("{:?}", site.proxy.usage())]);
        drop(guard);
        let text = log.text();
        assert!(text.contains("sluicegate::request"), "there is a log: {text:.300}");
        for (what, text) in [("log", &text), ("answers", &seen)] {
            if let Some(at) = text.find(KEY) {
                panic!("in {what}, h2 {h2}: {}", &text[at.saturating_sub(300)..at + KEY.len()]);
            }
        }
    }
    let config = Scratch::new().load("requests_per_minute = 60", "", "http://localhost:1");
    assert!(!format!("{config:?} {config:#?}").contains(KEY));
}

/// Whatever is unwrapped, its text is what the log of a panic shows.
#[test]
fn the_key_shows_in_no_panic() {
    let config = Scratch::new().load("requests_per_minute = 60", "", "http://localhost:1");
    let key = config.accounts[0].key.clone();
    assert_eq!(key.expose(), KEY);
    let caught = std::panic::catch_unwind(move || {
        std::hint::black_box(Err::<(), _>((key, config))).expect("unwrapped");
    });
    let said = caught.expect_err("it panics");
    let said = said.downcast_ref::<String>().expect("text");
    assert!(said.contains("[redacted]") && !said.contains(KEY), "{said}");
}

fn arrived(answer: &Answer) -> (String, String) {
    let json = answer.json();
    let headers = json["headers"].as_array().expect("a list");
    let names = ["authorization", "x-api-key", "x-goog-api-key", "sluicegate-token", "proxy-authorization"];
    let credentials = headers.iter().filter(|pair| names.iter().any(|name| pair[0] == *name));
    let credentials = credentials
        .map(|pair| format!("{}: {}", pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default()));
    let path = json["path"].as_str().unwrap_or_default().to_owned();
    (path, credentials.collect::<Vec<_>>().join(", "))
}

#[tokio::test(start_paused = true)]
async fn credentials_of_callers_are_replaced_by_the_key() {
    let site = Setup::default().memory();
    let own = format!("x-api-key: {KEY}");
    let brought = get("/v1/echo?a=%41&key=sk-mine&b")
        .with("authorization", "Bearer sk-mine")
        .with("x-api-key", "sk-mine")
        .with("x-goog-api-key", "sk-mine")
        .with("sluicegate-token", "sk-mine")
        .with("proxy-authorization", "Basic sk-mine");
    let answer = site.send(brought).await;
    assert_eq!(arrived(&answer), ("/v1/echo?a=%41&b".into(), own.clone()));
    assert!(!String::from_utf8_lossy(&answer.body).contains("sk-mine"), "{answer:?}");
    let bare = site.send(get("/v1/echo?key=sk-mine")).await;
    assert_eq!(arrived(&bare), ("/v1/echo".into(), own.clone()));
    let named_away = site.send(get("/v1/echo").with("connection", "x-api-key, x-extra").with("x-extra", "1")).await;
    assert_eq!(arrived(&named_away), ("/v1/echo".into(), own));
    assert!(!String::from_utf8_lossy(&named_away.body).contains("x-extra"));

    site.send(post("/llm/openai/v1/chat/completions", r#"{"messages":[]}"#).with("authorization", "Bearer sk-mine"))
        .await;
    let requests = site.mock.requests();
    let headers = &requests.last().expect("arrived").headers;
    assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
    assert!(!headers.contains_key("x-api-key"));
}

#[tokio::test(start_paused = true)]
async fn on_a_client_s_route_its_own_authorization_passes_and_the_key_does_not() {
    let setup = Setup {
        toml: "[[routes]]\nprefix = \"/v1/reports/\"\nauth = \"client\"",
        plan: "requests_per_minute = 1",
        ..Setup::default()
    };
    let site = setup.memory();
    for _ in 0..3 {
        let call =
            post("/v1/reports/generate", "{}").with("authorization", "Bearer session").with("x-api-key", "sk-mine");
        assert_eq!(site.send(call).await.status, 200, "and it costs no quota");
    }
    for seen in site.mock.requests() {
        assert_eq!(seen.headers["authorization"], "Bearer session");
        assert!(!seen.headers.contains_key("x-api-key"));
        let all: Vec<Value> = seen.headers.values().map(|value| format!("{value:?}").into()).collect();
        assert!(!format!("{all:?}").contains(KEY));
    }
}

#[tokio::test(start_paused = true)]
async fn each_client_s_account_gives_its_own_key() {
    let setup = Setup {
        toml: r#"
            [accounts.other]
            plan = "main"
            key = { env = "SECOND_KEY" }
            [[clients]]
            name = "web"
            token = { env = "WEB_TOKEN" }
            [[clients]]
            name = "batch"
            token = { env = "BATCH_TOKEN" }
            account = "other"
            "#,
        mock: sluicegate::mock::Options { keys: vec![KEY.into(), "cdt_second_key".into()], ..Default::default() },
        ..Setup::default()
    };
    let site = setup.memory();
    for (token, key) in [("web-token", KEY), ("batch-token", "cdt_second_key")] {
        let answer = site.send(get("/v1/echo").with("authorization", &format!("Bearer {token}"))).await;
        assert_eq!(arrived(&answer).1, format!("x-api-key: {key}"));
    }
}
