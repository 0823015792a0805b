//! Deterministic simulation: callers, the whole proxy, its disk and the imitated upstream in one thread, on a simulated network and clock.
//!
//! Everything is drawn from a seed, and a seed always gives the same run. `SIM_SEEDS=10000 cargo test --profile sim --test it sim -- --nocapture`
//! runs many and says how many a second (`SIM_FROM`: the first one); `SIM_SEED=7` runs one and prints what happened.
//! With `RUSTFLAGS="--cfg tokio_unstable"` tokio's own dice are of the seed too; without it, only who of several is woken first is not.

mod answers;
mod callers;
mod net;
mod plan;
mod trace;
mod verdict;
mod world;

use std::env;
use std::time::SystemTime;

use self::world::{Report, run};

/// Run each time the tests are.
const SEEDS: u64 = 60;
/// Run twice and compared; `SIM_TWICE` asks for more.
const TWICE: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

#[test]
fn no_seed_breaks_an_invariant() {
    if let Some(seed) = number("SIM_SEED") {
        let report = run(seed);
        println!("{}", report.trace.text());
        assert!(report.wrongs.is_empty(), "seed {seed}: {:#?}", report.wrongs);
        return;
    }
    let from = number("SIM_FROM").unwrap_or_default();
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let begun = SystemTime::now();
    let (mut attempts, mut jobs, mut broken) = (0, 0, Vec::new());
    for seed in from..from + seeds {
        let report = run(seed);
        (attempts, jobs) = (attempts + report.attempts, jobs + report.jobs);
        if !report.wrongs.is_empty() {
            if broken.is_empty() {
                println!("{}", report.trace.text());
            }
            println!("seed {seed}: {:#?}", report.wrongs);
            broken.push(seed);
        }
    }
    let secs = begun.elapsed().unwrap_or_default().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = seeds as f64 / secs;
    println!(
        "{seeds} seeds from {from} in {secs:.1} s, {rate:.1} a second: {attempts} requests at the upstream, {jobs} jobs"
    );
    assert!(broken.is_empty(), "{} of {seeds} seeds: {broken:?}; SIM_SEED={} shows one", broken.len(), broken[0]);
}

#[test]
fn a_seed_always_gives_the_same_run() {
    for seed in 0..number("SIM_TWICE").unwrap_or(TWICE) {
        let (one, two): (Report, Report) = (run(seed), run(seed));
        let same = one.trace.hash() == two.trace.hash();
        assert!(same, "seed {seed}, the first difference: {:?}", difference(&one, &two));
    }
}

fn difference(one: &Report, two: &Report) -> Option<(String, String)> {
    let (one, two) = (one.trace.text(), two.trace.text());
    let differs = one.lines().zip(two.lines()).find(|(one, two)| one != two);
    differs.map(|(one, two)| (one.to_owned(), two.to_owned()))
}
