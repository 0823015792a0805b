//! What a collector gets: spans of the program, read by a parser of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1 as client;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use sluicegate::mock::{Mock, Options};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::client::{With, exchange};
use crate::support::patience::PATIENCE;
use crate::support::program::{KEY, Place, Running, mock};
use crate::support::server::{Answers, free, says, serve_all};
use crate::support::{Answer, create, get, poll};

use super::{PARENT, STATE};

/// What must not come out: a credential in a query, words of a body.
const QUERY: &str = "token=cdt_in_a_query";
const WORDS: &str = "words of a body";

struct Collector {
    address: SocketAddr,
    posts: Mutex<Vec<(String, String, Bytes)>>,
    came: Notify,
    says: StatusCode,
}

impl Collector {
    async fn start(says: StatusCode) -> Arc<Self> {
        let (listener, address) = free().await;
        let collector = Arc::new(Self { address, posts: Mutex::default(), came: Notify::new(), says });
        serve_all(listener, Arc::clone(&collector));
        collector
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// One more post has come.
    async fn post(&self) {
        tokio::time::timeout(PATIENCE, self.came.notified()).await.expect("it posts");
    }

    /// All spans so far, by name and in the order of their ends, and what sent them.
    fn spans(&self) -> (Vec<Value>, Value) {
        let (mut spans, mut resource) = (vec![], Value::Null);
        for (line, kind, body) in &*self.posts.lock().expect("no panics") {
            assert_eq!((line.as_str(), kind.as_str()), ("POST /v1/traces", "application/x-protobuf"));
            for sent in all(body, 1) {
                resource = attributes(&all(&all(&sent, 1)[0], 1));
                spans.extend(all(&sent, 2).iter().flat_map(|scope| all(scope, 2)).map(|one| span(&one)));
            }
        }
        (spans, resource)
    }
}

impl Answers for Collector {
    async fn answer(self: Arc<Self>, head: Parts, body: Option<Bytes>) -> Response<Full<Bytes>> {
        let kind = head.headers["content-type"].to_str().expect("text").to_owned();
        let post = (format!("{} {}", head.method, head.uri), kind, body.expect("a body"));
        self.posts.lock().expect("no panics").push(post);
        self.came.notify_one();
        says(self.says.as_u16(), "")
    }
}

/// A field of a message in Protocol Buffers' encoding.
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut found = vec![];
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(cut(&mut bytes, 8).try_into().expect("eight"))),
            2 => {
                let length = varint(&mut bytes).try_into().expect("a length");
                Field::Bytes(cut(&mut bytes, length).to_vec())
            }
            5 => Field::Number(u32::from_le_bytes(cut(&mut bytes, 4).try_into().expect("four")).into()),
            kind => panic!("no field is of kind {kind}"),
        };
        found.push((tag >> 3, field));
    }
    found
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for place in 0.. {
        let byte = cut(bytes, 1)[0];
        value |= u64::from(byte & 127) << (7 * place);
        if byte < 128 {
            break;
        }
    }
    value
}

fn cut<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, rest) = bytes.split_at(length);
    *bytes = rest;
    head
}

/// The fields of this number that hold bytes.
fn all(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    let of = |(at, field)| match field {
        Field::Bytes(bytes) if at == number => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(of).collect()
}

fn text(message: &[u8], number: u64) -> String {
    String::from_utf8(all(message, number).concat()).expect("text")
}

fn hex(message: &[u8], number: u64) -> String {
    use std::fmt::Write;
    all(message, number).concat().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("room");
        text
    })
}

fn number(message: &[u8], number: u64) -> u64 {
    let of = |(at, field)| match field {
        Field::Number(value) if at == number => Some(value),
        _ => None,
    };
    fields(message).into_iter().find_map(of).unwrap_or(0)
}

fn attributes(pairs: &[Vec<u8>]) -> Value {
    let value = |value: &[u8]| match fields(value).remove(0) {
        (1, Field::Bytes(bytes)) => json!(String::from_utf8(bytes).expect("text")),
        (2, Field::Number(is)) => json!(is != 0),
        (3, Field::Number(number)) => json!(number),
        (kind, _) => panic!("no value is of kind {kind}"),
    };
    let pairs = pairs.iter().map(|pair| (text(pair, 1), value(&all(pair, 2)[0])));
    Value::Object(pairs.collect::<Map<_, _>>())
}

fn span(message: &[u8]) -> Value {
    let status = all(message, 15).concat();
    json!({
        "trace": hex(message, 1), "id": hex(message, 2), "state": text(message, 3), "parent": hex(message, 4),
        "name": text(message, 5), "kind": number(message, 6), "start": number(message, 7), "end": number(message, 8),
        "attributes": attributes(&all(message, 9)), "failed": number(&status, 3) == 2, "why": text(&status, 2),
    })
}

/// The program between a client and the mock.
struct Traced {
    place: Place,
    mock: Mock,
    running: Running,
    listen: SocketAddr,
}

impl Traced {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let place = Place::new();
        let mock = mock(Options::default()).await;
        let mut command: Command = place.sluicegate(&["run"]);
        command.env("SLUICEGATE_UPSTREAM_URL", mock.url()).env("SLUICEGATE_STATE_STORE", "memory");
        let mut running = Running::start(command.envs(variables.iter().copied()));
        let listen = running.ready().await;
        Self { place, mock, running, listen }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        exchange(TcpStream::connect(self.listen).await.expect("the port is open"), request).await
    }

    /// Ends it, and returns its log.
    async fn log(mut self) -> String {
        self.running.signal(Signal::TERM);
        assert_eq!(self.running.exit_code().await, Some(0));
        let log = self.running.stderr().await;
        self.mock.shutdown().await;
        drop(self.place);
        log
    }
}

#[tokio::test]
async fn every_call_is_one_span_below_the_caller_s() {
    let collector = Collector::start(StatusCode::OK).await;
    let began = SystemTime::now().duration_since(UNIX_EPOCH).expect("after").as_nanos();
    let proxy = Traced::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())]).await;
    let body = json!({"model": "m", "input": {"prompt": WORDS}}).to_string();
    let made =
        proxy.send(create().map(|_| Full::from(body)).with("traceparent", PARENT).with("tracestate", STATE)).await;
    assert!(made.status.is_success(), "{made:?}");
    let polled = proxy.send(poll(&made.job_id()).with("traceparent", "00-nothing-01")).await;
    assert!(polled.status.is_success(), "{polled:?}");
    let mut twice = get(&format!("/v1/nowhere?{QUERY}")).with("traceparent", PARENT);
    twice.headers_mut().append("traceparent", PARENT.parse().expect("a header value"));
    let missing = proxy.send(twice).await;
    assert_eq!(missing.status, 404, "{missing:?}");
    let unrecorded = proxy.send(get("/v1/echo").with("traceparent", &PARENT.replace("-01", "-00"))).await;
    assert!(unrecorded.status.is_success(), "{unrecorded:?}");
    let page =
        proxy.send(get("/v1/echo").with("origin", "https://elsewhere.example").with("traceparent", PARENT)).await;
    assert_eq!(page.status, 403, "{page:?}");
    let log = proxy.log().await;
    assert!(log.contains("spans go to the collector"), "{log}");

    let (spans, resource) = collector.spans();
    assert_eq!(resource["service.name"], "sluicegate", "{resource}");
    let named: Vec<_> = spans.iter().map(|span| span["name"].as_str().expect("a name")).collect();
    assert_eq!(named, ["create", "poll", "other", "refused"], "one span each; none for a trace that is not recorded");
    let (create, poll, other, refused) = (&spans[0], &spans[1], &spans[2], &spans[3]);
    for below in [create, refused] {
        assert_eq!(below["trace"], "4bf92f3577b34da6a3ce929d0e0e4736", "{below}");
        assert_eq!(below["parent"], "00f067aa0ba902b7", "{below}");
        assert_ne!(below["id"], below["parent"], "{below}");
    }
    assert_eq!(create["state"], STATE);
    for first in [poll, other] {
        assert_eq!(first["parent"], "", "what is no trace, or comes twice, starts one: {first}");
        assert_eq!(first["trace"].as_str().map(str::len), Some(32), "{first}");
        assert_ne!(first["trace"], create["trace"]);
    }
    assert_ne!(poll["trace"], other["trace"]);
    for span in &spans {
        let (start, end) = (span["start"].as_u64().expect("ns"), span["end"].as_u64().expect("ns"));
        assert!(u128::from(start) >= began && end >= start && span["kind"] == 2, "a server's, in time: {span}");
    }
    let had = |span: &Value, wanted: &[(&str, Value)]| {
        for (name, value) in wanted {
            assert_eq!(&span["attributes"][*name], value, "{name}: {span}");
        }
    };
    let status = made.status.as_u16();
    had(create, &[("http.request.method", json!("POST")), ("http.response.status_code", json!(status))]);
    had(create, &[("url.path", json!("/v1/predictions")), ("sluicegate.attempts", json!(1))]);
    had(create, &[("sluicegate.account", json!("dev-local")), ("sluicegate.client", json!("local"))]);
    had(create, &[("sluicegate.request_id", json!(made.header("x-request-id"))), ("sluicegate.complete", json!(true))]);
    had(create, &[("sluicegate.charge", json!(made.header("sluicegate-charge")))]);
    had(
        other,
        &[("http.response.status_code", json!(404)), ("url.path", json!("/v1/nowhere")), ("error.type", Value::Null)],
    );
    let code = page.code();
    had(
        refused,
        &[("sluicegate.code", json!(code)), ("error.type", json!(code)), ("sluicegate.account", json!("dev-local"))],
    );
    assert_eq!((&refused["failed"], &refused["why"]), (&json!(true), &json!(code)));
    assert!([create, poll, other].iter().all(|span| span["failed"] == false), "{spans:?}");

    for (_, _, body) in &*collector.posts.lock().expect("no panics") {
        for secret in [KEY, QUERY, "cdt_in_a_query", WORDS] {
            assert!(!body.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_takes_nothing_is_told_once_and_the_name_is_the_operator_s() {
    let collector = Collector::start(StatusCode::BAD_REQUEST).await;
    let url = format!("{}/v1/traces", collector.url());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_SERVICE_NAME", "gate-of-team-a"),
    ];
    let proxy = Traced::start(&variables).await;
    for _ in 0..2 {
        assert!(proxy.send(get("/v1/echo")).await.status.is_success());
        collector.post().await;
    }
    let log = proxy.log().await;
    assert_eq!(log.matches("the collector does not take spans").count(), 1, "{log}");
    let (spans, resource) = collector.spans();
    assert_eq!((spans.len(), &resource["service.name"]), (2, &json!("gate-of-team-a")), "{spans:?}");
}

#[tokio::test]
async fn a_collector_that_hangs_holds_neither_calls_nor_the_end() {
    // The system takes its connections; nobody reads them.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    // No line for each request: nobody reads them meanwhile.
    let quiet = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("SLUICEGATE_LOG_LEVEL", "warn")];
    let proxy = Traced::start(&quiet).await;
    assert!(proxy.send(get("/v1/echo")).await.status.is_success());
    let (_held, _) = tokio::time::timeout(PATIENCE, silent.accept()).await.expect("it sends").expect("a connection");
    assert!(proxy.send(get("/v1/echo")).await.status.is_success(), "while the first span is on its way");
    // More than can wait.
    let io = TokioIo::new(TcpStream::connect(proxy.listen).await.expect("the port is open"));
    let (mut sender, connection) = client::handshake(io).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    for _ in 0..3000 {
        let page = get("/v1/echo").with("origin", "https://elsewhere.example");
        let answer = sender.send_request(page).await.expect("an answer");
        assert_eq!(answer.status(), 403);
        answer.into_body().collect().await.expect("a body");
    }
    let begun = Instant::now();
    let log = proxy.log().await;
    assert_eq!(log.matches("spans are dropped").count(), 1, "{log}");
    assert!(begun.elapsed() < Duration::from_secs(8), "two seconds and not the exporter's ten: {:?}", begun.elapsed());
    assert!(log.contains("did not take the last spans in time"), "{log}");
}

#[tokio::test]
async fn without_a_collector_there_is_no_thread_for_it_and_one_by_tls_is_refused() {
    let names = |id: u32| {
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("Linux");
        let name = |task: &Path| std::fs::read_to_string(task.join("comm")).unwrap_or_default().trim().to_owned();
        tasks.map(|task| name(&task.expect("an entry").path())).collect::<Vec<_>>()
    };
    for (endpoint, runs) in [("", false), ("https://127.0.0.1:9", false), ("http://127.0.0.1:9", true)] {
        let proxy = Traced::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).await;
        let threads = names(proxy.running.child.id().expect("it runs"));
        assert_eq!(threads.iter().any(|name| name == "traces"), runs, "{endpoint}: {threads:?}");
        let log = proxy.log().await;
        assert_eq!(log.contains("by plain HTTP only"), endpoint.starts_with("https"), "{log}");
    }
}
