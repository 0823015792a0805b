//! A headless Chromium that does as it is told, over the pipe of its `DevTools` protocol.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::config::Scratch;
use super::patience::PATIENCE;

/// One page in a browser that lives as long as the value, with a profile of its own.
pub struct Chrome {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    number: u64,
    session: Option<String>,
    /// What went wrong in the page: exceptions, what its policy forbade, what could not be loaded.
    pub complaints: Vec<String>,
    _browser: Child,
    _profile: Scratch,
}

impl Chrome {
    /// An empty page.
    pub async fn start() -> Self {
        let profile = Scratch::new();
        // The protocol is spoken at descriptors 3 and 4.
        let mut browser = Command::new("sh");
        browser.args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"]);
        browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"]);
        browser.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
        browser.args(["--disable-sync", "--no-proxy-server", "--hide-scrollbars", "--remote-debugging-pipe"]);
        browser.arg(format!("--user-data-dir={}", profile.0.join("profile").display())).arg("about:blank");
        browser.env("HOME", &profile.0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut browser = browser.kill_on_drop(true).spawn().expect("a shell");
        let (input, output) = (browser.stdin.take().expect("piped"), browser.stdout.take().expect("piped"));
        let output = BufReader::new(output);
        let mut chrome = Self {
            input,
            output,
            number: 0,
            session: None,
            complaints: Vec::new(),
            _browser: browser,
            _profile: profile,
        };
        let target = loop {
            let targets = chrome.call("Target.getTargets", json!({})).await;
            let targets = targets["targetInfos"].as_array().cloned().unwrap_or_default();
            if let Some(page) = targets.iter().find(|target| target["type"] == "page") {
                break page["targetId"].clone();
            }
            sleep(Duration::from_millis(50)).await;
        };
        let attached = chrome.call("Target.attachToTarget", json!({"targetId": target, "flatten": true})).await;
        chrome.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            chrome.call(&format!("{domain}.enable"), json!({})).await;
        }
        chrome
    }

    /// Sends a command and returns what it is answered.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut command = json!({"id": self.number, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let mut text = command.to_string().into_bytes();
        text.push(0);
        self.input.write_all(&text).await.expect("the browser lives: the tests need Chromium (`chromium`)");
        loop {
            let message = self.hear().await;
            if message["id"] == json!(self.number) {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    async fn hear(&mut self) -> Value {
        let mut text = Vec::new();
        let read = timeout(PATIENCE, self.output.read_until(0, &mut text)).await;
        let read = read.expect("the browser answers in time").expect("the browser lives");
        assert!(read > 0, "the browser has left: the tests need Chromium (`chromium`)");
        text.pop();
        let message: Value = serde_json::from_slice(&text).expect("JSON");
        let level = &message["params"]["entry"]["level"];
        if message["method"] == "Runtime.exceptionThrown" || level == "error" {
            let params = &message["params"];
            let said = [&params["exceptionDetails"]["exception"]["description"], &params["entry"]["text"]];
            let said = said.into_iter().find_map(Value::as_str).unwrap_or_default();
            self.complaints.push(said.chars().take(300).collect());
        }
        message
    }

    /// Opens an address, until all of it is there.
    pub async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'").await;
    }

    async fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", asked).await
    }

    /// What an expression comes to in the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        let told = self.evaluate(expression).await;
        assert!(told["exceptionDetails"].is_null(), "{expression}: {told}");
        told["result"]["value"].clone()
    }

    /// Waits until an expression is true. In a page that is about to be left it may be nonsense.
    pub async fn until(&mut self, expression: &str) {
        let waited = async {
            while self.evaluate(expression).await["result"]["value"] != json!(true) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        if timeout(PATIENCE, waited).await.is_err() {
            let text = self.value("document.body.innerText").await;
            panic!("never: {expression}\n{}\n{:?}", text.as_str().unwrap_or_default(), self.complaints.first());
        }
    }

    /// The size of the window, in CSS pixels, and which theme and motion the system prefers.
    pub async fn look_like(&mut self, width: u32, height: u32, theme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let features = json!([
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// Presses and releases a key.
    pub async fn press(&mut self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }
}
