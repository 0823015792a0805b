//! CPU time per request beside nginx and HAProxy, where they are installed, on the same work in the same run. `cargo bench --bench peers`;
//! `-- memory` and the like for parts of it (passed, refused, logged, creates, tls, workers, memory).
//!
//! nginx and HAProxy do the least of our job: forward with keep-alive, add the key, check a limit per client. Sluicegate does all of its
//! own. Request logs are off, except in the part `logged`.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use support::callers::{Caller, block_on, drive, request};
use support::party::{Party, common_directory, open_many_files, pin_ourselves};
use support::upstream::{ENDLESS, EVENTS, play};
use support::{Figure, ROUNDS, chosen, interleaved, wanted};

const CONNECTIONS: usize = 64;
/// A plan that never binds, and one that always does.
const OPEN: &str = "requests_per_minute = 100000000\nconcurrent_jobs = 100000";
/// The same for nginx.
const OPEN_RATE: &str = "1000000r/s burst=100000 nodelay";
const SHUT: &str = "requests_per_minute = 1";
const QUIET: &str = "[state]\nstore = \"memory\"\n[log]\nlevel = \"off\"\n";
const REFUSING: &str = "[queue]\nmax_wait = \"0s\"\n[state]\nstore = \"memory\"\n[log]\nlevel = \"off\"\n";

/// What is sent and answered, and over how many of it a figure is taken.
struct Work {
    name: &'static str,
    request: Vec<u8>,
    /// Requests of each connection in a round.
    times: usize,
    /// Things counted in one request.
    each: usize,
    status: u16,
}

fn main() {
    play();
    if wanted() {
        pin_ourselves("1");
        open_many_files();
        println!(
            "CPU of the server's own process, in µs: median [least - most] of {ROUNDS} interleaved rounds, {CONNECTIONS} connections"
        );
        let upstream = Party::role("upstream", "1", None);
        let url = format!("http://{}", upstream.address);
        let parts: [(&str, &dyn Fn()); 7] = [
            ("passed", &|| passed(&url, upstream.address)),
            ("refused", &|| refused(&url, upstream.address)),
            ("logged", &|| logged(&url)),
            ("creates", &|| creates(&url)),
            ("tls", &over_tls),
            ("workers", &|| two_workers(&url)),
            ("memory", &memory),
        ];
        for (_, part) in parts.iter().filter(|(name, _)| chosen(name)) {
            part();
        }
        let _ = std::fs::remove_dir_all(common_directory());
    }
}

fn passed(url: &str, upstream: SocketAddr) {
    let body = vec![b' '; 1024];
    let works = [
        Work { name: "GET 700 B", request: request("GET /v1/templates", b""), times: 150, each: 1, status: 200 },
        Work { name: "POST 1 KiB", request: request("POST /v1/mcp", &body), times: 150, each: 1, status: 200 },
        Work { name: "GET 1 MiB", request: request("GET /v1/large", b""), times: 8, each: 1, status: 200 },
        Work { name: "SSE event", request: request("GET /v1/events", b""), times: 2, each: EVENTS, status: 200 },
    ];
    let parties: Vec<Party> = [
        Some(Party::sluicegate("sluicegate", "0", 1, url, OPEN, QUIET)),
        Party::nginx("nginx", "0", url, OPEN_RATE, "off"),
        Party::haproxy("HAProxy", "0", upstream, 100_000_000),
        Some(Party::role("relay", "0", Some(upstream))),
    ]
    .into_iter()
    .flatten()
    .collect();
    title(&parties);
    for work in &works {
        row(work, &parties);
    }
}

fn title(parties: &[Party]) {
    print!("\n{:<24}", "");
    for party in parties {
        print!("{:>26}", party.name);
    }
    println!("    ratio to the others");
}

fn row(work: &Work, parties: &[Party]) {
    let count = CONNECTIONS * work.times * work.each;
    let figures = interleaved(parties, ROUNDS, |party| {
        party.cost_of(count, || drive(party.address, &work.request, CONNECTIONS, work.times, work.status))
    });
    show(work.name, &figures);
}

/// One line: every figure, and the first one's ratio to each of the others.
fn show(name: &str, figures: &[Figure]) {
    print!("{name:<24}");
    for figure in figures {
        print!("{:>26}", figure.text);
    }
    let ratios = figures[1..].iter().map(|other| format!("{:.2}", figures[0].median / other.median));
    println!("    {}", ratios.collect::<Vec<_>>().join(" / "));
}

fn refused(url: &str, upstream: SocketAddr) {
    let parties: Vec<Party> = [
        Some(Party::sluicegate("sluicegate", "0", 1, url, SHUT, REFUSING)),
        Party::nginx("nginx", "0", url, "1r/m", "off"),
        Party::haproxy("HAProxy", "0", upstream, 1),
    ]
    .into_iter()
    .flatten()
    .collect();
    // The first ones pass, and none after them.
    let get = request("GET /v1/templates", b"");
    for party in &parties {
        block_on(async {
            let mut caller = Caller::connect(party.address).await;
            while caller.ask(&get).await == 200 {}
        });
    }
    title(&parties);
    row(&Work { name: "refused GET", request: get, times: 150, each: 1, status: 429 }, &parties);
}

/// Each writes a line for every request into a file. nginx gathers 64 KiB of them, in its usual form and in ours.
fn logged(url: &str) {
    const TIMES: usize = 150;
    let ours = "[state]\nstore = \"memory\"\n[log]\nlevel = \"info\"\nformat = \"json\"\n";
    let log = |format: &str| format!("DIRECTORY/log {format} buffer=64k flush=1s");
    let parties: Vec<Party> = [
        Some(Party::sluicegate("sluicegate", "0", 1, url, OPEN, ours)),
        Party::nginx("nginx, JSON", "0", url, OPEN_RATE, &log("json")),
        Party::nginx("nginx, combined", "0", url, OPEN_RATE, &log("combined")),
    ]
    .into_iter()
    .flatten()
    .collect();
    title(&parties);
    let get = request("GET /v1/templates", b"");
    row(&Work { name: "GET, logged", request: get, times: TIMES, each: 1, status: 200 }, &parties);
    // nginx writes the rest after a second.
    std::thread::sleep(Duration::from_millis(1500));
    for party in &parties {
        let log = party.file("log");
        let lines: Vec<_> = log.lines().filter(|line| line.contains("/v1/templates")).collect();
        assert_eq!(lines.len(), CONNECTIONS * TIMES * (ROUNDS + 1), "{} logged every request", party.name);
        println!("{:<24}a line has {} bytes", party.name, lines[0].len() + 1);
    }
}

/// What only Sluicegate does: a create with its entry in the ledger before it is sent.
fn creates(url: &str) {
    let create = request("POST /v1/predictions", br#"{"model":"flux-schnell","input":{"prompt":"a paper boat"}}"#);
    let state = common_directory().join("state");
    let ledger = format!("[log]\nlevel = \"off\"\n[state]\npath = \"{}\"\n", state.display());
    let parties = [
        Party::sluicegate("ledger on disk", "0", 1, url, OPEN, &ledger),
        Party::sluicegate("ledger in memory", "0", 1, url, OPEN, QUIET),
    ];
    title(&parties);
    row(&Work { name: "create", request: create, times: 20, each: 1, status: 200 }, &parties);
}

/// What TLS to the upstream costs is the difference to the last row.
fn over_tls() {
    for (role, name) in [("upstream-tls", "GET, TLS, HTTP/1.1"), ("upstream-h2", "GET, TLS, HTTP/2")] {
        let upstream = Party::role(role, "1", None);
        let url = format!("https://localhost:{}", upstream.address.port());
        let mut parties = vec![Party::sluicegate("sluicegate", "0", 1, &url, OPEN, QUIET)];
        // nginx speaks no HTTP/2 to an upstream.
        if role == "upstream-tls" {
            parties.extend(Party::nginx("nginx", "0", &url, OPEN_RATE, "off"));
        }
        title(&parties);
        row(&Work { name, request: request("GET /v1/templates", b""), times: 150, each: 1, status: 200 }, &parties);
    }
    let upstream = Party::role("upstream", "1", None);
    let url = format!("http://{}", upstream.address);
    let mut parties = vec![Party::sluicegate("sluicegate", "0", 1, &url, OPEN, QUIET)];
    parties.extend(Party::nginx("nginx", "0", &url, OPEN_RATE, "off"));
    title(&parties);
    let get = request("GET /v1/templates", b"");
    row(&Work { name: "GET, without TLS", request: get, times: 150, each: 1, status: 200 }, &parties);
}

fn two_workers(url: &str) {
    let parties = [
        Party::sluicegate("two workers", "0,1", 2, url, OPEN, QUIET),
        Party::sluicegate("one worker", "0", 1, url, OPEN, QUIET),
    ];
    title(&parties);
    row(
        &Work { name: "GET 700 B", request: request("GET /v1/templates", b""), times: 150, each: 1, status: 200 },
        &parties,
    );
}

/// Resident memory: at rest, for each connection that has asked once, and beside it for each create that waits for a slot.
fn memory() {
    const MANY: usize = 1_000;
    let upstream = Party::role("jobs", "1", None);
    let url = format!("http://{}", upstream.address);
    let one_job = "requests_per_minute = 100000000\nconcurrent_jobs = 1";
    let waiting = format!("[queue]\nmax_waiting = {}\n{QUIET}", 2 * MANY);
    // nginx has no jobs; its `limit_req` can hold requests back.
    let parties: Vec<Party> = [
        Some(Party::sluicegate("sluicegate", "0", 1, &url, one_job, &waiting)),
        Party::nginx("nginx", "0", &url, "1000000r/s burst=100000 nodelay", "off"),
        Party::nginx("nginx, delaying", "0", &url, "1r/s burst=100000", "off"),
        Party::haproxy("HAProxy", "0", upstream.address, 100_000_000),
    ]
    .into_iter()
    .flatten()
    .collect();
    println!("\n{:<24}{:>14}{:>22}{:>14}", "resident memory, KiB", "at rest", "a connection", "a waiter");
    for party in &parties {
        block_on(weigh(party, MANY));
    }
}

async fn weigh(party: &Party, many: usize) {
    let get = request("GET /v1/echo", b"");
    let create = request("POST /v1/predictions", format!("{{\"model\":\"{ENDLESS}\",\"input\":{{}}}}").as_bytes());
    let weight = || {
        party.settle();
        i64::try_from(party.rss_kib()).expect("a small number")
    };
    #[allow(clippy::cast_precision_loss)] // some thousands
    let each = |more: i64| more as f64 / many as f64;
    let at_rest = weight();
    let delays = party.name == "nginx, delaying";
    let mut callers = Vec::new();
    for _ in 0..many {
        let mut caller = Caller::connect(party.address).await;
        if !delays {
            caller.ask(&get).await;
        }
        callers.push(caller);
    }
    let connected = weight();
    print!("{:<24}{at_rest:>14}{:>22.1}", party.name, each(connected - at_rest));
    if !delays && party.name != "sluicegate" {
        return println!();
    }
    // The first one takes the slot.
    Caller::connect(party.address).await.ask(&create).await;
    for caller in &mut callers {
        caller.send(&create).await;
    }
    println!("{:>14.1}", each(weight() - connected));
    for caller in &callers {
        assert!(caller.is_waiting().await, "{} holds all creates", party.name);
    }
}
