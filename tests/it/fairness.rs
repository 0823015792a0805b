//! Whose turn it is: nobody waits more than eight turns of others.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::mock::Options;
use tokio::time::sleep;

use crate::support::client::With;
use crate::support::{Setup, create, get, poll};

const TWO_CLIENTS: &str = "[queue]\nmax_waiting = 2000\nmax_wait = \"6h\"\n\
    [[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n\
    [[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }";

/// Beside a thousand creates of one client, single calls of every class by another.
#[tokio::test(start_paused = true)]
async fn a_thousand_creates_of_one_client_cost_another_at_most_eight_turns() {
    let setup = Setup { toml: TWO_CLIENTS, ..Setup::default() };
    let site = Arc::new(setup.memory());
    let batch: Vec<_> = (0..1000).map(|_| site.spawn(create().with("x-api-key", "batch-token"))).collect();
    for n in 0..30 {
        sleep(Duration::from_secs(17)).await;
        let call = [get("/v1/echo"), create(), poll("nothing")][n % 3].clone();
        let before = site.mock.stats();
        let answer = site.send(call.with("x-api-key", "web-token")).await;
        assert!([200, 201, 404].contains(&answer.status.as_u16()), "{answer:?}");
        let after = site.mock.stats();
        let turns = if answer.status == 201 {
            after.creates_accepted - before.creates_accepted
        } else {
            after.attempts - before.attempts
        };
        assert!(turns <= 9, "call {n}: {turns} turns with its own");
    }
    for call in &batch {
        call.abort();
    }
    let stats = site.mock.stats();
    assert!(stats.max_in_window <= 60 && stats.jobs_live_peak <= 5 && stats.refused_rate_429 == 0, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn polling_while_waiting_for_a_slot_gives_no_advantage() {
    let setup = Setup {
        mock: Options { requests: None, ..Options::default() },
        plan: "concurrent_jobs = 5",
        toml: TWO_CLIENTS,
        ..Setup::default()
    };
    let site = Arc::new(setup.memory());
    for _ in 0..300 {
        site.spawn(create().with("x-api-key", "batch-token"));
    }
    site.mock.wait_until(|stats| stats.jobs_live_now == 5).await;
    for _ in 0..100 {
        site.send(poll("nothing").with("x-api-key", "batch-token")).await;
    }
    let before = site.mock.stats().creates_accepted;
    assert_eq!(site.send(create().with("x-api-key", "web-token")).await.status, 201);
    let turns = site.mock.stats().creates_accepted - before;
    assert!(turns <= 9, "{turns} turns");
}
