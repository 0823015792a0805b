//! Webhooks: delivered from here, signed and until they arrive; the upstream's own, verified and relayed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sluicegate::app::{Proxy, Surroundings};
use sluicegate::clock::Clock;
use sluicegate::connect::{Connect, Connected, Connecting, Dial, Failure};
use sluicegate::mock::{Mock, Options, RunTime};
use sluicegate::server::Server;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{self, Answer, With, request};
use crate::support::config::Scratch;
use crate::support::patience::until;
use crate::support::program::{Ended, Place, ended};
use crate::support::{FREE, KEY, PIPE_BYTES, WEBHOOK_SECRET, create_with, get, poll, post};

pub const OUT: &str = "[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"localhost:*\"]";
pub const IN: &str = "[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"localhost:*\"]\n\
    listen = \"127.0.0.1:0\"\npublic_url = \"https://hooks.example.com/in\"";
pub const HOOK: &str = "http://localhost:3000/hook?of=app";

// ---- The stage ----------------------------------------------------------------------------------------------------------

/// How a receiver behaves.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    Answer(u16),
    /// 500 this often, then 204.
    Fail(u32),
    Hang,
    /// 204 after a while.
    Slow(Duration),
    Refuse,
}

/// What arrived at a receiver.
#[derive(Debug, Clone)]
pub struct Hit {
    at: Instant,
    port: u16,
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Hit {
    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().expect("text")
    }

    fn job(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).expect("JSON");
        json["job_id"].as_str().expect("an id").to_owned()
    }
}

/// Receivers by port, in memory; 204 where nothing else is said.
#[derive(Clone, Default)]
pub struct Receivers {
    manners: Arc<Mutex<HashMap<u16, Manner>>>,
    hits: Arc<Mutex<Vec<Hit>>>,
    /// Ports of slow receivers, for each answer.
    answered: Arc<Mutex<Vec<u16>>>,
}

impl Receivers {
    pub fn set(&self, port: u16, manner: Manner) {
        self.manners.lock().expect("no panics").insert(port, manner);
    }

    pub fn hits(&self) -> Vec<Hit> {
        self.hits.lock().expect("no panics").clone()
    }

    pub fn on(&self, port: u16) -> Vec<Hit> {
        self.hits().into_iter().filter(|hit| hit.port == port).collect()
    }

    fn manner(&self, port: u16) -> Manner {
        let mut manners = self.manners.lock().expect("no panics");
        match manners.get_mut(&port) {
            Some(Manner::Fail(0)) | None => Manner::Answer(204),
            Some(Manner::Fail(left)) => {
                *left -= 1;
                Manner::Answer(500)
            }
            Some(manner) => *manner,
        }
    }

    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin, port: u16) {
        let service = service_fn(move |request: Request<Incoming>| {
            let receivers = self.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a whole body").to_bytes();
                let target = format!("{} {}", head.method, head.uri);
                let hit = Hit { at: Instant::now(), port, target, headers: head.headers, body };
                receivers.hits.lock().expect("no panics").push(hit);
                let status = match receivers.manner(port) {
                    Manner::Answer(status) => status,
                    Manner::Slow(delay) => {
                        sleep(delay).await;
                        receivers.answered.lock().expect("no panics").push(port);
                        204
                    }
                    _ => std::future::pending().await,
                };
                let mut answer = Response::new(Full::new(Bytes::from_static(b"noted")));
                *answer.status_mut() = status.try_into().expect("a status");
                if status == 302 {
                    answer.headers_mut().insert("location", "http://localhost:3999/elsewhere".parse().expect("text"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
    }

    /// The same over sockets.
    pub async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let receivers = self.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("a connection");
                tokio::spawn(receivers.clone().serve(tcp, address.port()));
            }
        });
        address
    }

    pub async fn wait_for(&self, count: usize) -> Vec<Hit> {
        until(format!("{count} deliveries"), || async {
            let hits = self.hits();
            (hits.len() >= count, hits)
        })
        .await
    }
}

impl Dial for Receivers {
    fn dial<'a>(&'a self, addresses: &'a [SocketAddr], tls_name: Option<&'a str>) -> Connecting<'a> {
        Box::pin(async move {
            assert!(addresses.iter().all(|address| address.ip().is_loopback()) && tls_name.is_none());
            let port = addresses[0].port();
            let refuses = matches!(self.manners.lock().expect("no panics").get(&port), Some(Manner::Refuse));
            if refuses {
                return Err(Failure::refused());
            }
            let (near, far) = duplex(PIPE_BYTES);
            tokio::spawn(self.clone().serve(far, port));
            Ok(Connected { io: Box::new(near), h2: false })
        })
    }
}

/// The way to the mock, with a record of every byte that goes up.
struct Tap {
    mock: Arc<Mock>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Connect for Tap {
    fn connect(&self) -> Connecting<'_> {
        let (near, far) = duplex(PIPE_BYTES);
        let (tap, mock) = duplex(PIPE_BYTES);
        self.mock.serve(mock);
        tokio::spawn(record(far, tap, Arc::clone(&self.seen)));
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}

async fn record(far: DuplexStream, tap: DuplexStream, seen: Arc<Mutex<Vec<u8>>>) {
    let (mut from, mut back) = tokio::io::split(far);
    let (mut answers, mut to) = tokio::io::split(tap);
    let up = async {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            seen.lock().expect("no panics").extend(&buffer[..read]);
            if to.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(up, async { tokio::io::copy(&mut answers, &mut back).await.ok() });
}

/// A proxy in memory between the mock and receivers.
pub struct Stage {
    pub proxy: Proxy,
    pub mock: Arc<Mock>,
    pub receivers: Receivers,
    seen: Arc<Mutex<Vec<u8>>>,
    scratch: Scratch,
}

pub fn options() -> Options {
    Options { keys: vec![KEY.into()], requests: None, concurrent_jobs: None, ..Options::default() }
}

impl Stage {
    fn new(toml: &str) -> Self {
        Self::with(toml, options())
    }

    fn with(toml: &str, options: Options) -> Self {
        Self::on(toml, Arc::new(Mock::in_memory(options)), Receivers::default(), Scratch::new())
    }

    fn on(toml: &str, mock: Arc<Mock>, receivers: Receivers, scratch: Scratch) -> Self {
        Self::planned("", toml, mock, receivers, scratch)
    }

    pub fn planned(plan: &str, toml: &str, mock: Arc<Mock>, receivers: Receivers, scratch: Scratch) -> Self {
        let config = scratch.load(plan, toml, "http://localhost:1");
        let seen = Arc::default();
        let connector = Arc::new(Tap { mock: Arc::clone(&mock), seen: Arc::clone(&seen) });
        let around = || Surroundings {
            connector: Some(Arc::clone(&connector) as Arc<dyn Connect>),
            dial: Some(Arc::new(receivers.clone())),
            ..Surroundings::default()
        };
        // A child that another test starts holds our lock with us until it has become another program.
        let tries = (0..100).find_map(|_| match Proxy::build_in(&config, Clock::tokio(), around()) {
            Err(error) if error.to_string().contains("in use") => {
                std::thread::sleep(Duration::from_millis(10));
                None
            }
            built => Some(built),
        });
        let proxy = tries.expect("the lock comes free").expect("a good configuration");
        Self { proxy, mock, receivers, seen, scratch }
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(self.proxy.serve(far));
        client::exchange(near, request).await
    }

    /// Creates a job with this webhook and returns its id.
    pub async fn start(&self, webhook: &str) -> String {
        let answer = self.send(create(webhook, &json!({}))).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.job_id()
    }

    /// The upstream calls the port for its webhooks.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(self.proxy.serve_webhooks(far));
        client::exchange(near, request).await
    }

    /// All that went up, as text.
    fn sent(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panics")).into_owned()
    }

    /// The end of the URL that the last create took up.
    pub fn token(&self) -> String {
        let sent = self.sent();
        let after = sent.rsplit("https://hooks.example.com/in/").next().expect("a create");
        after[..32].to_owned()
    }

    /// As `kill -9`: nothing of it runs on.
    pub fn kill(self) -> (Arc<Mock>, Receivers, Scratch) {
        let Self { proxy, mock, receivers, scratch, .. } = self;
        drop(proxy);
        (mock, receivers, scratch)
    }
}

pub fn create(webhook: &str, input: &Value) -> Request<Full<Bytes>> {
    create_with(&json!({"model": "flux-schnell", "input": input, "webhook": webhook}))
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn hex(body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes()), body);
    tag.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A call of the upstream's, signed.
pub fn signed(token: &str, body: impl Into<String>) -> Request<Full<Bytes>> {
    let body = body.into();
    let signature = hex(body.as_bytes());
    post(&format!("/in/{token}"), body).with("x-webhook-signature", &signature)
}

// ---- Out ----------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_is_delivered_signed_and_the_upstream_never_sees_the_target() {
    let stage = Stage::new(OUT);
    let body = format!(
        r#"{{ "model":"flux-schnell", "webhook":"{HOOK}", "input":{{"n":1.50e2}}, "webhook_events":["completed"]}}"#
    );
    let created = stage.send(post("/v1/predictions", body)).await;
    assert_eq!(created.status, 201);
    sleep(secs(30)).await;
    let hits = stage.receivers.hits();
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    let status = stage.send(poll(&created.job_id())).await;
    assert_eq!((hit.port, hit.target.as_str(), &hit.body), (3000, "POST /hook?of=app", &status.body));
    assert_eq!(hit.headers["x-webhook-signature"], hex(&hit.body));
    assert_eq!(
        (&hit.headers["content-type"], &hit.headers["host"]),
        (&"application/json".parse().unwrap(), &"localhost:3000".parse().unwrap())
    );
    assert!(hit.headers["user-agent"].to_str().unwrap().starts_with("sluicegate/"));
    assert!(hit.id().starts_with("msg_") && hit.headers["webhook-signature"].to_str().unwrap().starts_with("v1,"));
    let sent = stage.sent();
    assert!(sent.contains("\r\n\r\n{ \"model\":\"flux-schnell\", \"input\":{\"n\":1.50e2}}"), "{sent}");
    assert!(!sent.contains("webhook") && !sent.contains("3000"), "{sent}");
    assert_eq!(stage.mock.stats().webhooks_delivered, 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_secret_nothing_is_sent() {
    let stage = Stage::new("[webhooks]\nallow = [\"localhost:3000\"]");
    let refused = stage.send(create(HOOK, &json!({}))).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (422, "webhook_secret_missing"));
    assert_eq!((refused.header("sluicegate-charge"), refused.header("x-should-retry")), ("not-sent", "false"));
    assert_eq!(stage.mock.stats().attempts, 0);
    assert_eq!(stage.send(create("http://localhost:3001/", &json!({}))).await.status, 201, "not ours to deliver");
}

#[tokio::test(start_paused = true)]
async fn other_webhooks_go_up_as_they_came() {
    let stage = Stage::new("[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"localhost:3000\"]");
    for webhook in [
        "https://example.com/done",
        "http://10.1.2.3/done",
        "http://localhost:3001/",
        "not a URL",
        "ftp://localhost:3000/",
    ] {
        stage.start(webhook).await;
        assert!(stage.sent().contains(&format!("\"webhook\":\"{webhook}\"")), "{}", stage.sent());
    }
    sleep(secs(60)).await;
    assert!(stage.receivers.hits().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_the_events_that_were_asked_for_are_told() {
    let stage = Stage::new(OUT);
    let ask = |port: u16, events: Value, input: Value| {
        let webhook = format!("http://localhost:{port}/");
        create_with(&json!({"model": "m", "input": input, "webhook": webhook, "webhook_events": events}))
    };
    let fails = json!({"fail": true});
    stage.send(ask(3001, json!(["completed"]), json!({}))).await;
    stage.send(ask(3002, json!(["failed"]), json!({}))).await;
    stage.send(ask(3003, json!(["completed"]), fails.clone())).await;
    stage.send(ask(3004, json!(["failed"]), fails.clone())).await;
    stage.send(ask(3005, json!([]), fails)).await;
    let cancelled = stage.send(ask(3006, json!(["failed"]), json!({"run_time_ms": 60_000}))).await.job_id();
    assert!(stage.send(request("DELETE", &format!("/v1/predictions/{cancelled}"), "")).await.status.is_success());
    sleep(secs(60)).await;
    let told: BTreeMap<u16, String> = stage
        .receivers
        .hits()
        .iter()
        .map(|hit| {
            let body: Value = serde_json::from_slice(&hit.body).expect("JSON");
            (hit.port, body["status"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let expected = [(3001, "completed"), (3004, "failed"), (3006, "cancelled")];
    assert_eq!(told, expected.map(|(port, status)| (port, status.to_owned())).into());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_vanishes_or_never_ends_is_told_as_failed() {
    let slow = Options { run_time: RunTime::Fixed(secs(86_400)), ..options() };
    let stage = Stage::with(&format!("{OUT}\n[jobs]\nmax_age = \"1m\""), slow);
    let id = stage.start(HOOK).await;
    sleep(secs(90)).await;
    let hits = stage.receivers.hits();
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    let body: Value = serde_json::from_slice(&hit.body).expect("JSON");
    assert_eq!((body["id"].as_str(), body["job_id"].as_str()), (Some(&*id), Some(&*id)));
    assert_eq!((&body["status"], &body["sluicegate"]["end"]), (&json!("failed"), &json!("expired")));
    assert!(body["error"].as_str().expect("words").contains("jobs.max_age"));
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_with_the_same_id() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3000, Manner::Fail(3));
    stage.start(HOOK).await;
    sleep(secs(120)).await;
    let hits = stage.receivers.hits();
    let [first, second, third, last] = &hits[..] else { panic!("{hits:?}") };
    for (before, after, longest) in [(first, second, 1.0), (second, third, 5.0), (third, last, 30.0)] {
        let waited = (after.at - before.at).as_secs_f64();
        assert!(waited >= longest * 0.8 && waited <= longest + 0.1, "{waited}");
    }
    assert!(hits.iter().all(|hit| hit.id() == first.id() && hit.body == first.body));
    assert_ne!(first.headers["webhook-timestamp"], last.headers["webhook-timestamp"]);
}

#[tokio::test(start_paused = true)]
async fn redirects_are_failures_and_hanging_is_bounded() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3001, Manner::Answer(302));
    stage.receivers.set(3002, Manner::Hang);
    stage.receivers.set(3003, Manner::Refuse);
    for port in [3001, 3002, 3003] {
        stage.start(&format!("http://localhost:{port}/")).await;
    }
    sleep(secs(60)).await;
    assert!(stage.receivers.on(3001).len() >= 3 && stage.receivers.on(3999).is_empty());
    let hung = stage.receivers.on(3002);
    let waited = (hung[1].at - hung[0].at).as_secs_f64();
    assert!((10.7..11.2).contains(&waited), "{waited}");
    stage.receivers.set(3003, Manner::Answer(200));
    sleep(secs(600)).await;
    assert_eq!(stage.receivers.on(3003).len(), 1, "it came in the end");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_hangs_slows_nobody_else() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3001, Manner::Hang);
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(stage.start("http://localhost:3001/").await);
    }
    let good = stage.start("http://localhost:3002/").await;
    ids.push(good.clone());
    sleep(secs(3)).await;
    for id in &ids {
        stage.send(poll(id)).await;
    }
    let seen = Instant::now();
    sleep(secs(5)).await;
    let [hit] = &stage.receivers.on(3002)[..] else { panic!("one") };
    assert!(hit.at - seen < Duration::from_millis(100) && hit.job() == good);
    assert_eq!(stage.receivers.on(3001).len(), 4, "so many at a time");
    stage.receivers.set(3001, Manner::Answer(200));
    sleep(secs(3600)).await;
    let told: HashSet<String> = stage.receivers.on(3001).iter().map(Hit::job).collect();
    assert_eq!(told.len(), 40, "none is lost");
}

#[tokio::test(start_paused = true)]
async fn after_a_day_a_delivery_is_dead_and_410_ends_it_at_once() {
    let stage = Stage::new(OUT);
    stage.receivers.set(3001, Manner::Answer(500));
    stage.receivers.set(3002, Manner::Answer(410));
    stage.start("http://localhost:3001/").await;
    stage.start("http://localhost:3002/").await;
    sleep(secs(3 * 86_400)).await;
    let hits = stage.receivers.on(3001);
    assert_eq!((hits.len(), stage.receivers.on(3002).len()), (11, 1));
    let spread = (hits[10].at - hits[0].at).as_secs() / 3600;
    assert!((18..24).contains(&spread), "{spread} h");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_comes_to_nothing_owes_nothing() {
    let stage = Stage::new(OUT);
    let refused = stage.send(post("/v1/predictions", format!(r#"{{"webhook":"{HOOK}"}}"#))).await;
    assert!(refused.status.is_client_error(), "the mock wants a model: {refused:?}");
    let one = stage.send(create(HOOK, &json!({})).with("idempotency-key", "k")).await;
    let two = stage.send(create(HOOK, &json!({})).with("idempotency-key", "k")).await;
    assert_eq!(one.job_id(), two.job_id(), "the caller's body is compared, not ours");
    sleep(secs(60)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

// ---- Crashes ------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_every_webhook_comes_and_under_one_id() {
    let toml = format!("{OUT}\n[state]\nstore = \"local\"");
    for round in 0..25_u64 {
        let (mut mock, mut receivers, mut scratch) =
            (Arc::new(Mock::in_memory(options())), Receivers::default(), Scratch::new());
        receivers.set(3000, Manner::Fail(u32::try_from(round % 4).expect("small")));
        let mut ids = HashSet::new();
        for kill in 0..4_u64 {
            let stage = Stage::on(&toml, mock, receivers, scratch);
            ids.insert(stage.start(HOOK).await);
            sleep(Duration::from_millis((round * 977 + kill * 3_331) % 12_000)).await;
            if round % 2 == 0 {
                for id in &ids {
                    stage.send(poll(id)).await;
                }
            }
            (mock, receivers, scratch) = stage.kill();
        }
        let stage = Stage::on(&toml, mock, receivers, scratch);
        sleep(secs(900)).await;
        let mut told: HashMap<String, HashSet<String>> = HashMap::new();
        for hit in stage.receivers.hits() {
            told.entry(hit.job()).or_default().insert(hit.id().to_owned());
        }
        assert_eq!(told.keys().cloned().collect::<HashSet<_>>(), ids, "round {round}");
        assert!(told.values().all(|ids| ids.len() == 1), "round {round}: {told:?}");
        assert_eq!(stage.proxy.usage().jobs_live, 0, "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_is_not_delivered_again() {
    let toml = format!("{OUT}\n[state]\nstore = \"local\"");
    let stage = Stage::on(&toml, Arc::new(Mock::in_memory(options())), Receivers::default(), Scratch::new());
    stage.start(HOOK).await;
    sleep(secs(30)).await;
    let (mock, receivers, scratch) = stage.kill();
    let stage = Stage::on(&toml, mock, receivers, scratch);
    sleep(secs(600)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_seen_but_not_written_is_found_again() {
    let toml = format!("{OUT}\n[state]\nstore = \"local\"");
    let stage = Stage::on(&toml, Arc::new(Mock::in_memory(options())), Receivers::default(), Scratch::new());
    stage.start(HOOK).await;
    let (mock, receivers, scratch) = stage.kill();
    // The job table's own record is gone, as if it had written the end before the outbox could.
    for entry in std::fs::read_dir(scratch.0.join(".local/state/sluicegate")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.ends_with("jobs.journal") {
            std::fs::remove_file(path).expect("removed");
        }
    }
    sleep(secs(30)).await;
    let stage = Stage::on(&toml, mock, receivers, scratch);
    sleep(secs(30)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

/// The upstream's way to read a form.
fn form(parts: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let part = |(name, value): &(&str, &str)| {
        let file = if name.starts_with("file:") { "; filename=\"a.png\"" } else { "" };
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n")
    };
    let body: String = parts.iter().map(part).collect::<String>() + "--XX--\r\n";
    let mut request = post("/v1/predictions/upload", body);
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=XX".parse().expect("a type"));
    request
}

#[tokio::test(start_paused = true)]
async fn the_webhook_of_a_form_is_delivered_like_any_other() {
    let large = "x".repeat(3 << 20);
    for file in ["abc", &large] {
        let stage = Stage::new(OUT);
        let (hook, events) = (("webhook", HOOK), ("webhook_events", "completed"));
        let parts = [hook, events, ("model", "m"), ("input", "{}"), ("file:image", file)];
        let answer = stage.send(form(&parts)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        sleep(secs(30)).await;
        let hits = stage.receivers.hits();
        let [hit] = &hits[..] else { panic!("{hits:?}") };
        assert_eq!((hit.job(), hit.port), (answer.job_id(), 3000));
        let sent = stage.sent();
        assert!(!sent.contains("webhook") && !sent.contains("3000"), "{}", &sent[..1_000]);
        let seen = stage.mock.requests().into_iter().find(|seen| seen.method == "POST").expect("a create");
        assert!(seen.headers.contains_key("content-length"), "it is still told: {:?}", seen.headers);
    }
}

#[tokio::test(start_paused = true)]
async fn the_webhook_of_a_form_is_relayed() {
    let stage = Stage::with(IN, Options { run_time: RunTime::Fixed(secs(3_600)), ..options() });
    let answer = stage.send(form(&[("model", "m"), ("input", "{}"), ("webhook", HOOK)])).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let tell = format!(r#"{{"job_id":"{}","status":"completed"}}"#, answer.job_id());
    assert_eq!(stage.call(signed(&stage.token(), tell)).await.status, 200);
    sleep(secs(1)).await;
    assert_eq!((stage.receivers.hits().len(), stage.proxy.usage().jobs_live), (1, 0));
}

// ---- In -----------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_upstream_s_call_frees_the_slot_and_is_relayed_once() {
    let stage = Stage::with(IN, Options { run_time: RunTime::Fixed(secs(3_600)), ..options() });
    let body = json!({"model": "m", "input": {}, "webhook": HOOK, "webhook_events": ["completed"]});
    let id = stage.send(create_with(&body)).await.job_id();
    let sent = stage.sent();
    assert!(!sent.contains("3000") && sent.contains(r#""webhook_events":["completed","failed"]"#), "{sent}");
    let token = stage.token();
    let tell = format!(r#"{{ "job_id":"{id}", "status":"completed", "result":"https://cdn.example.test/x.png" }}"#);

    // What is not the upstream's changes nothing.
    let unsigned = post(&format!("/in/{token}"), tell.clone());
    assert_eq!(stage.call(unsigned).await.status, 401);
    let wrong = post(&format!("/in/{token}"), tell.clone()).with("x-webhook-signature", &hex(b"another body"));
    assert_eq!(stage.call(wrong).await.status, 401);
    assert_eq!(stage.call(signed(&"0".repeat(32), tell.clone())).await.status, 404);
    assert_eq!(stage.call(signed("", tell.clone())).await.status, 404);
    assert_eq!(stage.call(get(&format!("/in/{token}"))).await.status, 405);
    assert_eq!(stage.call(signed(&token, "x".repeat((1 << 20) + 1))).await.status, 413);
    assert_eq!(stage.call(signed(&token, "no JSON")).await.status, 400);
    assert_eq!(stage.call(signed(&token, r#"{"job_id":"other","status":"completed"}"#)).await.status, 400);
    let running = format!(r#"{{"job_id":"{id}","status":"processing"}}"#);
    assert_eq!(stage.call(signed(&token, running)).await.status, 200);
    assert_eq!(stage.proxy.usage().jobs_live, 1);

    let attempts = stage.mock.stats().attempts;
    let prefixed = post(&format!("/{token}"), tell.clone())
        .with("x-webhook-signature", &format!("sha256={}", hex(tell.as_bytes())));
    assert_eq!(stage.call(prefixed).await.status, 200);
    assert_eq!(stage.proxy.usage().jobs_live, 0, "the slot is free at once");
    for _ in 0..3 {
        assert_eq!(stage.call(signed(&token, tell.clone())).await.status, 200);
    }
    sleep(secs(60)).await;
    let hits = stage.receivers.hits();
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    assert_eq!((hit.port, &hit.body), (3000, &Bytes::from(tell)));
    assert_eq!(hit.headers["x-webhook-signature"], hex(&hit.body));
    assert_eq!(stage.mock.stats().attempts, attempts, "nothing was asked");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_comes_loses_nothing_and_one_that_comes_late_adds_nothing() {
    let stage = Stage::new(IN);
    let id = stage.start(HOOK).await;
    sleep(secs(30)).await;
    assert_eq!(stage.receivers.hits().len(), 1, "the proxy's own look made up for it");
    let tell = format!(r#"{{"job_id":"{id}","status":"completed"}}"#);
    assert_eq!(stage.call(signed(&stage.token(), tell)).await.status, 200);
    sleep(secs(30)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_about_a_create_of_unknown_outcome_is_relayed() {
    let stage = Stage::with(IN, Options { run_time: RunTime::Fixed(secs(3_600)), ..options() });
    stage.mock.fault_next("POST", "/v1/predictions", sluicegate::mock::Fault::ResetAfter);
    let lost = stage.send(create(HOOK, &json!({}))).await;
    assert_eq!(lost.code(), "outcome_unknown");
    let id = stage.mock.job_ids().pop().expect("it runs");
    let tell = format!(r#"{{"job_id":"{id}","status":"completed"}}"#);
    assert_eq!(stage.call(signed(&stage.token(), tell)).await.status, 200);
    sleep(secs(1)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_about_a_create_of_unknown_outcome_settles_its_slot_and_its_credits() {
    let toml = format!("{IN}\n[models.\"flux-schnell\"]\ncredits = 1\n[state]\nstore = \"local\"");
    let slow = Options { run_time: RunTime::Fixed(secs(3_600)), ..options() };
    for killed in [false, true] {
        let mut stage = Stage::on(&toml, Arc::new(Mock::in_memory(slow.clone())), Receivers::default(), Scratch::new());
        for _ in 0..2 {
            stage.mock.fault_next("POST", "/v1/predictions", sluicegate::mock::Fault::ResetAfter);
            assert_eq!(stage.send(create(HOOK, &json!({}))).await.code(), "outcome_unknown");
        }
        let token = stage.token();
        if killed {
            let (mock, receivers, scratch) = stage.kill();
            stage = Stage::on(&toml, mock, receivers, scratch);
        }
        let books = |stage: &Stage| {
            let today = stage.proxy.credits()["today"][0].clone();
            let usage = stage.proxy.usage();
            let amounts = ["charged", "unknown", "refunded", "reserved"].map(|what| today[what].clone());
            (amounts, usage.jobs_live, usage.jobs_uncertain)
        };
        assert_eq!(books(&stage), ([json!(2), json!(2), json!(0), json!(0)], 2, 2), "killed: {killed}");
        let id = stage.mock.job_ids().pop().expect("it runs");
        let tell = |status: &str| signed(&token, format!(r#"{{"job_id":"{id}","status":"{status}"}}"#));
        assert_eq!(stage.call(tell("processing")).await.status, 200);
        assert_eq!(books(&stage), ([json!(2), json!(1), json!(0), json!(0)], 2, 1), "its slot is the job's now");
        assert_eq!(stage.call(tell("failed")).await.status, 200);
        assert_eq!(books(&stage), ([json!(1), json!(1), json!(1), json!(0)], 1, 1));
        sleep(secs(121)).await;
        assert_eq!(books(&stage), ([json!(1), json!(1), json!(1), json!(0)], 0, 0), "the other is unknown for ever");
        assert_eq!(stage.receivers.hits().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_finds_its_webhook_after_a_crash() {
    let toml = format!("{IN}\n[state]\nstore = \"local\"");
    let slow = Options { run_time: RunTime::Fixed(secs(3_600)), ..options() };
    let stage = Stage::on(&toml, Arc::new(Mock::in_memory(slow)), Receivers::default(), Scratch::new());
    let id = stage.start(HOOK).await;
    let token = stage.token();
    let (mock, receivers, scratch) = stage.kill();
    let stage = Stage::on(&toml, mock, receivers, scratch);
    let tell = format!(r#"{{"job_id":"{id}","status":"failed","error":"x"}}"#);
    assert_eq!(stage.call(signed(&token, tell.clone())).await.status, 200);
    sleep(secs(1)).await;
    assert_eq!((stage.receivers.hits().len(), stage.proxy.usage().jobs_live), (1, 0));
    let (mock, receivers, scratch) = stage.kill();
    let stage = Stage::on(&toml, mock, receivers, scratch);
    assert_eq!(stage.call(signed(&token, tell)).await.status, 200, "again");
    sleep(secs(60)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_send_what_it_announced_is_let_go() {
    let stage = Stage::new(IN);
    let (mut near, far) = duplex(PIPE_BYTES);
    tokio::spawn(stage.proxy.serve_webhooks(far));
    near.write_all(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{").await.expect("open");
    let begun = Instant::now();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.expect("an end");
    assert!(
        answer.starts_with(b"HTTP/1.1 408") && begun.elapsed() < secs(15),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
}

// ---- Over sockets -------------------------------------------------------------------------------------------------------

/// A proxy and a mock on sockets. `LISTEN` in the configuration is a free port.
struct Live {
    server: Server,
    mock: Mock,
    receivers: Receivers,
    receiver: SocketAddr,
    _scratch: Scratch,
}

impl Live {
    async fn new(toml: &str, options: Options) -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        let mock = Mock::start(options, any).await.expect("a free port");
        let receivers = Receivers::default();
        let receiver = receivers.listen().await;
        let free = TcpListener::bind(any).await.and_then(|listener| listener.local_addr()).expect("a free port");
        let scratch = Scratch::new();
        let config = scratch.load(FREE, &toml.replace("LISTEN", &free.to_string()), &mock.url());
        let server = Server::start(&config).await.expect("free ports");
        Self { server, mock, receivers, receiver, _scratch: scratch }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        send_to(self.server.listen[0], request).await
    }

    async fn metric(&self, line: &str) -> bool {
        let answer = send_to(self.server.admin.expect("an admin port"), get("/metrics")).await;
        String::from_utf8_lossy(&answer.body).lines().any(|one| one == line)
    }

    async fn webhooks(&self) -> Vec<Value> {
        let answer = send_to(self.server.admin.expect("an admin port"), get("/api/v1/webhooks")).await;
        answer.json()["webhooks"].as_array().expect("a list").clone()
    }

    /// Runs `sluicegate webhooks …` against it.
    async fn cli(&self, arguments: &[&str]) -> (i32, String) {
        let admin = self.server.admin.expect("an admin port").to_string();
        let place = Place::new();
        let Ended { code, out, err } = ended(place.bare(&["webhooks", "--admin", &admin]).args(arguments)).await;
        (code.expect("a code"), out + &err)
    }
}

async fn send_to(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    client::exchange(TcpStream::connect(address).await.expect("the port is open"), request).await
}

/// Until `check` holds.
async fn soon<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    until(what, || async { (check().await, ()) }).await;
}

fn quick(secret: Option<&str>) -> Options {
    let run_time = RunTime::Fixed(Duration::from_millis(200));
    Options { run_time, webhook_secret: secret.map(str::to_owned), ..options() }
}

const IN_LIVE: &str = "[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"127.0.0.1:*\"]\n\
    listen = \"LISTEN\"\npublic_url = \"http://LISTEN/in\"";
pub const OUT_LIVE: &str =
    "[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"127.0.0.1:*\", \"localhost:*\"]";

#[tokio::test]
async fn the_upstream_s_own_webhooks_end_jobs_without_a_poll() {
    let live = Live::new(IN_LIVE, quick(Some(WEBHOOK_SECRET))).await;
    let hook = format!("http://{}/hook", live.receiver);
    for _ in 0..3 {
        assert_eq!(live.send(create(&hook, &json!({}))).await.status, 201);
    }
    let hits = live.receivers.wait_for(3).await;
    assert_eq!(hits.iter().map(Hit::job).collect::<HashSet<_>>().len(), 3);
    soon("all slots are free", async || live.server.proxy().usage().jobs_live == 0).await;
    assert!(live.mock.stats().attempts <= 6, "creates, and a look where one came before its callback");
    assert!(live.metric("sluicegate_webhook_deliveries_total{outcome=\"delivered\"} 3").await);
    assert!(live.metric("sluicegate_webhook_pending 0").await);
}

#[tokio::test]
async fn webhooks_signed_by_somebody_else_are_refused_and_counted() {
    let live = Live::new(IN_LIVE, quick(Some("another secret"))).await;
    let hook = format!("http://{}/hook", live.receiver);
    assert_eq!(live.send(create(&hook, &json!({}))).await.status, 201);
    soon("it is counted", async || live.metric("sluicegate_webhook_rejected_total 1").await).await;
    assert_eq!((live.server.proxy().usage().jobs_live, live.receivers.hits().len()), (1, 0));
}

#[tokio::test]
async fn nothing_is_delivered_to_a_port_of_our_own() {
    let live = Live::new(OUT_LIVE, quick(None)).await;
    let (data, admin) = (live.server.listen[0], live.server.admin.expect("an admin port"));
    for target in [
        format!("http://{data}/v1/echo"),
        format!("http://localhost:{}/v1/echo", data.port()),
        format!("http://{admin}/api/v1/webhooks/1/replay"),
    ] {
        let id = live.send(create(&target, &json!({}))).await.job_id();
        live.mock.finish(&id);
        live.send(poll(&id)).await;
    }
    soon("all are dead", async || live.webhooks().await.iter().filter(|row| row["state"] == "dead").count() == 3).await;
    assert!(live.webhooks().await.iter().all(|row| row["error"] == "the target is a port of this proxy"));
    assert!(live.mock.requests().iter().all(|seen| seen.path.starts_with("/v1/predictions")), "creates and looks");
}

#[tokio::test]
async fn the_dead_are_listed_and_replayed_from_the_command_line() {
    let live = Live::new(OUT_LIVE, quick(None)).await;
    live.receivers.set(live.receiver.port(), Manner::Answer(410));
    let hook = format!("http://{}/hook", live.receiver);
    let id = live.send(create(&hook, &json!({}))).await.job_id();
    live.mock.finish(&id);
    assert_eq!(live.cli(&["list", "--dead"]).await, (0, String::new()));
    live.send(poll(&id)).await;
    soon("it is dead", async || live.webhooks().await[0]["state"] == "dead").await;
    let (code, list) = live.cli(&["list", "--dead"]).await;
    assert!(code == 0 && list.contains(&id) && list.contains(&hook) && list.contains("410"), "{list}");
    let (_, list) = live.cli(&["list", "--json"]).await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let number = list["webhooks"][0]["id"].as_u64().expect("a number").to_string();

    live.receivers.set(live.receiver.port(), Manner::Answer(200));
    assert_eq!(live.cli(&["replay", &number]).await.0, 0);
    let hits = live.receivers.wait_for(2).await;
    assert!(hits[0].id() == hits[1].id() && hits[0].body == hits[1].body);
    soon("it is delivered", async || live.webhooks().await[0]["state"] == "delivered").await;
    let (code, text) = live.cli(&["replay", &number]).await;
    assert!(code == 1 && text.contains("no undelivered webhook"), "{text}");
    assert_eq!(live.cli(&["replay", "--all-dead"]).await, (0, "0 tried again\n".to_owned()));
    assert_eq!(live.cli(&["replay"]).await.0, 2);
    // A page in a browser may not.
    let admin = live.server.admin.expect("an admin port");
    let forged = post(&format!("/api/v1/webhooks/{number}/replay"), "").with("origin", "http://evil.example");
    assert_eq!(send_to(admin, forged).await.code(), "forbidden_origin");
    assert_eq!(send_to(admin, post("/api/v1/webhooks", "")).await.status, 405);
}

#[tokio::test]
async fn the_documented_receiver_takes_what_is_signed_and_nothing_else() {
    let page = include_str!("../../docs/webhooks.md");
    let code = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a receiver");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut child = Command::new(python)
        .args(["-c", code, "0"])
        .env("WEBHOOK_SECRET", WEBHOOK_SECRET)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 runs");
    let mut lines = tokio::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut next = async || {
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line);
        timeout(secs(20), read).await.expect("in time").expect("text");
        line.trim_end().to_owned()
    };
    let port: u16 = next().await.rsplit(' ').next().and_then(|port| port.parse().ok()).expect("a port");

    let live = Live::new(OUT_LIVE, quick(None)).await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let forged = post("/", "{}").with("x-webhook-signature", &hex(b"{}"));
    assert_eq!(send_to(address, forged).await.status, 401, "only one of two signatures");
    let id = live.send(create(&format!("http://{address}/done"), &json!({}))).await.job_id();
    live.mock.finish(&id);
    live.send(poll(&id)).await;
    assert_eq!(next().await, format!("{id} completed"));
    soon("it is delivered", async || live.webhooks().await[0]["state"] == "delivered").await;
}

#[tokio::test]
async fn the_drain_waits_for_deliveries_that_are_under_way() {
    let live = Live::new(OUT_LIVE, quick(None)).await;
    live.receivers.set(live.receiver.port(), Manner::Slow(Duration::from_millis(400)));
    let hook = format!("http://{}/hook", live.receiver);
    assert_eq!(live.send(create(&hook, &json!({}))).await.status, 201);
    live.receivers.wait_for(1).await;
    assert!(live.receivers.answered.lock().expect("no panics").is_empty(), "it is under way");
    assert!(live.server.drain().await);
    assert_eq!(*live.receivers.answered.lock().expect("no panics"), [live.receiver.port()]);
}

#[tokio::test]
async fn a_delivery_that_outlasts_the_drain_is_made_by_the_next_process() {
    let toml = format!("{OUT_LIVE}\n[server]\ndrain_timeout = \"300ms\"\n[state]\npath = \"state\"");
    let Live { server, mock, receivers, receiver, _scratch: scratch } = Live::new(&toml, quick(None)).await;
    receivers.set(receiver.port(), Manner::Hang);
    let create = create(&format!("http://{receiver}/hook"), &json!({}));
    assert_eq!(send_to(server.listen[0], create).await.status, 201);
    receivers.wait_for(1).await;
    let begun = Instant::now();
    server.drain().await;
    assert!(begun.elapsed() < secs(5), "{:?}", begun.elapsed());
    receivers.set(receiver.port(), Manner::Answer(204));
    let server = Server::start(&scratch.load(FREE, &toml, &mock.url())).await.expect("free ports");
    let hits = receivers.wait_for(2).await;
    assert_eq!((hits[0].id(), &hits[0].body), (hits[1].id(), &hits[1].body));
    assert!(server.drain().await);
}
