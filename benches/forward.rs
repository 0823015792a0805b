//! The whole hop: CPU time per request of the proxy's own process, against a plain TCP relay on the same work in the same run.
//! `cargo bench --bench forward`; nothing but this package is needed.

mod support;

use support::callers::{drive, request};
use support::party::{Party, common_directory, pin_ourselves};
use support::upstream::play;
use support::{ROUNDS, interleaved, wanted};

const CONNECTIONS: usize = 32;
const TIMES: usize = 190;

fn main() {
    play();
    if !wanted() {
        return;
    }
    pin_ourselves("1");
    let upstream = Party::role("upstream", "1", None);
    let url = format!("http://{}", upstream.address);
    let plan = "requests_per_minute = 100000000\nconcurrent_jobs = 1000";
    let quiet = "[state]\nstore = \"memory\"\n[log]\nlevel = \"off\"\n";
    let parties =
        [Party::role("relay", "0", Some(upstream.address)), Party::sluicegate("sluicegate", "0", 1, &url, plan, quiet)];
    println!(
        "CPU of the server's own process per request, in µs: median [least - most] of {ROUNDS} interleaved rounds"
    );
    println!("{:<12} {:>24} {:>24} {:>8}", "", "TCP relay", "sluicegate", "ratio");
    let works =
        [("GET 700 B", request("GET /v1/templates", b"")), ("POST 1 KiB", request("POST /v1/mcp", &[b' '; 1024]))];
    for (name, request) in &works {
        let figures = interleaved(&parties, ROUNDS, |party| {
            party.cost_of(CONNECTIONS * TIMES, || drive(party.address, request, CONNECTIONS, TIMES, 200))
        });
        let ratio = figures[1].median / figures[0].median;
        println!("{name:<12} {:>24} {:>24} {ratio:>8.2}", figures[0].text, figures[1].text);
    }
    let _ = std::fs::remove_dir_all(common_directory());
}
