//! Job protocols over the whole hop: the Replicate preset before a mock of it, and one of the operator's own before an API of ten lines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use sluicegate::mock::{Dialect, Fault, Options, RunTime};
use sluicegate::server::Server;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::client::{self, Answer, With, request};
use crate::support::config::Scratch;
use crate::support::patience::until;
use crate::support::server::{self, Answers, says};
use crate::support::{KEY, NOTHING, Setup, get, post};

const REPLICATE: &str = "[upstream]\nprotocol = \"replicate\"";
const CLIENTS: &str = "[upstream]\nprotocol = \"replicate\"\n\
    [[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n[[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }";

fn replicate(plan: &'static str, toml: &'static str) -> Setup {
    let mock = Options { dialect: Dialect::Replicate, requests: None, concurrent_jobs: None, ..Options::default() };
    Setup { mock, plan, toml, ..Setup::default() }
}

fn run(path: &str) -> Request<Full<Bytes>> {
    post(path, json!({"version": "5c7d5dc6", "input": {"prompt": "a gate"}}).to_string())
}

/// Everything in the answer that names the mock; the rest of it is told apart by the other test.
fn urls(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    ["get", "cancel", "stream", "web"].map(|name| json["urls"][name].as_str().expect("a URL").to_owned()).to_vec()
}

#[tokio::test(start_paused = true)]
async fn all_three_ways_to_create_hold_a_slot() {
    let site = replicate("concurrent_jobs = 3", REPLICATE).memory();
    let paths = ["/v1/predictions", "/v1/models/acme/boats/predictions", "/v1/deployments/acme/fleet/predictions"];
    for path in paths {
        let answer = site.send(run(path)).await;
        assert_eq!((answer.status, answer.header("sluicegate-charge")), (StatusCode::CREATED, "accepted"));
        assert_eq!(answer.json()["status"], "starting");
    }
    assert_eq!(site.proxy.usage().jobs_live, 3);
    let refused = site.send(run("/v1/models/acme/boats/predictions").with("sluicegate-max-wait", "0s")).await;
    assert_eq!(refused.code(), "job_limit");
    assert_eq!(site.settled().await, NOTHING, "the proxy asks about jobs that nobody polls");
    let seen = site.mock.requests();
    assert!(seen.iter().all(|seen| seen.key == KEY));
    assert!(seen.iter().all(|seen| seen.headers["authorization"] == format!("Bearer {KEY}").as_str()));
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("x-api-key")));
}

/// Its answers have no run time in seconds, but moments; looks at a new model are seconds apart.
#[tokio::test(start_paused = true)]
async fn a_job_that_was_seen_to_end_late_tells_its_run_time_all_the_same() {
    let setup = replicate("requests_per_minute = 60", REPLICATE);
    let mock = Options { run_time: RunTime::Fixed(Duration::from_millis(7_300)), ..setup.mock };
    let site = Setup { mock, ..setup }.memory();
    let run = async || {
        let (begun, attempts) = (Instant::now(), site.mock.stats().attempts);
        let id = site.send(run("/v1/models/acme/boats/predictions")).await.job_id();
        let ended = site.send(get(&format!("/v1/predictions/{id}")).with("prefer", "wait=60")).await;
        assert_eq!(ended.json()["status"], "succeeded");
        (begun.elapsed().as_secs_f64(), site.mock.stats().attempts - attempts)
    };
    let (first, looks) = run().await;
    assert!(first > 8.0 && looks > 3, "{first} {looks}");
    let (second, attempts) = run().await;
    assert!((7.3..7.5).contains(&second) && attempts == 2, "{second} {attempts}");
}

#[tokio::test(start_paused = true)]
async fn urls_lead_back_to_the_proxy_and_nothing_else_changes() {
    let site = replicate("", REPLICATE).memory();
    let created = site.send(run("/v1/models/acme/boats/predictions").with("host", "127.0.0.1:4321")).await;
    let id = created.job_id();
    let of = |host: &str| {
        let job = format!("http://{host}/v1/predictions/{id}");
        let stream = format!("http://{host}/v1/streams/{id}");
        vec![job.clone(), format!("{job}/cancel"), stream, format!("https://replicate.com/p/{id}")]
    };
    assert_eq!(urls(&created), of("127.0.0.1:4321"));
    assert!(created.whole && created.number("content-length") == created.body.len() as u64, "{created:?}");
    let polled = site.send(get(&format!("/v1/predictions/{id}"))).await;
    assert_eq!(urls(&polled), of("localhost:8787"), "to where this caller reached us");
    // The same without the proxy: byte for byte, but for the URLs.
    let direct = get(&format!("/v1/predictions/{id}"))
        .with("host", "localhost:1")
        .with("authorization", &format!("Bearer {KEY}"));
    let (near, far) = tokio::io::duplex(64 * 1024);
    site.mock.serve(far);
    let direct = client::exchange(near, direct).await;
    let expected =
        std::str::from_utf8(&direct.body).expect("text").replace("http://localhost:1/", "http://localhost:8787/");
    assert_eq!(std::str::from_utf8(&polled.body).expect("text"), expected);
    // They can be followed, also to the stream.
    let stream = site.send(get(&format!("/v1/streams/{id}"))).await;
    assert!(
        std::str::from_utf8(&stream.body).expect("text").ends_with("event: done\nid: 1:0\ndata: {}\n\n"),
        "{stream:?}"
    );
    let cancelled = site.send(post(&format!("/v1/predictions/{id}/cancel"), "")).await;
    assert_eq!((urls(&cancelled), &cancelled.json()["status"]), (of("localhost:8787"), &json!("succeeded")));
    // Lists, too, and the way from page to page.
    let list = site.send(get("/v1/predictions?cursor=c")).await;
    assert!(list.whole && !String::from_utf8_lossy(&list.body).contains("http://localhost:1/"), "{list:?}");
    let list = list.json();
    assert_eq!(list["results"][0]["urls"]["get"], format!("http://localhost:8787/v1/predictions/{id}"));
    assert_eq!(list["previous"], "http://localhost:8787/v1/predictions");
}

#[tokio::test(start_paused = true)]
async fn a_post_cancels_and_frees_the_slot() {
    let mut setup = replicate("concurrent_jobs = 1", REPLICATE);
    setup.mock.run_time = RunTime::Fixed(Duration::from_secs(3600));
    let site = setup.memory();
    let id = site.send(run("/v1/predictions")).await.job_id();
    assert_eq!(site.proxy.usage().jobs_live, 1);
    // Cancelling twice does no harm, although it is a POST: silence is no reason to give up.
    site.mock.fault_next("POST", "/v1/predictions/", Fault::ResetBefore);
    let cancelled = site.send(post(&format!("/v1/predictions/{id}/cancel"), "")).await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (StatusCode::OK, &json!("canceled")));
    assert_eq!(site.settled().await, NOTHING);
    assert_eq!(site.mock.stats().jobs_live_now, 0);
}

#[tokio::test(start_paused = true)]
async fn prefer_wait_holds_the_create_beyond_the_attempt_timeout() {
    let toml = "[upstream]\nprotocol = \"replicate\"\nattempt_timeout = \"5s\"\ntotal_timeout = \"5s\"";
    let mut setup = replicate("", toml);
    setup.mock.run_time = RunTime::Fixed(Duration::from_secs(30));
    let site = setup.memory();
    let start = Instant::now();
    let answer = site.send(run("/v1/predictions").with("prefer", "wait")).await;
    assert_eq!((answer.status, &answer.json()["status"]), (StatusCode::CREATED, &json!("succeeded")));
    assert_eq!((start.elapsed().as_secs(), answer.header("preference-applied")), (30, "wait"));
    assert_eq!(site.settled().await, NOTHING, "the create's answer told of the end");
    let site = Setup::default().memory();
    site.send(get("/v1/echo").with("prefer", "wait=5, respond-async")).await;
    assert_eq!(site.mock.requests()[0].headers["prefer"], "respond-async", "core.today does not know it");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_only_the_text_tells_is_heeded() {
    let mut setup = replicate("", REPLICATE);
    // The plan has no limit, the upstream has one.
    setup.mock.requests = Some(1);
    let site = setup.memory();
    assert_eq!(site.send(get("/v1/account")).await.status, StatusCode::OK);
    let start = Instant::now();
    let answer = site.send(get("/v1/account")).await;
    assert_eq!((answer.status, answer.attempts()), (StatusCode::OK, 2));
    assert!((60..70).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let toml = "[upstream]\nprotocol = \"replicate\"\n[retry]\nmax_attempts = 1";
    let mut setup = replicate("", toml);
    setup.mock.requests = Some(1);
    let site = setup.memory();
    site.send(get("/v1/account")).await;
    let refused = site.send(run("/v1/predictions")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "60"));
    assert_eq!(refused.header("sluicegate-charge"), "refused");
    assert!(refused.json()["detail"].as_str().expect("text").contains("~60s"));
}

#[tokio::test(start_paused = true)]
async fn another_client_s_job_looks_like_none() {
    let site = replicate("", CLIENTS).memory();
    let web = |request: Request<Full<Bytes>>| request.with("authorization", "Bearer web-token");
    let batch = |request: Request<Full<Bytes>>| request.with("authorization", "Bearer batch-token");
    let id = site.send(web(run("/v1/predictions"))).await.job_id();
    let path = format!("/v1/predictions/{id}");
    assert_eq!(site.send(web(get(&path))).await.status, StatusCode::OK);
    let foreign = site.send(batch(get(&path))).await;
    let unknown = site.send(batch(get("/v1/predictions/unknown"))).await;
    assert_eq!(
        (foreign.status, foreign.json()["detail"].clone()),
        (StatusCode::NOT_FOUND, unknown.json()["detail"].clone())
    );
    assert_eq!(site.send(batch(post(&format!("{path}/cancel"), ""))).await.status, StatusCode::NOT_FOUND);
}

/// An API like Luma's: `state` for `status`, `DELETE` to cancel with nothing to say, `Key` before the key, a version header.
struct Luma {
    jobs: Mutex<HashMap<String, &'static str>>,
    seen: Mutex<Vec<String>>,
}

impl Luma {
    async fn start() -> (Arc<Self>, String) {
        let luma = Arc::new(Self { jobs: Mutex::default(), seen: Mutex::default() });
        let address = server::listen(&luma).await;
        (luma, format!("http://{address}"))
    }

    fn set(&self, id: &str, state: &'static str) {
        self.jobs.lock().expect("no panics").insert(id.to_owned(), state);
    }
}

impl Answers for Luma {
    async fn answer(self: Arc<Self>, head: Parts, _body: Option<Bytes>) -> Response<Full<Bytes>> {
        let header = |name: &str| head.headers.get(name).map_or("-", |value| value.to_str().expect("text")).to_owned();
        let line = format!(
            "{} {} {} {} {}",
            head.method,
            head.uri.path(),
            header("authorization"),
            header("x-version"),
            header("x-api-key")
        );
        self.seen.lock().expect("no panics").push(line);
        let mut jobs = self.jobs.lock().expect("no panics");
        let id = head.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let about = |id: &str, state: &str| {
            let url = format!("http://{}/v1/generations/{id}", header("host"));
            (StatusCode::OK, json!({"id": id, "state": state, "url": url}))
        };
        let (status, body) = match (head.method.as_str(), jobs.get(&id).copied()) {
            ("POST", _) => {
                let id = format!("g{}", jobs.len());
                jobs.insert(id.clone(), "dreaming");
                about(&id, "queued")
            }
            ("GET", Some(state)) => about(&id, state),
            ("DELETE", Some(_)) => {
                jobs.remove(&id);
                (StatusCode::NO_CONTENT, Value::Null)
            }
            _ => (StatusCode::NOT_FOUND, json!({"detail": "Not found"})),
        };
        let text = if body.is_null() { String::new() } else { body.to_string() };
        says(status.as_u16(), text)
    }
}

const OWN: &str = r#"
[upstream]
protocol = "luma"

[protocols.luma]
create = ["POST /v1/generations", "POST /v1/generations/{kind}"]
status = "GET /v1/generations/{id}"
cancel = "DELETE /v1/generations/{id}"
state = "/state"
succeeded = "Dream Completed"
failed = "failed"
auth = "Authorization: Key {key}"
headers = { X-Version = "2024-11-06" }
rewrite = "/url"
not_found = '{"detail":"Not found"}'

[[clients]]
name = "web"
token = { env = "WEB_TOKEN" }
"#;

#[tokio::test]
async fn a_protocol_of_the_operator_s_own_is_followed() {
    let (luma, url) = Luma::start().await;
    let scratch = Scratch::new();
    let config = scratch.load("concurrent_jobs = 2", OWN, &url);
    let server = Server::start(&config).await.expect("free ports");
    let send = |method: &'static str, path: String| {
        let address = server.listen[0];
        async move {
            let stream = TcpStream::connect(address).await.expect("the port is open");
            let request =
                request(method, &path, "{}").with("authorization", "Key web-token").with("x-api-key", "placeholder");
            client::exchange(stream, request).await
        }
    };
    let jobs = async |live: u32| {
        until(format!("{live} jobs"), || async {
            let usage = server.proxy().usage();
            (usage.jobs_live == live, usage)
        })
        .await
    };
    let first = send("POST", "/v1/generations".into()).await;
    assert_eq!(
        (first.status, &first.json()["url"]),
        (StatusCode::OK, &json!("http://localhost:8787/v1/generations/g0"))
    );
    let second = send("POST", "/v1/generations/image".into()).await;
    assert_eq!((second.job_id().as_str(), second.header("sluicegate-charge")), ("g1", "accepted"));
    jobs(2).await;
    assert_eq!(send("DELETE", "/v1/generations/g0".into()).await.status, StatusCode::NO_CONTENT);
    jobs(1).await;
    luma.set("g1", "dream completed");
    jobs(0).await;
    assert_eq!(send("GET", "/v1/generations/g1".into()).await.json()["state"], "dream completed");
    assert_eq!(send("GET", "/v1/other".into()).await.json()["detail"], "Not found");
    let seen = luma.seen.lock().expect("no panics").clone();
    assert!(seen.iter().all(|line| line.ends_with(&format!(" Key {KEY} 2024-11-06 -"))), "{seen:?}");
    assert!(server.drain().await);
}
