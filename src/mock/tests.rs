//! The mock from outside: over HTTP, in memory with paused time where possible.

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, advance, timeout};

use super::{Counter, Dialect, Fault, Mock, Options};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn the_sixth_job_is_refused_until_one_ends() {
    let mock = Mock::in_memory(Options::default());
    for _ in 0..5 {
        assert_eq!(create(&mock, json!({})).await.status(), StatusCode::CREATED);
    }
    let refused = create(&mock, json!({})).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!((number(&refused, "x-ratelimit-remaining"), number(&refused, "retry-after")), (Some(54), None));
    mock.finish(&mock.job_ids()[2]);
    assert_eq!(create(&mock, json!({})).await.status(), StatusCode::CREATED);
    let stats = mock.stats();
    assert_eq!((stats.jobs_live_now, stats.jobs_live_peak, stats.refused_job_429), (5, 5, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_over_the_limit_is_told_when_to_come_back() {
    let options = Options { requests: Some(3), counter: Counter::Anchored, ..Options::default() };
    let mock = Mock::in_memory(options);
    for _ in 0..3 {
        assert_eq!(get(&mock, "/v1/nothing").await.status(), StatusCode::NOT_FOUND);
        advance(Duration::from_secs(10)).await;
    }
    let refused = get(&mock, "/v1/predictions/x").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!((number(&refused, "retry-after"), number(&refused, "x-ratelimit-remaining")), (Some(30), Some(0)));
    advance(Duration::from_secs(30)).await;
    assert_eq!(get(&mock, "/v1/echo").await.status(), StatusCode::OK);
    let stats = mock.stats();
    assert_eq!((stats.attempts, stats.refused_rate_429, stats.max_in_window), (5, 1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_job_ends_by_the_clock_and_wakes_who_waits() {
    let mock = Mock::in_memory(Options { dialect: Dialect::A, ..Options::default() });
    let start = Instant::now();
    let id = body(create(&mock, json!({ "run_time_ms": 700, "fail": true })).await)["id"].clone();
    mock.wait_until(|stats| stats.jobs_live_now == 0).await;
    assert_eq!(start.elapsed(), Duration::from_millis(700));
    let path = format!("/v1/predictions/{}", id.as_str().expect("an id"));
    assert_eq!(body(get(&mock, &path).await)["status"], "failed");
    let gone = call(&mock, Request::delete(&path)).await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::CONFLICT);
}

#[tokio::test(start_paused = true)]
async fn keys_have_books_of_their_own_and_others_are_unknown() {
    let keys = vec!["cdt_a".to_owned(), "cdt_b".to_owned()];
    let mock = Mock::in_memory(Options { keys, requests: Some(1), ..Options::default() });
    let mut answers = Vec::new();
    for key in ["cdt_a", "cdt_b", "cdt_a", "cdt_c", "session"] {
        let request = Request::get("/v1/echo").header("x-api-key", key);
        answers.push(send(&mock, request, "").await.expect("an answer").status().as_u16());
    }
    assert_eq!(answers, [200, 200, 429, 401, 401]);
    assert_eq!(mock.stats().keys["cdt_a"].refused_rate_429, 1);
}

#[tokio::test(start_paused = true)]
async fn faults_strike_as_scripted() {
    let mock = Mock::in_memory(Options::default());
    let input = || Request::post("/v1/predictions");
    let job = json!({ "model": "m", "input": {} }).to_string();
    for fault in [Fault::ResetBefore, Fault::ResetAfter, Fault::HalfBody, Fault::Garbage { execute: false }] {
        mock.fault_next("POST", "/v1/predictions", fault);
        assert!(send(&mock, input().header("x-api-key", "k"), &job).await.is_err());
    }
    assert_eq!(mock.stats().creates_accepted, 2);
    mock.fault_next("POST", "/v1", Fault::Hang { execute: true });
    assert!(timeout(SOON, send(&mock, input().header("x-api-key", "k"), &job)).await.is_err());
    let headers = [("retry-after".to_owned(), "9".to_owned())].into();
    mock.script([Fault::Status { code: 503, headers, execute: true }.on("", "/").after(1)]);
    assert_eq!(get(&mock, "/v1/echo").await.status(), StatusCode::OK);
    let answer = create(&mock, json!({})).await;
    assert_eq!((answer.status().as_u16(), number(&answer, "retry-after")), (503, Some(9)));
    let stats = mock.stats();
    assert_eq!((stats.creates_accepted, stats.faults, stats.attempts), (4, 6, 7));
    let start = Instant::now();
    mock.fault_next("", "", Fault::SlowHead { delay: SOON });
    assert_eq!(get(&mock, "/v1/echo").await.status(), StatusCode::OK);
    assert_eq!(start.elapsed(), SOON);
}

#[tokio::test(start_paused = true)]
async fn streams_keep_their_gaps_and_bodies_their_length() {
    let mock = Mock::in_memory(Options::default());
    let start = Instant::now();
    let events = get(&mock, "/v1/sse?events=4&gap_ms=250").await.into_body();
    assert_eq!(events.windows(6).filter(|six| six == b"data: ").count(), 4);
    assert!(start.elapsed() >= Duration::from_millis(750));
    assert_eq!(get(&mock, "/v1/bytes/100001").await.body().len(), 100_001);
}

#[tokio::test]
async fn a_webhook_arrives_signed() {
    let mock = Mock::in_memory(Options { webhook_secret: Some("s".to_owned()), ..Options::default() });
    let receiver = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", receiver.local_addr().expect("bound"));
    let request = json!({ "model": "m", "input": { "run_time_ms": 10 }, "webhook": url }).to_string();
    send(&mock, Request::post("/v1/predictions").header("x-api-key", "k"), &request).await.expect("an answer");
    let (mut stream, _) = timeout(SOON, receiver.accept()).await.expect("in time").expect("a connection");
    let mut got = String::new();
    while !got.ends_with('}') {
        let mut piece = [0; 1024];
        let n = stream.read(&mut piece).await.expect("bytes");
        got.push_str(std::str::from_utf8(&piece[..n]).expect("text"));
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("sent");
    let (head, body) = got.split_once("\r\n\r\n").expect("a head");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"s"), body.as_bytes());
    timeout(SOON, mock.wait_until(|stats| stats.webhooks_delivered == 1)).await.expect("in time");
    assert!(head.starts_with("POST /hook HTTP/1.1"));
    assert!(head.contains(&format!("x-webhook-signature: {}", super::webhook::hex(tag.as_ref()))));
    assert!(body.contains("\"completed\""));
}

#[tokio::test]
async fn a_connection_closed_while_idle_had_a_good_answer() {
    let mock = Mock::start(Options::default(), ([127, 0, 0, 1], 0).into()).await.expect("a port");
    mock.fault_next("", "", Fault::CloseIdle);
    let mut stream = TcpStream::connect(mock.addr()).await.expect("connected");
    stream.write_all(b"GET /v1/echo HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\n\r\n").await.expect("sent");
    let mut got = String::new();
    timeout(SOON, stream.read_to_string(&mut got)).await.expect("closed in time").expect("text");
    assert!(got.starts_with("HTTP/1.1 200 OK") && got.ends_with('}') && !got.contains("connection: close"));
    timeout(SOON, mock.shutdown()).await.expect("everything ends");
}

#[tokio::test(start_paused = true)]
async fn replicate_holds_a_create_as_long_as_it_may() {
    let mock = Mock::in_memory(Options { dialect: Dialect::Replicate, ..Options::default() });
    let create = |path: &'static str, prefer: &'static str, body: Value| {
        let request =
            Request::post(path).header("authorization", "Bearer k").header("host", "mock:9").header("prefer", prefer);
        let mock = &mock;
        async move { send(mock, request, &body.to_string()).await.expect("an answer") }
    };
    let start = Instant::now();
    let held = create("/v1/models/acme/boats/predictions", "wait", json!({ "input": {} })).await;
    assert_eq!((held.status(), held.headers()["preference-applied"].as_bytes()), (StatusCode::CREATED, &b"wait"[..]));
    let held = body(held);
    assert_eq!(start.elapsed(), Duration::from_millis(2_500));
    assert_eq!((&held["status"], &held["model"]), (&json!("succeeded"), &json!("acme/boats")));

    let start = Instant::now();
    let early = body(create("/v1/predictions", "wait=1", json!({ "version": "acme/boats:hash", "input": {} })).await);
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert_eq!(
        (&early["status"], &early["model"], &early["version"]),
        (&json!("starting"), &json!("acme/boats"), &json!("hash"))
    );
    let get = format!("http://mock:9/v1/predictions/{}", early["id"].as_str().expect("an id"));
    assert_eq!((&early["urls"]["get"], &early["urls"]["cancel"]), (&json!(get), &json!(format!("{get}/cancel"))));

    let cancel = Request::post(get.strip_prefix("http://mock:9").expect("ours").to_owned() + "/cancel");
    let cancelled = body(send(&mock, cancel.header("authorization", "Bearer k"), "").await.expect("an answer"));
    assert_eq!(cancelled["status"], "canceled");
    assert_eq!(mock.stats().jobs_live_now, 0);
}

#[tokio::test(start_paused = true)]
async fn replicate_says_how_long_to_wait_in_its_text_alone() {
    let mock = Mock::in_memory(Options { dialect: Dialect::Replicate, requests: Some(1), ..Options::default() });
    let get = || async { send(&mock, Request::get("/v1/account").header("authorization", "Bearer k"), "").await };
    assert_eq!(get().await.expect("an answer").status(), StatusCode::OK);
    advance(Duration::from_secs(31)).await;
    let refused = get().await.expect("an answer");
    assert_eq!((number(&refused, "retry-after"), number(&refused, "x-ratelimit-remaining")), (None, None));
    assert!(body(refused)["detail"].as_str().expect("text").ends_with("resets in ~29s."));
    let nobody = send(&mock, Request::get("/v1/account").header("x-api-key", "k"), "").await.expect("an answer");
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn tls_is_spoken() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let server = server.expect("versions").with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let client = client.expect("versions").with_root_certificates(roots).with_no_client_auth();

    let server = std::sync::Arc::new(server.expect("a configuration"));
    let mock = Mock::start_tls(Options::default(), ([127, 0, 0, 1], 0).into(), server).await.expect("a port");
    let stream = TcpStream::connect(mock.addr()).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client)).connect(name, stream).await;
    let request = Request::get("/v1/echo").header("x-api-key", "k").header("host", "localhost");
    let answer = exchange(stream.expect("a handshake"), request, "").await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn create(mock: &Mock, input: Value) -> Response<Bytes> {
    let body = json!({ "model": "m", "input": input }).to_string();
    send(mock, Request::post("/v1/predictions").header("x-api-key", "k"), &body).await.expect("an answer")
}

async fn get(mock: &Mock, path: &str) -> Response<Bytes> {
    call(mock, Request::get(path)).await.expect("an answer")
}

async fn call(mock: &Mock, request: http::request::Builder) -> hyper::Result<Response<Bytes>> {
    send(mock, request.header("x-api-key", "k"), "").await
}

async fn send(mock: &Mock, request: http::request::Builder, body: &str) -> hyper::Result<Response<Bytes>> {
    let (ours, theirs) = duplex(64 * 1024);
    mock.serve(theirs);
    exchange(ours, request, body).await
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::request::Builder,
    body: &str,
) -> hyper::Result<Response<Bytes>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("a valid request");
    let (parts, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
}

fn body(answer: Response<Bytes>) -> Value {
    serde_json::from_slice(&answer.into_body()).expect("JSON")
}

fn number(answer: &Response<Bytes>, header: &str) -> Option<u64> {
    answer.headers().get(header)?.to_str().ok()?.parse().ok()
}
