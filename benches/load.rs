//! What callers see: requests sent on a schedule, whether or not the ones before are answered. `cargo bench --bench load`.
//!
//! An open loop: every time counts from when its request should have been sent, so that a stall shows in all the requests it holds up.
//! Beside nginx and HAProxy where they are installed, and beside the upstream asked directly. `LOAD_SECS=10` for longer rounds; `-- get` and
//! the like for parts (get, bodies, jobs, refused).

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use support::callers::{Caller, block_on, request};
use support::party::{Party, common_directory, pin_ourselves};
use support::upstream::{EVENTS, play};
use support::{chosen, wanted};
use tokio::time::Instant;

const OPEN: &str = "requests_per_minute = 100000000\nconcurrent_jobs = 100000";
const SHUT: &str = "requests_per_minute = 1";
const QUIET: &str = "[queue]\nmax_wait = \"0s\"\n[state]\nstore = \"memory\"\n[log]\nlevel = \"off\"\n";
/// Discarded, before each mode.
const WARM_UP: Duration = Duration::from_millis(150);

/// What one connection asks next.
enum Ask {
    Same(Vec<u8>),
    Create(Vec<u8>),
    /// The state of the job that the connection created last.
    Poll,
}

/// Load of one kind.
struct Mode {
    name: String,
    /// Requests a second, of all connections together.
    rate: u32,
    connections: u32,
    rounds: usize,
    /// Each connection asks this from the beginning, again and again.
    script: Vec<Ask>,
    status: u16,
}

fn main() {
    play();
    if !wanted() {
        return;
    }
    pin_ourselves("1");
    let secs = std::env::var("LOAD_SECS").ok().and_then(|secs| secs.parse().ok()).unwrap_or(0.5);
    let lasts = Duration::from_secs_f64(secs);
    println!(
        "microseconds from the intended start to the end of the answer; added: beyond the upstream asked directly"
    );
    println!(
        "{:<34} {:<12} {:>10} {:>8} {:>8} {:>7} {:>10} {:>10}",
        "", "", "answered/s", "p50", "p99", "errors", "added p50", "added p99"
    );
    let large = vec![b' '; 1024 * 1024];
    let get = || Ask::Same(request("GET /v1/templates", b""));
    let post = || Ask::Same(request("POST /v1/echo", &large[..1024]));
    let create = || Ask::Create(request("POST /v1/predictions", br#"{"model":"flux-schnell","input":{}}"#));
    let mode = |name: &str, rate, connections, rounds, script| Mode {
        name: format!("{name}, {rate}/s"),
        rate,
        connections,
        rounds,
        script,
        status: 200,
    };
    let plain = [
        mode("GET 700 B", 2_000, 32, 3, vec![get()]),
        mode(
            "1 MiB down, 1 MiB up",
            100,
            32,
            1,
            vec![Ask::Same(request("GET /v1/large", b"")), Ask::Same(request("POST /v1/mcp", &large))],
        ),
        mode(&format!("SSE of {EVENTS} events"), 100, 64, 1, vec![Ask::Same(request("GET /v1/events", b""))]),
    ];
    let jobs = [
        mode("create, then four polls", 1_000, 32, 1, vec![create(), Ask::Poll, Ask::Poll, Ask::Poll, Ask::Poll]),
        mode("mixed", 1_000, 32, 1, vec![get(), create(), post(), Ask::Poll, get(), get(), Ask::Poll, get()]),
    ];
    let free = "1000000r/s burst=100000 nodelay";
    if chosen("get") {
        compare("upstream", OPEN, free, 100_000_000, &plain[..1], lasts);
    }
    if chosen("bodies") {
        compare("upstream", OPEN, free, 100_000_000, &plain[1..], lasts);
    }
    if chosen("jobs") {
        compare("jobs", OPEN, free, 100_000_000, &jobs, lasts);
    }
    if chosen("refused") {
        let storm = Mode { status: 429, ..mode("rejection storm", 5_000, 32, 1, vec![get()]) };
        compare("upstream", SHUT, "1r/m", 1, &[storm], lasts);
    }
    let _ = std::fs::remove_dir_all(common_directory());
}

/// Starts the parties in front of an upstream in `role`, and runs each mode in interleaved rounds.
#[allow(clippy::cast_precision_loss)] // microseconds
fn compare(role: &'static str, plan: &str, rate: &str, per_minute: u64, modes: &[Mode], lasts: Duration) {
    let upstream = Party::role(role, "1", None);
    let url = format!("http://{}", upstream.address);
    let parties: Vec<Party> = [
        Some(Party::sluicegate("sluicegate", "0", 1, &url, plan, QUIET)),
        Party::nginx("nginx", "0", &url, rate, "off"),
        Party::haproxy("HAProxy", "0", upstream.address, per_minute),
    ]
    .into_iter()
    .flatten()
    .collect();
    for mode in modes {
        // An upstream that is asked directly refuses nothing.
        let direct = (mode.status == 200).then_some(("direct", upstream.address));
        let targets: Vec<_> =
            direct.into_iter().chain(parties.iter().map(|party| (party.name, party.address))).collect();
        let mut seen: Vec<Seen> = targets.iter().map(|_| Seen::new()).collect();
        for round in 0..=mode.rounds {
            for (&(_, address), seen) in targets.iter().zip(&mut seen) {
                let now = run(mode, address, if round == 0 { WARM_UP } else { lasts });
                if round > 0 {
                    seen.add(&now);
                }
            }
        }
        for ((name, _), own) in targets.iter().zip(&seen) {
            own.print(&mode.name, name, direct.map(|_| &seen[0]));
        }
        let of = |name| targets.iter().zip(&seen).find_map(|((party, _), seen)| (*party == name).then_some(seen));
        if let (Some(direct), Some(ours), Some(nginx)) = (direct.map(|_| &seen[0]), of("sluicegate"), of("nginx")) {
            let ratio = |quantile| ours.added(direct, quantile) as f64 / nginx.added(direct, quantile) as f64;
            println!(
                "{:<34} {:<48} {:>10.2} {:>10.2}",
                mode.name,
                "added by sluicegate, to nginx's",
                ratio(0.5),
                ratio(0.99)
            );
        }
    }
}

/// What became of the requests.
struct Seen {
    micros: Histogram<u64>,
    errors: u64,
    lasted: Duration,
}

impl Seen {
    fn new() -> Self {
        let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("good bounds");
        Self { micros, errors: 0, lasted: Duration::ZERO }
    }

    /// Adds another round.
    fn add(&mut self, other: &Self) {
        self.join(other);
        self.lasted += other.lasted;
    }

    /// Adds what another connection saw in the same round.
    fn join(&mut self, other: &Self) {
        self.micros.add(&other.micros).expect("the same bounds");
        self.errors += other.errors;
    }

    fn print(&self, mode: &str, party: &str, direct: Option<&Self>) {
        #[allow(clippy::cast_precision_loss)] // some thousands
        let rate = self.micros.len() as f64 / self.lasted.as_secs_f64();
        let at = |quantile| self.micros.value_at_quantile(quantile);
        print!("{mode:<34} {party:<12} {rate:>10.0} {:>8} {:>8} {:>7}", at(0.5), at(0.99), self.errors);
        if let Some(direct) = direct {
            print!(" {:>10} {:>10}", self.added(direct, 0.5), self.added(direct, 0.99));
        }
        println!();
    }

    /// Microseconds beyond the upstream asked directly, at the same quantile.
    fn added(&self, direct: &Self, quantile: f64) -> i64 {
        let at = |seen: &Self| seen.micros.value_at_quantile(quantile).cast_signed();
        at(self) - at(direct)
    }
}

/// One round: a thread for each connection, so that each wakes on time.
fn run(mode: &Mode, address: SocketAddr, lasts: Duration) -> Seen {
    // By then all are connected.
    let begin = Instant::now() + Duration::from_millis(50);
    let mut all = Seen::new();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..mode.connections)
            .map(|index| scope.spawn(move || block_on(call(mode, address, index, begin, lasts))))
            .collect();
        for caller in callers {
            all.join(&caller.join().expect("no caller panics"));
        }
    });
    all.lasted = begin.elapsed();
    all
}

/// One connection, whose turns come every `connections / rate` seconds.
async fn call(mode: &Mode, address: SocketAddr, index: u32, begin: Instant, lasts: Duration) -> Seen {
    let (mut seen, mut caller, mut poll) = (Seen::new(), Caller::connect(address).await, Vec::new());
    for (turn, ask) in (0_u32..).zip(mode.script.iter().cycle()) {
        let offset = Duration::from_secs(1) * (turn * mode.connections + index) / mode.rate;
        if offset >= lasts {
            break;
        }
        let intended = begin + offset;
        // Finer than the timer of the runtime, which has nothing else to do.
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        let request = match ask {
            Ask::Same(request) | Ask::Create(request) => request,
            Ask::Poll => &poll,
        };
        match caller.try_ask(request).await {
            Ok(status) if status == mode.status || status == 201 => {
                let micros = u64::try_from(intended.elapsed().as_micros()).expect("short");
                seen.micros.record(micros.max(1)).expect("within the bounds");
            }
            Ok(_) => seen.errors += 1,
            Err(_) => {
                seen.errors += 1;
                caller = Caller::connect(address).await;
            }
        }
        if let Ask::Create(_) = ask {
            let job: serde_json::Value = serde_json::from_slice(caller.body()).unwrap_or_default();
            let id = job["job_id"].as_str().unwrap_or("none");
            poll = self::request(&format!("GET /v1/predictions/{id}"), b"");
        }
    }
    seen
}
