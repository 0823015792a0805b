//! What a decision costs, without sockets: nanoseconds by criterion, instructions by callgrind where valgrind is installed.
//!
//! `cargo bench --bench decide` for both; `cargo bench --bench decide -- admit` for one of them in nanoseconds.

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use criterion::Criterion;
use sluicegate::bench::Desk;
use sluicegate::config::Pacing;
use tokio::runtime::{Builder, Runtime};

/// Set in the process whose instructions are counted: which case, how often.
const COUNT: &str = "SLUICEGATE_BENCH_COUNT";

struct Case {
    name: &'static str,
    desk: Desk,
    step: fn(&Runtime, &Desk) -> bool,
}

fn cases(runtime: &Runtime) -> Vec<Case> {
    let admit: fn(&Runtime, &Desk) -> bool = |runtime, desk| runtime.block_on(desk.admit());
    let full = Desk::new(Some(60), None, Pacing::Burst, 1);
    runtime.block_on(full.exhaust());
    vec![
        Case { name: "admit, no limit", desk: Desk::new(None, None, Pacing::Burst, 1), step: admit },
        Case { name: "admit, window log", desk: Desk::new(Some(1_000_000_000), None, Pacing::Burst, 1), step: admit },
        Case { name: "admit, log and pace", desk: Desk::new(Some(1_000_000_000), None, Pacing::Paced, 1), step: admit },
        Case { name: "refuse, window full", desk: full, step: |runtime, desk| runtime.block_on(desk.refuse()) },
        Case {
            name: "slot, reserved and dropped",
            desk: Desk::new(Some(60), Some(5), Pacing::Burst, 1),
            step: |runtime, desk| runtime.block_on(desk.reserve_and_drop()),
        },
        Case {
            name: "hand-over of a slot to a waiter",
            desk: Desk::new(Some(60), Some(1), Pacing::Burst, 1),
            step: |runtime, desk| runtime.block_on(desk.hand_over()),
        },
    ]
}

fn main() {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let cases = cases(&runtime);
    if let Ok(count) = std::env::var(COUNT) {
        let (index, times) = count.split_once(':').expect("case:times");
        let case = &cases[index.parse::<usize>().expect("a number")];
        for _ in 0..times.parse::<u32>().expect("a number") {
            assert!(black_box((case.step)(&runtime, &case.desk)), "{}", case.name);
        }
        return;
    }
    let (warm_up, measure) = (Duration::from_secs(1), Duration::from_secs(2));
    let mut criterion = Criterion::default().warm_up_time(warm_up).measurement_time(measure).configure_from_args();
    for case in &cases {
        criterion.bench_function(case.name, |bench| bench.iter(|| (case.step)(&runtime, &case.desk)));
    }
    criterion.final_summary();
    // Under `cargo test --benches` nothing is measured.
    if std::env::args().any(|arg| arg == "--bench") {
        instructions(&cases);
    }
}

/// Runs each case twice under callgrind, for N and 3 N steps: the difference is the steps' own.
fn instructions(cases: &[Case]) {
    const N: u64 = 2_000;
    println!("\ninstructions per decision (callgrind, user space):");
    for (index, case) in cases.iter().enumerate() {
        match (count(index, N), count(index, 3 * N)) {
            (Some(once), Some(thrice)) => println!("{:<34} {:>7}", case.name, thrice.saturating_sub(once) / (2 * N)),
            _ => return println!("valgrind is not installed: `apt-get install valgrind`"),
        }
    }
}

fn count(case: usize, times: u64) -> Option<u64> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .env(COUNT, format!("{case}:{times}"))
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let total = report.lines().find_map(|line| line.split_once("Collected :"))?.1;
    total.trim().parse().ok()
}
