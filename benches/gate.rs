//! The check on cost: user instructions of one request, counted by callgrind in the shipped program, against limits.
//! `cargo bench --profile dev --bench gate`; it builds the program as it is shipped by itself, and needs valgrind.
//!
//! Instructions hardly depend on the machine or on what else it does, so that a limit can be narrow. What the kernel does is not in
//! them. The profiles stay in `target/gate`, for `callgrind_annotate`.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use support::callers::{Caller, block_on, request};
use support::party::{Party, common_directory, installed};
use support::upstream::play;
use support::wanted;

/// What a request may cost, in user instructions. Lower them with each gain; a rise needs its reason in the commit.
const GET: u64 = 45_600;
/// By up to 4 % more where the body comes in a piece of its own.
const POST: u64 = 52_300;
/// Of a job that has ended with the answer: entered in the ledger before and after, and learned from.
const CREATE: u64 = 304_000;
const REFUSED: u64 = 24_300;
/// By how many percent a figure may be over its limit: compilers and C libraries differ a little.
const SLACK_PERCENT: u64 = 3;

/// Requests before the count begins to matter, and the fewer of the two counts whose difference is taken.
const WARM_UP: u64 = 300;
const FEW: u64 = 500;

const OPEN: &str = "requests_per_minute = 100000000\nconcurrent_jobs = 100000";
const SHUT: &str = "requests_per_minute = 1";
const QUIET: &str = "[queue]\nmax_wait = \"0s\"\n[state]\nstore = \"memory\"\n[log]\nlevel = \"off\"\n";

struct Case {
    name: &'static str,
    request: Vec<u8>,
    plan: &'static str,
    status: u16,
    limit: u64,
}

fn main() -> ExitCode {
    play();
    if !wanted() {
        return ExitCode::SUCCESS;
    }
    if !installed("valgrind") {
        eprintln!("valgrind is not installed: `apt-get install valgrind`");
        return ExitCode::FAILURE;
    }
    let create = br#"{"model":"flux-schnell","input":{"prompt":"a paper boat"}}"#;
    let (get, post) = (request("GET /v1/templates", b""), request("POST /v1/mcp", &[b' '; 1024]));
    let create = request("POST /v1/predictions", create);
    let cases = [
        Case { name: "GET 700 B", request: get.clone(), plan: OPEN, status: 200, limit: GET },
        Case { name: "POST 1 KiB", request: post, plan: OPEN, status: 200, limit: POST },
        Case { name: "create", request: create, plan: OPEN, status: 200, limit: CREATE },
        Case { name: "refused GET", request: get, plan: SHUT, status: 429, limit: REFUSED },
    ];
    let program = shipped();
    let upstream = Party::role("upstream", "", None);
    let url = format!("http://{}", upstream.address);
    println!("user instructions per request (callgrind)\n{:<12} {:>9} {:>9}", "", "measured", "limit");
    let over = cases.iter().filter(|case| !holds(case, &program, &url)).count();
    let _ = std::fs::remove_dir_all(common_directory());
    if over > 0 {
        eprintln!("over the limit by more than {SLACK_PERCENT} %: {over} of {}; see benches/README.md", cases.len());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The program as it is shipped, without the features that only tests need.
fn shipped() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--release", "--locked", "--bin", "sluicegate"]).status();
    assert!(built.expect("cargo runs").success(), "the program does not build");
    target().join("release/sluicegate")
}

/// Where cargo builds.
fn target() -> PathBuf {
    let ours = std::env::current_exe().expect("our own path");
    // <target>/<profile>/deps/gate-…
    ours.ancestors().nth(3).expect("a target directory").to_owned()
}

/// Measures one case and prints its line.
fn holds(case: &Case, program: &Path, url: &str) -> bool {
    // The two counts do not disturb each other.
    let (few, many) = std::thread::scope(|scope| {
        let few = scope.spawn(|| count(case, program, url, FEW));
        let many = count(case, program, url, 3 * FEW);
        (few.join().expect("counted"), many)
    });
    let each = many.saturating_sub(few) / (2 * FEW);
    let holds = each <= case.limit + case.limit * SLACK_PERCENT / 100;
    let note = match () {
        () if !holds => "  OVER THE LIMIT",
        () if each < case.limit - case.limit * SLACK_PERCENT / 100 => "  the limit can be lowered",
        () => "",
    };
    println!("{:<12} {each:>9} {:>9}{note}", case.name, case.limit);
    holds
}

/// All instructions of one life of the program, with `times` requests on one connection after the first ones.
fn count(case: &Case, program: &Path, url: &str, times: u64) -> u64 {
    let profiles = target().join("gate");
    std::fs::create_dir_all(&profiles).expect("a directory");
    let result = profiles.join(format!("{}.{times}", case.name.replace(' ', "-")));
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", result.display())).arg(program);
    let party = Party::program("sluicegate", command, 1, url, case.plan, QUIET);
    block_on(async {
        let mut caller = Caller::connect(party.address).await;
        for _ in 0..WARM_UP {
            caller.ask(&case.request).await;
        }
        for _ in 0..times {
            assert_eq!(caller.ask(&case.request).await, case.status, "{}", case.name);
        }
    });
    party.end();
    let profile = std::fs::read_to_string(result).expect("valgrind leaves a profile");
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals:")).expect("with totals");
    totals.trim().parse().expect("a number")
}
