//! Over sockets: ports, the command line, the drain.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use sluicegate::mock::{Mock, Options, RunTime};
use sluicegate::server::Server;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::receivers::Hit;
use super::{Manner, Receivers, create, hex, options, secs};
use crate::support::client::{self, Answer, With};
use crate::support::config::Scratch;
use crate::support::patience::until;
use crate::support::program::{Ended, Place, ended};
use crate::support::{FREE, WEBHOOK_SECRET, get, poll, post};

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
    let page = include_str!("../../../docs/webhooks.md");
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
