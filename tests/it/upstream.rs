//! An upstream that fails in every way: what the caller is told, what is given back, and that the next call is none the worse.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sluicegate::mock::{Mock, Options};
use sluicegate::server::Server;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{self, With, request};
use crate::support::config::Scratch;
use crate::support::raw::{Before, GOOD, Step, send, send_and_close};
use crate::support::{Answer, KEY, NOTHING, create, get, poll, post};

const OK: &str = "HTTP/1.1 200 OK\r\n";

fn ok(rest: &str) -> String {
    format!("{OK}{rest}")
}

/// After whatever happened: nothing is held, and a good call passes over a connection that the bad ones have not touched.
async fn none_the_worse(before: &Before, case: &str) {
    before.raw.be_good();
    let usage = before.settled().await;
    assert_eq!(usage.jobs_live as usize, usage.jobs_uncertain, "{case}");
    let (connections, requests) = (before.raw.connections(), before.raw.requests().len());
    let answer = before.send(get("/v1/good")).await;
    assert!(answer.status == 201 && answer.whole && answer.attempts() == 1, "{case}: {answer:?}");
    assert_eq!((before.raw.connections(), before.raw.requests().len()), (connections + 1, requests + 1), "{case}");
    // A create of unknown outcome lets its slot go, and every attempt leaves the window.
    sleep(Duration::from_secs(150)).await;
    assert_eq!(before.proxy.usage(), NOTHING, "{case}");
    let requests = &before.proxy.status()["accounts"][0]["requests"];
    assert_eq!((&requests["used"], &requests["remaining"]), (&0.into(), &600.into()), "{case}: permits are home");
}

#[track_caller]
fn is(answer: &Answer, status: u16, code: &str, attempts: u64, case: &str) {
    let told = (answer.status.as_u16(), answer.code(), answer.attempts());
    assert_eq!(told, (status, code.to_owned(), attempts), "{case}: {answer:?}");
    assert!(answer.whole, "{case}");
}

fn heads_that_cannot_be_passed_on() -> Vec<(&'static str, Vec<Step>, &'static str)> {
    let broke = "the connection broke";
    let large = |bytes: usize| ok(&format!("x-large: {}\r\ncontent-length: 0\r\n\r\n", "a".repeat(bytes)));
    let many = format!("{}\r\n", "x-a: 1\r\n".repeat(101));
    let flood = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(17);
    vec![
        ("nothing, closed", vec![Step::Close], broke),
        ("nothing, half closed", vec![Step::HalfClose, Step::Hang], broke),
        ("half a head", send_and_close(ok("content-le")), broke),
        ("another protocol", send("SSH-2.0-OpenSSH_9.6\r\n\r\n"), "not HTTP"),
        ("zeroes", send(vec![0; 512]), "not HTTP"),
        ("HTTP/2 unasked", send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "not HTTP"),
        ("HTTP/3.0", send("HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n"), "not HTTP"),
        ("no status", send("HTTP/1.1 OK\r\ncontent-length: 0\r\n\r\n"), "not HTTP"),
        ("status 99", send("HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n"), "not HTTP"),
        ("NUL in a field", send(ok("x-a: b\0c\r\ncontent-length: 0\r\n\r\n")), "not HTTP"),
        ("bare CR in a field", send(ok("x-a: b\rc\r\ncontent-length: 0\r\n\r\n")), "not HTTP"),
        ("obs-fold", send(ok("x-a: b\r\n c\r\ncontent-length: 0\r\n\r\n")), "not HTTP"),
        ("space before the colon", send(ok("x-a : b\r\ncontent-length: 0\r\n\r\n")), "not HTTP"),
        ("space in a name", send(ok("x a: b\r\ncontent-length: 0\r\n\r\n")), "not HTTP"),
        ("no colon", send(ok("x-a\r\ncontent-length: 0\r\n\r\n")), "not HTTP"),
        ("200 KiB of head", send(large(200 << 10)), "too long"),
        ("2 MiB of head", send(large(2 << 20)), "too long"),
        ("2 MiB of head without end", send(ok(&"x-a: b\r\n".repeat(1 << 18))), "too long"),
        ("101 fields", send(ok(&many)), "too many fields"),
        (
            "length and coding",
            send(ok("content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")),
            "a length and",
        ),
        ("two lengths", send(ok("content-length: 2\r\ncontent-length: 3\r\n\r\n{}{")), "not HTTP"),
        ("two lengths in one", send(ok("content-length: 2, 3\r\n\r\n{}{")), "not HTTP"),
        ("negative length", send(ok("content-length: -1\r\n\r\n")), "not HTTP"),
        ("length beyond counting", send(ok("content-length: 99999999999999999999\r\n\r\n")), "not HTTP"),
        ("gzip coding", send_and_close(ok("transfer-encoding: gzip\r\n\r\nxx")), "another transfer coding"),
        (
            "gzip, chunked",
            send(ok("transfer-encoding: gzip, chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n")),
            "another transfer coding",
        ),
        (
            "chunked twice",
            send(ok("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
            "another",
        ),
        ("coding over HTTP/1.0", send("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), "not HTTP"),
        (
            "101 unasked",
            send("HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
            "switches",
        ),
        ("interim answers for ever", send(flood.repeat(1000)), "1xx"),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_head_that_cannot_be_passed_on_is_asked_for_again_or_said_to_be_unknown() {
    for (case, steps, reason) in heads_that_cannot_be_passed_on() {
        for (call, path) in [(get("/v1/echo"), "GET"), (poll("job-9"), "poll")] {
            let before = Before::new("");
            before.raw.next(10, &steps);
            let answer = before.send(call).await;
            is(&answer, 502, "bad_upstream_answer", 4, &format!("{path} {case}"));
            let detail = answer.json()["detail"].as_str().expect("text").to_owned();
            assert!(detail.contains(reason), "{case}: {detail}");
            assert_eq!(answer.json()["attempts"], 4, "{path} {case}");
            assert_eq!(before.raw.connections(), 4, "{path} {case}: none is used again");
            none_the_worse(&before, case).await;
        }
        let chat = post("/llm/openai/v1/chat/completions", "{}");
        for (call, charge) in [(create(), "unknown"), (chat, "")] {
            let before = Before::new("");
            before.raw.next(10, &steps);
            let answer = before.send(call).await;
            is(&answer, 502, "outcome_unknown", 1, case);
            assert_eq!(answer.header("sluicegate-charge"), charge, "{case}");
            assert_eq!(before.raw.requests().len(), 1, "{case}: it may have been carried out");
            none_the_worse(&before, case).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn odd_but_certain_answers_pass() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(16);
    let cases = [
        ("16 interim answers", format!("{hints}{}", ok("content-length: 2\r\n\r\n{}"))),
        ("one length said twice", ok("content-length: 2\r\ncontent-length: 2\r\n\r\n{}")),
        ("one length said twice in one field", ok("content-length: 2, 2\r\n\r\n{}")),
        ("chunked in capitals", ok("transfer-encoding: CHUNKED\r\n\r\n2;ext=1\r\n{}\r\n0\r\nx-trailer: 1\r\n\r\n")),
        ("no reason", "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ("100 KiB of head", ok(&format!("x-a: {}\r\ncontent-length: 2\r\n\r\n{{}}", "a".repeat(100 << 10)))),
    ];
    for (case, bytes) in cases {
        let before = Before::new("");
        before.raw.next(1, &send(bytes));
        for _ in 0..2 {
            let answer = before.send(get("/v1/echo")).await;
            assert!(answer.status.is_success() && answer.whole && answer.attempts() == 1, "{case}: {answer:?}");
            assert!(answer.headers.get_all("content-length").iter().count() <= 1, "{case}: {answer:?}");
            assert!(!answer.headers.contains_key("x-trailer"), "{case}");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(before.raw.connections(), 1, "{case}: its end was certain, so that it is used again");
    }
}

fn bodies_that_break_off() -> Vec<(&'static str, Vec<Step>)> {
    let chunked = |rest: &str| ok(&format!("transfer-encoding: chunked\r\n\r\n{rest}"));
    vec![
        ("shorter than its length", send_and_close(ok("content-length: 100\r\n\r\n{\"status\":"))),
        (
            "half closed before its end",
            vec![Step::Send(ok("content-length: 100\r\n\r\n{\"s\"").into()), Step::HalfClose, Step::Hang],
        ),
        ("no last chunk", send_and_close(chunked("9\r\n{\"status\"\r\n"))),
        ("half a chunk", send_and_close(chunked("9\r\n{\"st"))),
        ("a chunk size that is none", send(chunked("9\r\n{\"status\"\r\nzz\r\n"))),
        ("a chunk size beyond counting", send(chunked("9\r\n{\"status\"\r\nfffffffffffffffff\r\n"))),
        ("a negative chunk size", send(chunked("9\r\n{\"status\"\r\n-1\r\n"))),
        ("a chunk that is longer than it says", send(chunked("2\r\n{\"status\"\r\n0\r\n\r\n"))),
        ("trailers without end", send(chunked(&format!("9\r\n{{\"status\"\r\n0\r\n{}", "x-a: b\r\n".repeat(1 << 18))))),
        ("silence in its middle", vec![Step::Send(ok("content-length: 100\r\n\r\n{\"s\"").into()), Step::Hang]),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_never_passed_as_whole_nor_its_connection_used_again() {
    for (case, steps) in bodies_that_break_off() {
        // Streamed: it had begun, so that its end can only be missing.
        let before = Before::new("");
        before.raw.next(1, &steps);
        let answer = before.send(get("/v1/echo")).await;
        assert_eq!((answer.status.as_u16(), answer.whole), (200, false), "{case}: {answer:?}");
        none_the_worse(&before, case).await;
        // Read whole before it is passed on: asked for again, or unknown.
        let before = Before::new("");
        before.raw.next(10, &steps);
        is(&before.send(poll("job-9")).await, 502, "bad_upstream_answer", 4, case);
        assert_eq!(before.raw.connections(), 4, "{case}");
        none_the_worse(&before, case).await;
        let before = Before::new("");
        before.raw.next(10, &steps);
        let answer = before.send(create()).await;
        is(&answer, 502, "outcome_unknown", 1, case);
        assert_eq!(answer.header("sluicegate-charge"), "unknown", "{case}");
        none_the_worse(&before, case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_an_answer_s_end_is_never_taken_for_the_next_answer() {
    let forged = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    let late = |head: &str| {
        vec![Step::Send(head.to_owned().into()), Step::Pause(Duration::from_millis(5)), Step::Send(forged.into())]
    };
    let cases = [
        ("with the body", get("/v1/a"), send(ok(&format!("content-length: 2\r\n\r\n{{}}{forged}")))),
        (
            "after a chunked body",
            get("/v1/a"),
            send(ok(&format!("transfer-encoding: chunked\r\n\r\n0\r\n\r\n{forged}"))),
        ),
        ("one byte too many", get("/v1/a"), send(ok("content-length: 2\r\n\r\n{}}"))),
        ("a little later", get("/v1/a"), late(&ok("content-length: 2\r\n\r\n{}"))),
        (
            "a body with 204",
            get("/v1/a"),
            send(format!("HTTP/1.1 204 No Content\r\ncontent-length: {}\r\n\r\n{forged}", forged.len())),
        ),
        ("a body with 304", get("/v1/a"), send(format!("HTTP/1.1 304 Not Modified\r\n\r\n{forged}"))),
        (
            "a body after HEAD",
            request("HEAD", "/v1/a", ""),
            send(ok(&format!("content-length: {}\r\n\r\n{forged}", forged.len()))),
        ),
        ("a poll's", poll("job-9"), send(ok(&format!("content-length: 2\r\n\r\n{{}}{forged}")))),
        ("a create's", create(), send(format!("{GOOD}{forged}"))),
    ];
    for (case, call, steps) in cases {
        let before = Before::new("");
        before.raw.next(1, &steps);
        let first = before.send(call).await;
        assert!(first.whole && !first.status.is_server_error(), "{case}: {first:?}");
        if case == "a little later" {
            sleep(Duration::from_millis(10)).await;
        }
        let next = before.send(get("/v1/b")).await;
        assert!(next.status == 201 && next.body.starts_with(b"{\"job_id"), "{case}: {next:?}");
        assert_eq!(before.raw.connections(), 2, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_closed_as_a_request_is_written_repeats_only_what_is_safe() {
    // Closed while idle, unnoticed until the write: nothing of the request was answered, or read.
    let closes_when_idle = [Step::Send(GOOD.into()), Step::Close];
    for call in [get("/v1/b"), create(), post("/v1/b", "{}")] {
        let before = Before::new("");
        before.raw.next(1, &closes_when_idle);
        before.send(get("/v1/a")).await;
        let answer = before.send(call).await;
        assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 1), "{answer:?}");
        assert_eq!((before.raw.connections(), before.raw.requests().len()), (2, 2));
    }
    // Closed as the request arrives: it may have been read.
    let cases = [
        (get("/v1/b"), 201, "", 2),
        (create(), 502, "outcome_unknown", 1),
        (post("/v1/b", "{}"), 502, "outcome_unknown", 1),
    ];
    for (call, status, code, attempts) in cases {
        let before = Before::new("");
        before.raw.next(1, &send(GOOD));
        before.raw.next(1, &[Step::Close]);
        before.send(get("/v1/a")).await;
        let answer = before.send(call).await;
        is(&answer, status, code, attempts, code);
        none_the_worse_after(&before, attempts).await;
    }
}

async fn none_the_worse_after(before: &Before, attempts: u64) {
    before.settled().await;
    assert_eq!(before.raw.requests().len() as u64, 1 + attempts);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_before_the_body_was_sent_is_passed_on() {
    let refusal = "HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 7\r\n\r\ntoo big";
    let paths: [fn() -> Request<Full<Bytes>>; 3] =
        [|| post("/v1/echo", vec![7; 3 << 20]), || request("PUT", "/v1/echo", vec![7; 100]), create];
    for (n, call) in paths.into_iter().enumerate() {
        for steps in [send_and_close(refusal), vec![Step::Send(refusal.into()), Step::Hang]] {
            let before = Before::new("");
            before.raw.be_impatient();
            before.raw.next(1, &steps);
            let answer = timeout(Duration::from_secs(5), before.send(call())).await.expect("an answer");
            assert_eq!(
                (answer.status.as_u16(), &answer.body[..], answer.attempts()),
                (413, &b"too big"[..], 1),
                "{n} {steps:?}"
            );
            none_the_worse(&before, "early").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn slow_heads_and_trickled_bodies_end_at_their_timeouts() {
    let toml = "[upstream]\nattempt_timeout = \"10s\"\nidle_timeout = \"20s\"\n[retry]\nmax_attempts = 1";
    let head = ok("content-length: 1000\r\n\r\n");
    // A head a byte at a time is no head.
    let slow: Vec<Step> =
        head.bytes().flat_map(|byte| [Step::Send(vec![byte].into()), Step::Pause(Duration::from_secs(1))]).collect();
    for (call, status, code) in [(get("/v1/a"), 504, "upstream_timeout"), (create(), 502, "outcome_unknown")] {
        let before = Before::new(toml);
        before.raw.next(1, &slow);
        let begun = Instant::now();
        is(&before.send(call).await, status, code, 1, "slow head");
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        none_the_worse(&before, "slow head").await;
    }
    // A body may be as slow as it likes, as long as it comes; silence ends it.
    let mut trickle = vec![Step::Send(head.into())];
    trickle.extend((0..10).flat_map(|_| [Step::Pause(Duration::from_secs(19)), Step::Send("x".into())]));
    trickle.push(Step::Hang);
    let before = Before::new(toml);
    before.raw.next(1, &trickle);
    let begun = Instant::now();
    let answer = before.send(get("/v1/a")).await;
    assert_eq!((answer.body.len(), answer.whole, begun.elapsed().as_secs()), (10, false, 210));
    none_the_worse(&before, "trickled body").await;
}

#[tokio::test(start_paused = true)]
async fn fields_of_the_upstream_s_connection_end_here() {
    let before = Before::new("");
    let fields = "connection: keep-alive, x-hop, x-request-id, content-length, server-timing\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
                  proxy-authenticate: Basic\r\nproxy-connection: close\r\nte: trailers\r\ntrailer: x-t\r\nupgrade: h2c\r\nx-end: 1\r\n";
    before.raw.next(1, &send(ok(&format!("{fields}content-length: 2\r\n\r\n{{}}"))));
    let answer = before.send(get("/v1/a")).await;
    for name in
        ["connection", "x-hop", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "upgrade"]
    {
        assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
    }
    assert_eq!((answer.header("x-end"), answer.header("content-length")), ("1", "2"));
    assert_eq!(answer.header("x-request-id").len(), 32, "ours is not theirs to remove");
    assert_eq!(answer.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn redirects_are_passed_on_and_never_followed_with_the_key() {
    let places = [
        "https://evil.test/steal",
        "//evil.test/",
        "/v1/elsewhere",
        "http://localhost:1/v1/back",
        "https://api.core.today.evil.test/",
    ];
    for place in places {
        for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"] {
            let before = Before::new("");
            before.raw.next(1, &send(format!("HTTP/1.1 {status}\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n")));
            let answer = before.send(get("/v1/a")).await;
            assert_eq!(answer.header("location"), place, "as it came");
            assert_eq!(answer.status.as_str(), &status[..3]);
            let (requests, usage) = (before.raw.requests(), before.settled().await);
            assert!(requests.len() == 1 && requests[0].contains(KEY), "asked once, with the key: {requests:?}");
            assert_eq!((before.raw.connections(), usage), (1, NOTHING));
            assert!(!format!("{answer:?}").contains(KEY));
        }
    }
}

/// The key is sent to nobody who cannot prove that it is the upstream.
#[tokio::test]
async fn a_stranger_s_certificate_gets_nothing() {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("a key");
    let any = "127.0.0.1:0".parse().expect("an address");
    let mock = Mock::start_tls(Options::default(), any, Arc::new(tls)).await.expect("a port");
    let scratch = Scratch::new();
    let url = format!("https://localhost:{}", mock.addr().port());
    let config = scratch.load("requests_per_minute = 60\nconcurrent_jobs = 5", "[retry]\nmax_attempts = 1", &url);
    let server = Server::start(&config).await.expect("free ports");
    for call in [create(), get("/v1/a")] {
        let io = TcpStream::connect(server.listen[0]).await.expect("open");
        let answer = client::exchange(io, call).await;
        is(&answer, 502, "upstream_unreachable", 1, "TLS");
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("TLS")), "{answer:?}");
        assert!(["", "not-sent"].contains(&answer.header("sluicegate-charge")));
        assert_eq!(answer.header("x-ratelimit-remaining"), "60", "nothing is spent");
    }
    assert_eq!((mock.stats().attempts, mock.stats().unauthorized, mock.stats().connections), (0, 0, 0));
    assert!(server.drain().await);
    mock.shutdown().await;
}

/// A create is asked again after a status that the vendor documents, but not where that answer is broken.
#[tokio::test(start_paused = true)]
async fn a_broken_refusal_of_a_create_is_no_refusal() {
    let before = Before::new("");
    before.raw.next(1, &send("HTTP/1.1 503 Busy\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"));
    is(&before.send(create().with("x-a", "b")).await, 502, "outcome_unknown", 1, "503");
    assert_eq!(before.raw.requests().len(), 1);
    none_the_worse(&before, "503").await;
}
