//! What is refused before anything else: no quota is spent, and nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::connect::{Connect, Connected, Connecting};
use sluicegate::mock::{Mock, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::time::{Instant, sleep};

use crate::support::client::{self, With};
use crate::support::config::Scratch;
use crate::support::{FREE, KEY, NOTHING, PIPE_BYTES, Setup, Site, connect, get};

/// Writes these bytes to the proxy and reads what comes until it closes, or for ten minutes.
async fn raw(site: &Site, text: &str) -> String {
    let mut io = site.connect();
    // The proxy may have answered and closed before it read all of it.
    let _ = io.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let until = Instant::now() + Duration::from_secs(600);
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout_at(until, io.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn nothing_happened(site: &Site, case: &str) {
    let stats = site.mock.stats();
    assert_eq!((stats.attempts, stats.unauthorized), (0, 0), "{case}");
    assert_eq!(site.proxy.usage(), NOTHING, "{case}");
    assert_eq!(site.proxy.status()["accounts"][0]["requests"]["used"], 0, "{case}");
}

#[tokio::test(start_paused = true)]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn what_must_not_be_forwarded_is_refused_with_its_code() {
    let many = "x".repeat(17 * 1024);
    let big = "y".repeat(65 * 1024);
    let cases = [
        ("GET", "/v1/echo", "host: evil.test", "421 misdirected_host".to_owned()),
        ("GET", "/v1/echo", "host: localhost.evil.test:8787", "421 misdirected_host".into()),
        ("GET", "http://evil.test/v1/echo", "host: evil.test", "421 misdirected_host".into()),
        ("GET", "http://localhost/v1/echo", "host: evil.test", "421 misdirected_host".into()),
        ("GET", "/v1/echo", "host: localhost\r\nhost: localhost", "400 bad_request".into()),
        ("GET", "/v1/echo", "x-no-host: 1", "400 bad_request".into()),
        ("GET", "/v1/echo", "host: localhost\r\norigin: http://evil.test", "403 forbidden_origin".into()),
        ("GET", "/v1/echo", "host: localhost\r\norigin: null", "403 forbidden_origin".into()),
        ("GET", "/v1/echo", "host: localhost\r\nsec-fetch-site: cross-site", "403 forbidden_origin".into()),
        ("OPTIONS", "/v1/echo", "host: localhost\r\norigin: http://evil.test", "403 forbidden_origin".into()),
        ("CONNECT", "evil.test:443", "host: evil.test:443", "405 method_refused".into()),
        ("TRACE", "/v1/echo", "host: localhost", "405 method_refused".into()),
        ("GET", &format!("/{many}"), "host: localhost", "414 target_too_long".into()),
        ("GET", "/v1/echo", &format!("host: localhost\r\nx-big: {big}"), "431 head_too_large".into()),
        ("POST", "/v1/predictions", "host: localhost\r\ncontent-length: 67108865", "413 body_too_large".into()),
        ("POST", "/v1/predictions", "host: localhost\r\norigin: http://evil.test", "403 forbidden_origin".into()),
        (
            "POST",
            "/v1/predictions",
            "host: localhost\r\ntransfer-encoding: gzip, chunked",
            "501 bad_transfer_coding".into(),
        ),
        ("POST", "/v1/echo", "host: localhost\r\ntransfer-encoding: gzip, chunked", "501 bad_transfer_coding".into()),
        ("GET", "/v1/echo", "host: localhost\r\nsluicegate-max-wait: soon", "400 bad_request".into()),
        ("GET", "/v1/echo", "host: localhost\r\nsluicegate-max-wait: -5s", "400 bad_request".into()),
    ];
    for (method, target, fields, expected) in cases {
        let site = Setup::default().memory();
        let answer = raw(&site, &format!("{method} {target} HTTP/1.1\r\n{fields}\r\nconnection: close\r\n\r\n")).await;
        let short = format!("{method} {target:.40} {fields:.60}");
        let (status, code) = expected.split_once(' ').expect("both");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{short}: {answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{short}: {answer}");
        assert!(answer.contains("x-request-id: ") && answer.contains("server-timing: "), "{short}: {answer}");
        assert!(
            answer.contains("x-ratelimit-limit: 60\r\n") && answer.contains("ratelimit-policy: "),
            "{short}: {answer}"
        );
        assert_eq!(answer.contains("sluicegate-charge: not-sent"), target == "/v1/predictions", "{short}: {answer}");
        nothing_happened(&site, &short);
    }
}

/// Not one of them reaches the parser, and all are answered as everything else is.
#[tokio::test(start_paused = true)]
async fn what_is_no_request_at_all_is_refused() {
    let huge = "z".repeat(300 * 1024);
    for text in [
        "GARBAGE\r\n\r\n".to_owned(),
        "GET /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello".into(),
        "GET /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".into(),
        "POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n".into(),
        "GET /v1/echo HTTP/1.1\r\nhost: localhost\r\nx y: 1\r\n\r\n".into(),
        format!("GET /v1/echo HTTP/1.1\r\nhost: localhost\r\nx: {huge}\r\n\r\n"),
        format!("GET /{huge} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        "GET /v1/echo HTTP/1.1\r\nhost: local".into(),
    ] {
        let site = Setup::default().memory();
        let answer = raw(&site, &text).await;
        assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("\"code\":"), "{text:.60}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{text:.60}: {answer}");
        sleep(Duration::from_millis(1)).await;
        nothing_happened(&site, &text[..text.len().min(60)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_answered_408_and_holds_nothing() {
    let head = "HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    for (text, charge) in [
        (format!("POST /v1/predictions {head}\r\ncontent-length: 100\r\n\r\n{{\"model\""), true),
        (format!("POST /v1/predictions {head}\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{{\"mod"), true),
        (format!("POST /v1/echo {head}\r\ncontent-length: 1000\r\n\r\nabc"), false),
    ] {
        let site = Setup::default().memory();
        let begun = Instant::now();
        let answer = raw(&site, &text).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"client_timeout\""), "{text}: {answer}");
        assert!(begun.elapsed() >= Duration::from_secs(30));
        assert_eq!(answer.contains("sluicegate-charge: not-sent"), charge, "{answer}");
        sleep(Duration::from_secs(1)).await;
        nothing_happened(&site, &text);
    }
}

/// Writes a head, then a body of `pieces`, one each `pause`; returns the answer and how long it took.
async fn trickled(site: &Site, head: &str, piece: &str, pieces: usize, pause: Duration) -> (String, Duration) {
    let (mut read, mut write) = split(site.connect());
    let (head, piece, begun) = (head.to_owned(), piece.to_owned(), Instant::now());
    let writing = tokio::spawn(async move {
        write.write_all(head.as_bytes()).await.expect("written");
        for _ in 0..pieces {
            sleep(pause).await;
            // The proxy may have hung up.
            if write.write_all(piece.as_bytes()).await.is_err() {
                return;
            }
        }
        sleep(Duration::from_secs(600)).await;
    });
    let mut answer = Vec::new();
    let _ = read.read_buf(&mut answer).await;
    let took = begun.elapsed();
    let _ = read.read_to_end(&mut answer).await;
    writing.abort();
    (String::from_utf8_lossy(&answer).into_owned(), took)
}

/// No pause is as long as `server.body_timeout`, and yet the body would hold its place for a day.
#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_answered_408_and_holds_nothing() {
    let json = "HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close";
    let form = "HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\nconnection: close";
    for (head, piece) in [
        (format!("POST /v1/predictions {json}\r\ncontent-length: 4000\r\n\r\n"), "x"),
        (format!("POST /v1/predictions {json}\r\ntransfer-encoding: chunked\r\n\r\n"), "1\r\nx\r\n"),
        (format!("POST /v1/predictions/upload {form}\r\ntransfer-encoding: chunked\r\n\r\n"), "1\r\nx\r\n"),
        // Streamed: it reaches the upstream, but never whole.
        (format!("POST /v1/echo {json}\r\ntransfer-encoding: chunked\r\n\r\n"), "1\r\nx\r\n"),
    ] {
        for pause in [Duration::from_secs(1), Duration::from_secs(29)] {
            let site = Setup::default().memory();
            let (answer, took) = trickled(&site, &head, piece, 3000, pause).await;
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"client_timeout\""), "{head}: {answer}");
            assert!(answer.contains("\"least_bytes_per_sec\":1024"), "{head}: {answer}");
            assert!(took >= Duration::from_secs(30) && took < Duration::from_secs(31), "{head}: {took:?}");
            sleep(Duration::from_secs(1)).await;
            assert_eq!(site.proxy.usage(), NOTHING, "{head}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_that_keeps_moving_is_taken() {
    let site = Setup::default().memory();
    let prompt = "x".repeat(2048 * 120);
    let body = format!("{{\"model\":\"m\",\"input\":{{\"prompt\":\"{prompt}\"}}}}");
    let (first, rest) = body.split_at(body.len() - 2048 * 100);
    let length = body.len();
    let head = format!(
        "POST /v1/predictions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{first}"
    );
    let mut io = site.connect();
    io.write_all(head.as_bytes()).await.expect("written");
    for piece in rest.as_bytes().chunks(2048) {
        sleep(Duration::from_secs(1)).await;
        io.write_all(piece).await.expect("it is still read");
    }
    let mut answer = vec![0; 12];
    io.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 201");
}

/// Takes 8 KiB a second.
struct SlowUpstream(Arc<Mock>);

impl Connect for SlowUpstream {
    fn connect(&self) -> Connecting<'_> {
        let (near, middle) = duplex(8 * 1024);
        let (other, far) = duplex(PIPE_BYTES);
        self.0.serve(far);
        tokio::spawn(async move {
            let ((mut up, mut down), (mut back, mut on)) = (split(middle), split(other));
            let back = tokio::spawn(async move { tokio::io::copy(&mut back, &mut down).await });
            let mut piece = vec![0; 8 * 1024];
            while let Ok(n @ 1..) = up.read(&mut piece).await {
                sleep(Duration::from_secs(1)).await;
                if on.write_all(&piece[..n]).await.is_err() {
                    break;
                }
            }
            let _ = back.await;
        });
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}

/// The clock stands while nobody asks the caller for more.
#[tokio::test(start_paused = true)]
async fn an_upload_whose_upstream_is_slow_is_not_cut() {
    let scratch = Scratch::new();
    let mock = Arc::new(Mock::in_memory(Options { keys: vec![KEY.to_owned()], ..Options::default() }));
    let proxy = scratch.proxy(FREE, "", Arc::new(SlowUpstream(Arc::clone(&mock))));
    let begun = Instant::now();
    let answer = client::exchange(connect(&proxy), client::request("POST", "/v1/echo", vec![b'x'; 3 << 20])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(begun.elapsed() > Duration::from_secs(300), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_grows_beyond_the_limit_is_refused_whoever_reads_it() {
    let setup = || Setup { toml: "[server]\nmax_body = \"64KiB\"", ..Setup::default() };
    let site = setup().memory();
    let chunk = format!("8000\r\n{}\r\n", "a".repeat(0x8000));
    let head = "HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = raw(&site, &format!("POST /v1/predictions {head}{}0\r\n\r\n", chunk.repeat(3))).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"body_too_large\""), "{answer}");
    nothing_happened(&site, "held");

    // Streamed, it is cut on its way: the upstream never has a whole request.
    let site = setup().memory();
    let answer = raw(&site, &format!("POST /v1/echo {head}{}0\r\n\r\n", chunk.repeat(3))).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(site.proxy.usage(), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn a_caller_nobody_knows_is_refused() {
    let setup = Setup {
        toml: "[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n\
               [[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }",
        ..Setup::default()
    };
    let site = setup.memory();
    for call in [
        get("/v1/echo"),
        get("/v1/echo").with("x-api-key", "nobody"),
        get("/v1/echo?key=nobody"),
        get("/v1/echo").with("x-api-key", "web-token").with("sluicegate-token", "batch-token"),
    ] {
        let answer = site.send(call).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (401, "unauthorized".into()));
        assert_eq!(answer.header("x-should-retry"), "false");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"sluicegate\"");
    }
    nothing_happened(&site, "unknown");
    for call in [
        get("/v1/echo").with("x-api-key", "web-token"),
        get("/v1/echo").with("authorization", "Bearer web-token"),
        get("/v1/echo").with("x-goog-api-key", "web-token"),
        get("/v1/echo?a=1&key=web-token&b=2"),
    ] {
        assert_eq!(site.send(call).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_declared_body_is_asked_for_only_after_the_head_was_checked() {
    let site = Setup::default().memory();
    let body = r#"{"model":"m","input":{}}"#;
    let head = |host: &str| {
        let length = body.len();
        format!(
            "POST /v1/predictions HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )
    };
    let refused = raw(&site, &head("evil.test")).await;
    assert!(refused.starts_with("HTTP/1.1 421 ") && !refused.contains("100 Continue"), "{refused}");

    let mut io = site.connect();
    io.write_all(head("localhost").as_bytes()).await.expect("written");
    let mut buffer = [0; 4096];
    let n = io.read(&mut buffer).await.expect("read");
    assert!(buffer[..n].starts_with(b"HTTP/1.1 100 Continue\r\n\r\n"));
    io.write_all(body.as_bytes()).await.expect("written");
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert!(!site.mock.requests()[0].headers.contains_key("expect"));
}
