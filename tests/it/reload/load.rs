//! Keys and plans that change under load: the program itself, over sockets. No request fails, and the upstream never counts more in a
//! window than the plan of the time allows.
//!
//! `SLUICEGATE_RELOADS=100` is the full size: 100 rotations, 100 reloads, 2,000 requests a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::patience::until;
use crate::support::program::{Place, Running, send};
use crate::support::vault::Vault;
use crate::support::{create, get, poll};

const WINDOW: Duration = Duration::from_millis(200);
/// Below the load, and above it: the queue grows under the one and shrinks under the other.
const TIGHT: f64 = 0.9;
const WIDE: f64 = 1.3;
/// Live jobs under either plan.
const JOBS: (usize, usize) = (4, 8);

/// What callers saw.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    jobs: AtomicU64,
    slowest_ms: AtomicU64,
    first_failure: std::sync::Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Tally {
    fn note(&self, begun: Instant, result: Result<(), String>) {
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.slowest_ms.fetch_max(took, Ordering::Relaxed);
        match result {
            Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Err(reason) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.first_failure.lock().expect("no panics").get_or_insert(reason);
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn connect(to: std::net::SocketAddr) -> Sender {
    let stream = TcpStream::connect(to).await.expect("open");
    stream.set_nodelay(true).expect("a socket");
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    sender
}

/// The body of a good answer.
async fn ask(sender: &mut Sender, request: http::Request<Full<Bytes>>, status: u16) -> Result<Bytes, String> {
    sender.ready().await.map_err(|error| format!("not ready: {error}"))?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let got = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    if got == status { Ok(body) } else { Err(format!("{got}: {}", String::from_utf8_lossy(&body))) }
}

/// One request each `every`, by the clock: a late one is not left out.
async fn caller(to: std::net::SocketAddr, every: Duration, offset: Duration, tally: Arc<Tally>) {
    let mut sender = connect(to).await;
    let mut next = Instant::now() + offset;
    while tally.goes_on() {
        sleep_until(next).await;
        let result = ask(&mut sender, get("/v1/echo"), 200).await.map(|_| ());
        if result.is_err() {
            sender = connect(to).await;
        }
        tally.note(next, result);
        next += every;
    }
}

/// Creates jobs and follows them to their ends.
async fn job_caller(to: std::net::SocketAddr, tally: Arc<Tally>) {
    let mut sender = connect(to).await;
    while tally.goes_on() {
        let begun = Instant::now();
        let created = ask(&mut sender, create(), 201).await;
        let id = created.as_ref().ok().and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
        let id = id.and_then(|job| job["job_id"].as_str().map(str::to_owned)).unwrap_or_default();
        tally.note(begun, created.map(|_| ()));
        loop {
            sleep(Duration::from_millis(100)).await;
            let begun = Instant::now();
            let state = ask(&mut sender, poll(&id), 200).await;
            let ended = state.as_ref().is_ok_and(|body| String::from_utf8_lossy(body).contains("completed"));
            let failed = state.is_err();
            tally.note(begun, state.map(|_| ()));
            if ended || failed || !tally.goes_on() {
                break;
            }
        }
        tally.jobs.fetch_add(1, Ordering::Relaxed);
    }
}

fn plan(per_second: u64, factor: f64, jobs: usize) -> (usize, String) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let limit = (per_second as f64 * WINDOW.as_secs_f64() * factor) as usize; // small numbers
    let text = format!(
        "[accounts.main]\nplan = \"main\"\nkey = {{ file = \"key\" }}\n[plans.main]\nrequests = {limit}\nper = \"200ms\"\njitter = \"5s\"\nconcurrent_jobs = {jobs}\npacing = \"burst\"\n[state]\npath = \"state\"\n[log]\nlevel = \"warn\"\n"
    );
    (limit, text)
}

/// The limit that is in force.
async fn limit(admin: std::net::SocketAddr) -> Option<u64> {
    let answer = send(admin, "GET /api/v1/status HTTP/1.1").await;
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
    status["accounts"][0]["requests"]["limit"].as_u64()
}

async fn reload(proxy: &Running, admin: std::net::SocketAddr, place: &Place, (wanted, text): &(usize, String)) {
    place.write("proxy.toml", text);
    proxy.signal(Signal::HUP);
    until("reloaded", || async {
        let limit = limit(admin).await;
        (limit == u64::try_from(*wanted).ok(), limit)
    })
    .await;
}

/// The upstream runs on a thread of its own, as it would elsewhere. Its jobs take a quarter of a second.
fn upstream(key: &str) -> (Arc<Vault>, String) {
    let vault = Vault::new(&[key], WINDOW, Duration::ZERO);
    let (told, url) = std::sync::mpsc::channel();
    let served = Arc::clone(&vault);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            told.send(served.listen().await).expect("awaited");
            loop {
                let jobs = served.jobs();
                sleep(Duration::from_millis(250)).await;
                for job in &jobs {
                    served.finish(job);
                }
            }
        });
    });
    let url = url.recv().expect("a URL");
    (vault, url)
}

#[tokio::test]
async fn no_request_fails_while_keys_rotate_and_plans_change_under_load() {
    let full = std::env::var("SLUICEGATE_RELOADS").ok().and_then(|text| text.parse::<u32>().ok());
    let rounds = full.unwrap_or(6);
    let per_second: u64 = if full.is_some() { 2_000 } else { 200 };
    let (vault, url) = upstream("cdt_key_0");
    let place = Place::new();
    place.write("key", "cdt_key_0");
    let (tight, wide) = (plan(per_second, TIGHT, JOBS.0), plan(per_second, WIDE, JOBS.1));
    place.write("proxy.toml", &wide.1);
    let mut command = place.bare(&["run", "--config", "proxy.toml"]);
    command.env("SLUICEGATE_UPSTREAM_URL", url).env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0");
    let (mut proxy, to, admin) = Running::with_admin(&mut command).await;

    let tally = Arc::new(Tally::default());
    let mut callers = JoinSet::new();
    let connections = u32::try_from(per_second / 20).expect("few");
    for number in 0..connections {
        let every = Duration::from_millis(50);
        callers.spawn(caller(to, every, every * number / connections, Arc::clone(&tally)));
    }
    (0..6).for_each(|_| drop(callers.spawn(job_caller(to, Arc::clone(&tally)))));
    let begun = Instant::now();
    for round in 1..=rounds {
        let (old, new) = (format!("cdt_key_{}", round - 1), format!("cdt_key_{round}"));
        vault.add(&new);
        // Either plan may be in force until the reload is over.
        vault.bound(wide.0);
        place.write("key", &new);
        let plan = if round % 2 == 0 { &wide } else { &tight };
        if round % 3 == 0 {
            // The old key ends before anybody was told: the first 401 tells.
            vault.revoke(&old);
            sleep(Duration::from_millis(50)).await;
            reload(&proxy, admin, &place, plan).await;
        } else {
            reload(&proxy, admin, &place, plan).await;
            sleep(Duration::from_millis(50)).await;
            vault.revoke(&old);
        }
        vault.bound(plan.0);
        sleep(WINDOW * 3).await;
    }
    let took = begun.elapsed();
    tally.stop.store(true, Ordering::Relaxed);
    while callers.join_next().await.is_some() {}
    let seen = vault.seen();
    let (answered, failed) = (tally.answered.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
    println!(
        "{rounds} rotations and {rounds} reloads in {:.1} s: {answered} answered ({:.0}/s, the slowest after {} ms), {failed} failed, {} jobs; \
         upstream: {} attempts, {} of them 401, {} keys, most in a window {} (plans {} and {}), over the bound of the time {}, most jobs {} (plans {:?})",
        took.as_secs_f64(),
        Duration::from_millis(u64::from(u32::try_from(answered).unwrap_or(u32::MAX))).as_secs_f64() * 1e3
            / took.as_secs_f64(),
        tally.slowest_ms.load(Ordering::Relaxed),
        tally.jobs.load(Ordering::Relaxed),
        seen.attempts,
        seen.unauthorized,
        seen.by_key.len(),
        seen.most_in_window,
        tight.0,
        wide.0,
        seen.over_bound,
        seen.most_jobs,
        JOBS,
    );
    proxy.signal(Signal::TERM);
    let code = proxy.exit_code().await;
    let log = proxy.stderr().await;
    assert_eq!((failed, tally.first_failure.lock().expect("no panics").clone()), (0, None), "{log}");
    assert!(answered > u64::from(rounds) * per_second / 4, "{answered}");
    // Where the machine is too slow for the load, a key may have come and gone unused.
    assert!(seen.by_key.len() * 10 > usize::try_from(rounds).expect("few") * 9, "the keys were used: {seen:?}");
    assert!(seen.most_in_window <= wide.0 && seen.most_jobs <= JOBS.1, "{seen:?}");
    assert_eq!(seen.over_bound, 0, "{seen:?}");
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("cdt_key"), "{log}");
}
