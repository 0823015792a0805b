//! What grows with the number of jobs, clients and waiters, and what does not: memory, and the cost of each decision. And how long the end
//! of a job takes to those who wait for it. `cargo bench --bench scale`; it fails where a cost grows.

#[allow(dead_code, unreachable_pub, missing_docs, clippy::pedantic, reason = "made for the tests")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluicegate::bench::{Desk, Table};
use sluicegate::config::Pacing;
use sluicegate::mock::{Options, RunTime};
use support::client::With as _;
use support::{Live, Setup, create, poll};
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep};

/// Ended jobs that are remembered: the most there can be.
const FINISHED: usize = 20_000;
/// Bytes of an ended job's answer.
const ANSWER: usize = 1_000;
/// Operations in a measured batch, and batches; the figure is the median batch.
const BATCH: usize = 400;
const BATCHES: usize = 5;
/// The most that a cost may grow from the first column to the last.
const MOST: f64 = 4.0;

fn main() {
    // Under `cargo test --benches` nothing is measured.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut flat = runtime.block_on(jobs());
    flat &= runtime.block_on(clients());
    flat &= runtime.block_on(waiters());
    runtime.block_on(ends());
    assert!(flat, "a cost grows by more than {MOST}");
}

/// One line of the table, and whether it is flat.
fn row(name: &str, costs: &[Duration]) -> bool {
    let micros: Vec<f64> = costs.iter().map(|cost| cost.as_secs_f64() * 1e6).collect();
    let ratio = micros[micros.len() - 1] / micros[0];
    print!("{name:<44}");
    for cost in micros {
        print!(" {cost:>10.2}");
    }
    println!(" {ratio:>7.2}");
    ratio <= MOST
}

fn median(mut costs: Vec<Duration>) -> Duration {
    costs.sort_unstable();
    costs[costs.len() / 2]
}

fn per_operation(begun: Instant) -> Duration {
    begun.elapsed() / u32::try_from(BATCH).expect("small")
}

fn name(n: usize) -> String {
    format!("job_{n:08}")
}

fn model(n: usize) -> &'static str {
    ["flux-schnell", "flux-dev", "veo-3", "whisper"][n % 4]
}

/// The job table with 1 k, 10 k and 100 k live jobs.
async fn jobs() -> bool {
    let table = Table::new();
    let (start, mut next) = (resident(), 0);
    for n in 0..FINISHED {
        table.start(&name(n), model(n)).await;
        table.end(&name(n), ANSWER);
        next = n + 1;
    }
    let finished = resident();
    let mut costs: HashMap<&str, Vec<Duration>> = HashMap::new();
    let first = next;
    let mut memory = Vec::new();
    for live in [1_000, 10_000, 100_000] {
        while next - first < live {
            table.start(&name(next), model(next)).await;
            next += 1;
        }
        memory.push((live, resident()));
        let mut random = fastrand::Rng::with_seed(7);
        let mut batches: [Vec<Duration>; 5] = Default::default();
        for batch in 0..BATCHES {
            let fresh: Vec<String> = (0..BATCH).map(|n| format!("new_{live}_{batch}_{n}")).collect();
            let picked: Vec<String> = (0..BATCH).map(|_| name(random.usize(first..next))).collect();
            let old: Vec<String> = (0..BATCH).map(|_| name(random.usize(FINISHED / 2..FINISHED))).collect();
            let begun = Instant::now();
            for (n, id) in fresh.iter().enumerate() {
                assert!(table.start(id, model(n)).await);
            }
            batches[0].push(per_operation(begun));
            let begun = Instant::now();
            for id in &picked {
                assert!(table.poll(id).await);
            }
            batches[1].push(per_operation(begun));
            let begun = Instant::now();
            for id in &picked {
                table.look(id);
            }
            batches[2].push(per_operation(begun));
            let begun = Instant::now();
            for id in &fresh {
                table.end(id, ANSWER);
            }
            batches[3].push(per_operation(begun));
            let begun = Instant::now();
            for id in &old {
                table.poll(id).await;
            }
            batches[4].push(per_operation(begun));
        }
        for (what, batch) in ROWS.into_iter().zip(batches) {
            costs.entry(what).or_default().push(median(batch));
        }
    }
    let (kept, bytes) = table.remembered();
    println!(
        "memory (resident), MiB: {start:.1} at the start, {finished:.1} with {kept} finished jobs ({bytes} bytes of answers)"
    );
    for (live, resident) in memory {
        println!("    {resident:.1} with {live} live jobs beside them");
    }
    println!(
        "\n{:<44} {:>10} {:>10} {:>10} {:>7}",
        "microseconds, with so many live jobs", "1 k", "10 k", "100 k", "ratio"
    );
    let grow = ROWS.iter().filter(|what| !row(what, &costs[**what])).count();
    grow == 0
}

const ROWS: [&str; 5] = [
    "create: intent, answer, job in the table",
    "poll, answered from the last state",
    "look: it runs, the next one is planned",
    "look: it has ended, others planned anew",
    "poll of a finished job",
];

async fn clients() -> bool {
    let mut costs = Vec::new();
    for clients in [1, 100, 10_000] {
        let desk = Desk::new(Some(1_000_000_000), None, Pacing::Burst, clients);
        let mut random = fastrand::Rng::with_seed(7);
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let callers: Vec<usize> = (0..BATCH).map(|_| random.usize(0..clients)).collect();
            let begun = Instant::now();
            for client in callers {
                assert!(desk.admit_as(client).await);
            }
            batches.push(per_operation(begun));
        }
        costs.push(median(batches));
    }
    println!("\n{:<44} {:>10} {:>10} {:>10} {:>7}", "microseconds, with so many clients", "1", "100", "10 k", "ratio");
    row("admit", &costs)
}

async fn waiters() -> bool {
    println!(
        "\n{:<44} {:>10} {:>10} {:>10} {:>7}",
        "microseconds, with so many waiters", "100", "1 k", "10 k", "ratio"
    );
    let mut flat = true;
    for (name, clients) in
        [("a slot handed over, all of one client", 1), ("a slot handed over, each another client", 10_000)]
    {
        let mut costs = Vec::new();
        for waiters in [100, 1_000, 10_000] {
            let desk = Desk::new(None, Some(1), Pacing::Burst, clients);
            let mut times = Vec::new();
            for _ in 0..BATCHES {
                times.push(desk.hand_over_among(waiters, clients, BATCH).await);
            }
            costs.push(median(times));
        }
        flat &= row(name, &costs);
    }
    flat
}

/// Over real sockets: jobs whose run time is known, watched by few and by many; what the upstream is asked, and when callers hear of ends.
async fn ends() {
    println!(
        "\nfrom a job's end, by the upstream's clock, to the answer at a caller; five jobs of 1.5 s, learned, real sockets"
    );
    println!("{:<44} {:>10} {:>10} {:>14}", "", "median ms", "p99 ms", "upstream polls");
    for (name, callers, habit) in [
        ("1 caller a job, every 100 ms", 1, Habit::Every(Duration::from_millis(100))),
        ("100 callers a job, every 100 ms", 100, Habit::Every(Duration::from_millis(100))),
        ("100 callers a job, Prefer: wait=60", 100, Habit::Waits),
    ] {
        let (mut late, polls) = watch(callers, habit).await;
        late.sort_by(f64::total_cmp);
        let at = |share: usize| late[(late.len() - 1) * share / 100];
        println!("{name:<44} {:>10.1} {:>10.1} {polls:>14}", at(50), at(99));
    }
}

#[derive(Clone, Copy)]
enum Habit {
    Every(Duration),
    Waits,
}

const RUNS: Duration = Duration::from_millis(1_500);

async fn watch(callers: usize, habit: Habit) -> (Vec<f64>, usize) {
    let mock = Options { requests: None, run_time: RunTime::Fixed(RUNS), ..Options::default() };
    let toml = "[models.\"flux-schnell\"]\npoll = \"500ms\"";
    let live = Arc::new(Setup { mock, plan: "concurrent_jobs = 5", toml, ..Setup::default() }.loopback().await);
    // Teaches the run time.
    for _ in 0..3 {
        let id = live.send(create()).await.job_id();
        live.send(poll(&id).with("prefer", "wait=60")).await;
    }
    let before = polls(&live);
    let mut watching = Vec::new();
    for _ in 0..5 {
        let id = live.send(create()).await.job_id();
        for _ in 0..callers {
            watching.push(tokio::spawn(heard(Arc::clone(&live), id.clone(), habit)));
        }
    }
    let mut heard = Vec::new();
    for watching in watching {
        heard.push(watching.await.expect("no panic"));
    }
    let asked = live.mock.requests();
    let created: HashMap<&str, Instant> = asked
        .iter()
        .filter(|seen| seen.method == "POST")
        .filter_map(|seen| Some((seen.job.as_deref()?, seen.at)))
        .collect();
    let late = heard.iter().map(|(id, at)| (*at - (created[id.as_str()] + RUNS)).as_secs_f64() * 1e3).collect();
    (late, polls(&live) - before)
}

fn polls(live: &Live) -> usize {
    live.mock.requests().iter().filter(|seen| seen.method == "GET").count()
}

async fn heard(live: Arc<Live>, id: String, habit: Habit) -> (String, Instant) {
    loop {
        let request = match habit {
            Habit::Every(_) => poll(&id),
            Habit::Waits => poll(&id).with("prefer", "wait=60"),
        };
        if live.send(request).await.json()["status"] == "completed" {
            return (id, Instant::now());
        }
        if let Habit::Every(pause) = habit {
            sleep(pause).await;
        }
    }
}

/// Memory that this process has at the moment, in MiB.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096.0 / f64::from(1 << 20)
}
