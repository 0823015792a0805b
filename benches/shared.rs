//! What sharing costs a decision: time to the answer of calls one by one, and CPU of the proxy's own process, with the books in memory and
//! with a redis-server on the same machine, in one run; how often the store is called, as it counts itself. `cargo bench --bench shared`;
//! needs redis-server.

mod support;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::callers::{Caller, block_on, drive, request};
use support::party::{Party, common_directory, installed, pin_ourselves};
use support::upstream::play;
use support::{Figure, ROUNDS, interleaved, wanted};
use tokio::time::Instant;

/// Below the plan, so that what is measured is the asking and not the waiting.
const PLAN: &str = "requests = 10000\nper = \"1s\"";
const ONE_BY_ONE: usize = 500;
const CONNECTIONS: usize = 16;
const TIMES: usize = 60;
/// Most of it is refused, and nobody may wait.
const SCARCE: &str = "requests = 20\nper = \"12s\"\n[queue]\nmax_wait = \"0s\"";
const STORM: usize = 5_000;
/// A replica shows that it lives so often, with a window of this length or less.
const BEAT: Duration = Duration::from_millis(375);

struct Redis(Child, u16);

impl Redis {
    fn start() -> Self {
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("free").port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).stdout(Stdio::null());
        let child = command.spawn().expect("it starts");
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child, port)
    }

    /// The settings that share through it, in a database of one's own.
    fn settings(&self, directory: &Path, database: u8) -> String {
        let (path, port) = (directory.join(database.to_string()), self.1);
        let redis = format!("redis = {{ url = \"redis://127.0.0.1:{port}/{database}\", replicas = 1 }}");
        format!("[state]\nstore = \"redis\"\npath = \"{}\"\n{redis}\n", path.display())
    }

    /// How often scripts have been called while this ran.
    fn calls(&self, work: impl FnOnce()) -> u64 {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.1)).expect("a URL");
        let mut connection = client.get_connection().expect("it answers");
        let _: redis::Value = redis::cmd("CONFIG").arg("RESETSTAT").query(&mut connection).expect("it answers");
        work();
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).expect("it answers");
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    play();
    if !wanted() {
        return;
    }
    if !installed("redis-server") {
        eprintln!("redis-server is not installed: `apt-get install redis-server`");
        return;
    }
    pin_ourselves("1");
    let redis = Redis::start();
    let directory = std::env::temp_dir().join(format!("sluicegate-shared-bench-{}", std::process::id()));
    let upstream = Party::role("upstream", "1", None);
    let url = format!("http://{}", upstream.address);
    let quiet = "[log]\nlevel = \"off\"\n";
    let memory = format!("[state]\nstore = \"memory\"\n{quiet}");
    let shared = redis.settings(&directory, 0) + quiet;
    let parties = [
        Party::sluicegate("memory", "0", 1, &url, PLAN, &memory),
        Party::sluicegate("redis", "0", 1, &url, PLAN, &shared),
    ];
    let get = request("GET /v1/templates", b"");
    println!(
        "median [least - most] of {ROUNDS} interleaved rounds\n{:<28} {:>24} {:>24} {:>8}",
        "", "memory", "redis", "ratio"
    );
    let show = |name: &str, figures: &[Figure]| {
        let ratio = figures[1].median / figures[0].median;
        println!("{name:<28} {:>24} {:>24} {ratio:>8.2}", figures[0].text, figures[1].text);
    };
    show("p50 of one by one, µs", &interleaved(&parties, ROUNDS, |party| p50(party, &get)));
    show(
        "CPU a request, µs",
        &interleaved(&parties, ROUNDS, |party| {
            party.cost_of(CONNECTIONS * TIMES, || drive(party.address, &get, CONNECTIONS, TIMES, 200))
        }),
    );
    let calls = redis.calls(|| {
        p50(&parties[1], &get);
    });
    println!("\n{calls} calls to the store for {ONE_BY_ONE} attempts one by one");
    let calls = redis.calls(|| drive(parties[1].address, &get, CONNECTIONS, TIMES, 200));
    println!("{calls} for {} of {CONNECTIONS} callers at once", CONNECTIONS * TIMES);
    drop(parties);
    // With a key of its own no other account is in the way; the first call waits until a new store is past its hold.
    let storm = redis.settings(&directory, 1) + quiet;
    let party = Party::sluicegate("storm", "0", 1, &url, SCARCE, &storm);
    block_on(exhaust(&party, &get));
    let begun = Instant::now();
    let calls = redis.calls(|| drive(party.address, &get, 1, STORM, 429));
    let beats = begun.elapsed().as_millis() / BEAT.as_millis() + 1;
    println!("{calls} for {STORM} refused ones; up to {beats} show that the replica lives");
    drop(party);
    let _ = std::fs::remove_dir_all(common_directory());
    let _ = std::fs::remove_dir_all(directory);
}

/// Until nothing is left of the window.
async fn exhaust(party: &Party, request: &[u8]) {
    let mut caller = Caller::connect(party.address).await;
    let mut passed = 0;
    while passed < 20 {
        passed += u32::from(caller.ask(request).await == 200);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Of the time to an answer, in microseconds.
fn p50(party: &Party, request: &[u8]) -> f64 {
    block_on(async {
        let mut caller = Caller::connect(party.address).await;
        let mut times = Vec::new();
        for _ in 0..ONE_BY_ONE {
            let begun = Instant::now();
            assert_eq!(caller.ask(request).await, 200);
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}
