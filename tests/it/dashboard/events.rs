//! The dashboard's events: who may listen, how many, and what it costs when nobody does.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Setup;
use crate::support::client::{self, With, get, post};
use crate::support::patience::until;

#[tokio::test]
async fn they_are_guarded_bounded_and_built_for_listeners_alone() {
    let live = Setup::default().loopback().await;
    let admin = live.server.admin.expect("a port");
    let connect = || async { TcpStream::connect(admin).await.expect("open") };
    let told = async || live.admin("/api/v1/status").await.json()["dashboard"].clone();
    assert_eq!(told().await, json!({"listeners": 0, "snapshots": 0}));
    for (name, value, status) in
        [("origin", "http://evil.test", 403), ("host", "evil.test", 421), ("sec-fetch-site", "cross-site", 403)]
    {
        for path in ["/", "/app.js", "/api/v1/events"] {
            let refused = client::exchange(connect().await, get(path).with(name, value)).await;
            assert_eq!(refused.status, status, "{path} {name}");
        }
    }
    assert_eq!(client::exchange(connect().await, client::request("HEAD", "/api/v1/events", "")).await.status, 200);
    assert_eq!(client::exchange(connect().await, post("/api/v1/events", "")).await.status, 405);
    assert_eq!(told().await, json!({"listeners": 0, "snapshots": 0}));

    let mut listeners = Vec::new();
    for _ in 0..16 {
        listeners.push(Listener::new(connect().await).await);
    }
    for listener in &mut listeners {
        let history = listener.event("history").await;
        assert_eq!((&history["every_secs"], &history["points"]), (&json!(10), &json!(360)));
        assert_eq!(listener.event("snapshot").await["status"]["accounts"][0]["name"], "main");
    }
    let one_more = live.admin("/api/v1/events").await;
    assert_eq!((one_more.status.as_u16(), one_more.header("retry-after")), (503, "5"));
    // One snapshot for all: sixteen listeners hear a few events each.
    let before = told().await["snapshots"].as_u64().expect("a number");
    for listener in &mut listeners {
        listener.event("snapshot").await;
        listener.event("snapshot").await;
    }
    let built = told().await["snapshots"].as_u64().expect("a number") - before;
    assert!((2..=16).contains(&built), "{built}");
    drop(listeners);
    until("without listeners", || async {
        let told = told().await;
        (told["listeners"] == 0, told)
    })
    .await;
    let page = live.admin("/").await;
    assert!(
        page.header("content-security-policy").starts_with("default-src 'none'; script-src 'self'; style-src 'self';")
    );
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("content-type", "text/html; charset=utf-8"),
    ] {
        assert_eq!(page.header(name), value);
    }
    assert_eq!(live.mock.stats().attempts, 0);
    live.stop().await;
}

/// Hears server-sent events.
struct Listener {
    stream: TcpStream,
    heard: String,
}

impl Listener {
    async fn new(mut stream: TcpStream) -> Self {
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("open");
        Self { stream, heard: String::new() }
    }

    /// The data of the next event of this name.
    async fn event(&mut self, name: &str) -> Value {
        let begin = format!("event: {name}\ndata: ");
        loop {
            if let Some((_, rest)) = self.heard.split_once(&begin)
                && let Some((data, rest)) = rest.split_once("\n\n")
            {
                let data = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
                let left = rest.len();
                self.heard.drain(..self.heard.len() - left);
                return data;
            }
            let mut piece = vec![0; 16 * 1024];
            let read = self.stream.read(&mut piece);
            let read = tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time").expect("open");
            assert!(read > 0, "it ended");
            self.heard.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    }
}
