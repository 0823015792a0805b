//! Bodies in both directions: piece by piece, in bounded memory, whole or visibly not.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sluicegate::app::Proxy;
use sluicegate::clock::Clock;
use sluicegate::connect::{Connect, Connected, Connecting, Failure};
use sluicegate::mock::{Fault, Mock, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::support::client::{self, With, request};
use crate::support::config::Scratch;
use crate::support::{Setup, create, get, poll, post};

fn unlimited() -> Setup {
    Setup {
        mock: Options { requests: None, concurrent_jobs: None, ..Options::default() },
        plan: "concurrent_jobs = 100",
        ..Setup::default()
    }
}

/// A body of this many bytes, made as it is read.
struct Zeroes(usize);

impl Body for Zeroes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        let n = self.0.min(ZEROES.len());
        self.0 -= n;
        Poll::Ready((n > 0).then(|| Ok(Frame::data(Bytes::from_static(&ZEROES[..n])))))
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|kb| kb.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[tokio::test]
async fn events_arrive_as_they_are_sent() {
    let live = unlimited().loopback().await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(live.connect().await)).await.expect("open");
    let connection = tokio::spawn(connection);
    let mut request = get("/v1/sse?events=60&gap_ms=10");
    request.headers_mut().insert("accept", "text/event-stream".parse().expect("a value"));
    let mut body = sender.send_request(request).await.expect("an answer").into_body();
    // The first event sets the clocks against each other: its delay counts as none.
    let (mut delays, mut first) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let now = Instant::now();
        let data = frame.expect("whole").into_data().expect("data");
        let text = std::str::from_utf8(&data).expect("text");
        for event in text.split_terminator("\n\n") {
            let event: Value = serde_json::from_str(event.trim_start_matches("data: ")).expect("JSON");
            let sent = Duration::from_micros(event["sent_us"].as_u64().expect("a number"));
            let (base, base_sent) = *first.get_or_insert((now, sent));
            delays.push((now - base).saturating_sub(sent.saturating_sub(base_sent)));
        }
    }
    assert_eq!(delays.len(), 60);
    delays.sort();
    assert!(delays[30] < Duration::from_millis(5), "{delays:?}");
    drop(sender);
    let _ = connection.await;
    live.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_a_stream_ends_it_upstream() {
    for (h2, call) in [(false, get("/v1/sse?events=100&gap_ms=100")), (true, get("/v1/sse?events=100&gap_ms=100"))] {
        let site = Setup { h2, ..unlimited() }.memory();
        let left = tokio::time::timeout(Duration::from_secs(3), site.send(call)).await;
        assert!(left.is_err());
        site.mock.wait_until(|stats| stats.streams_aborted == 1).await;
        assert_eq!(site.proxy.usage().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_cut_upstream_is_never_falsely_complete() {
    let chat = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}).to_string();
    for h2 in [false, true] {
        let site = Setup { h2, ..unlimited() }.memory();
        let chat = || post("/llm/openai/v1/chat/completions", chat.clone());
        let whole = site.send(chat()).await;
        assert!(whole.whole && whole.body.ends_with(b"data: [DONE]\n\n"), "{whole:?}");
        for call in [get("/v1/sse?events=100&gap_ms=1"), get("/v1/bytes/1000000"), chat()] {
            site.mock.fault_next("", "/", Fault::HalfBody);
            let answer = site.send(call).await;
            assert_eq!((answer.status.as_u16(), answer.whole), (200, false), "h2 {h2}");
            assert!(!answer.body.is_empty());
        }
        assert_eq!(site.proxy.usage().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_falls_silent_is_cut_after_the_idle_timeout() {
    let mut setup = unlimited();
    setup.toml = "[upstream]\nidle_timeout = \"20s\"";
    let site = setup.memory();
    let slow = site.send(get("/v1/sse?events=5&gap_ms=15000")).await;
    assert!(slow.whole, "slow is not silent");
    let begun = Instant::now();
    let silent = site.send(get("/v1/sse?events=5&gap_ms=60000")).await;
    assert!(!silent.whole && begun.elapsed() == Duration::from_secs(20), "{:?}", begun.elapsed());
    site.mock.wait_until(|stats| stats.streams_aborted == 1).await;
}

#[tokio::test]
async fn large_bodies_pass_in_bounded_memory() {
    const BYTES: usize = 200 << 20;
    let mut setup = unlimited();
    setup.toml = "[server]\nmax_body = \"1GiB\"\nbuffer = \"1GiB\"";
    let live = setup.loopback().await;
    let before = resident_bytes();
    let call = Request::post("/v1/echo").header("host", "localhost").body(Zeroes(BYTES)).expect("a request");
    let answer = client::exchange(live.connect().await, call).await;
    assert_eq!(answer.json()["body_bytes"], BYTES);

    let (mut sender, connection) = http1::handshake(TokioIo::new(live.connect().await)).await.expect("open");
    let connection = tokio::spawn(connection);
    let response = sender.send_request(get(&format!("/v1/bytes/{BYTES}"))).await.expect("an answer");
    assert_eq!(response.headers()["content-length"], BYTES.to_string().as_str());
    let (mut body, mut read) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        read += frame.expect("whole").data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(read, BYTES);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 100 << 20, "{} MiB", grown >> 20);
    drop(sender);
    let _ = connection.await;
    live.stop().await;
}

#[tokio::test(start_paused = true)]
async fn h2_callers_and_h2_upstreams_get_the_same() {
    for h2 in [false, true] {
        let site = Setup { h2, ..unlimited() }.memory();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(site.connect())).await.expect("open");
        tokio::spawn(connection);
        let uri = |path: &str| format!("http://localhost:8787{path}");
        let call = |method: &str, path: &str, body: &'static [u8]| {
            let request = Request::builder().method(method).uri(uri(path));
            request.body(Full::new(Bytes::from_static(body))).expect("a request")
        };
        let echo =
            client::read(sender.send_request(call("POST", "/v1/echo?a=1", b"hello")).await.expect("answered")).await;
        assert_eq!((&echo.json()["body_bytes"], &echo.json()["path"]), (&json!(5), &json!("/v1/echo?a=1")), "h2 {h2}");
        let created = sender.send_request(call("POST", "/v1/predictions", br#"{"model":"m","input":{}}"#)).await;
        let created = client::read(created.expect("answered")).await;
        assert_eq!((created.status.as_u16(), created.header("sluicegate-charge")), (201, "accepted"));
        let stream =
            client::read(sender.send_request(call("GET", "/v1/sse?events=3", b"")).await.expect("answered")).await;
        assert!(stream.whole && stream.body.split(|byte| *byte == b'\n').count() == 7);
        let wrong = Request::get("http://evil.test/v1/echo").body(Full::new(Bytes::new())).expect("a request");
        let wrong = client::read(sender.send_request(wrong).await.expect("answered")).await;
        assert_eq!(wrong.code(), "misdirected_host");
        let upload = call("POST", "/v1/echo", vec![0; 2 << 20].leak());
        let upload = client::read(sender.send_request(upload).await.expect("answered")).await;
        assert_eq!(upload.json()["body_bytes"], 2 << 20);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_stay_so() {
    for h2 in [false, true] {
        let site = Setup { h2, ..unlimited() }.memory();
        let status = |code| Fault::Status { code, headers: std::collections::BTreeMap::new(), execute: false };
        for code in [204, 304] {
            site.mock.fault_next("GET", "/v1/echo", status(code));
            let answer = site.send(get("/v1/echo")).await;
            assert_eq!((answer.status.as_u16(), answer.body.len(), answer.whole), (code, 0, true), "h2 {h2}");
        }
        let head = site.send(request("HEAD", "/v1/bytes/1000", "")).await;
        assert!(head.body.is_empty() && head.whole, "{head:?}");
        // One connection, used again and again: nothing of a body was left on it.
        let (mut sender, connection) = http1::handshake(TokioIo::new(site.connect())).await.expect("open");
        tokio::spawn(connection);
        for call in [request("HEAD", "/v1/echo", ""), get("/v1/echo"), poll("nothing"), create(), get("/v1/echo")] {
            sender.ready().await.expect("kept open");
            let answer = client::read(sender.send_request(call).await.expect("answered")).await;
            assert!(answer.whole);
        }
        assert_eq!(site.proxy.usage().in_flight, 0);
    }
}

/// Requests written one after the other without waiting are answered in order.
#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order() {
    let site = unlimited().memory();
    let mut io = site.connect();
    let text = |n: usize, last: &str| format!("GET /v1/echo?n={n} HTTP/1.1\r\nhost: localhost\r\n{last}\r\n");
    let all = format!("{}{}{}", text(1, ""), text(2, ""), text(3, "connection: close\r\n"));
    io.write_all(all.as_bytes()).await.expect("written");
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.expect("read");
    let order: Vec<_> = answer.match_indices("/v1/echo?n=").map(|(at, _)| answer.as_bytes()[at + 11]).collect();
    assert_eq!(order, b"123");
}

/// TLS with a certificate of our own, and both protocols by ALPN.
struct Tls {
    address: std::net::SocketAddr,
    config: tokio_rustls::TlsConnector,
}

impl Connect for Tls {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let tcp = tokio::net::TcpStream::connect(self.address).await.map_err(|_| Failure::refused())?;
            let name = "localhost".try_into().expect("a name");
            let tls = self.config.connect(name, tcp).await.map_err(|_| Failure::refused())?;
            let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(Connected { io: Box::new(tls), h2 })
        })
    }
}

#[tokio::test]
async fn tls_upstreams_speak_either_protocol() {
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).expect("a root");
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a key");
        server.alpn_protocols = vec![alpn.to_vec()];
        let any = "127.0.0.1:0".parse().expect("an address");
        let mock = Mock::start_tls(Options::default(), any, Arc::new(server)).await.expect("a port");
        let mut client_config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        client_config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = Arc::new(Tls { address: mock.addr(), config: Arc::new(client_config).into() });
        let config = Scratch::new().load("requests_per_minute = 60", "", "https://localhost:1");
        let proxy = Proxy::build(&config, Clock::system(), Some(connector)).expect("built");
        let send = |call| {
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(proxy.serve(far));
            client::exchange(near, call)
        };
        assert_eq!(send(create()).await.status, 201);
        let echo = send(post("/v1/echo", "hello").with("connection", "keep-alive")).await;
        assert_eq!(echo.json()["body_bytes"], 5);
        assert_eq!(mock.stats().connections, 1, "{}", String::from_utf8_lossy(alpn));
        mock.shutdown().await;
    }
}
