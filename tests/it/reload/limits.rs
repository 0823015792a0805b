//! Other limits: they hold from the first moment, and count what was sent before.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{BATCH, FREE, Gate, WEB, WINDOW};
use crate::support::client::With;
use crate::support::{create, get, poll};

#[tokio::test(start_paused = true)]
async fn a_raised_limit_lets_those_go_who_wait_and_counts_what_was_sent() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    let begun = Instant::now();
    gate.statuses(2).await;
    let waits = [(); 3].map(|()| tokio::spawn(gate.send(get("/v1/echo"))));
    while gate.waiting() < 3 {
        sleep(Duration::from_millis(1)).await;
    }
    gate.reload("requests_per_minute = 4", "").await.expect("taken");
    while gate.waiting() > 1 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "two of them went at once");
    for answer in waits {
        assert_eq!(answer.await.expect("answered").status, 200);
    }
    assert!(begun.elapsed() >= WINDOW, "the third had to wait for the first's place");
    assert_eq!(gate.vault.seen().most_in_window, 4);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_holds_at_once() {
    let mut gate = Gate::new("requests_per_minute = 10", "");
    let begun = Instant::now();
    gate.statuses(4).await;
    gate.reload("requests_per_minute = 5", "").await.expect("taken");
    gate.statuses(1).await;
    assert!(begun.elapsed() < WINDOW / 2);
    gate.statuses(1).await;
    assert!(begun.elapsed() >= WINDOW);
    gate.statuses(9).await;
    assert_eq!(gate.vault.seen().most_in_window, 5);
}

#[tokio::test(start_paused = true)]
async fn a_longer_window_is_kept_from_the_first_moment() {
    let mut gate = Gate::new("requests = 10\nper = \"10s\"", "");
    gate.statuses(30).await;
    let changed = Instant::now();
    gate.reload("requests = 10\nper = \"1m\"", "").await.expect("taken");
    gate.statuses(1).await;
    assert!(
        changed.elapsed() >= Duration::from_secs(40),
        "30 of the last minute are over the plan: {:?}",
        changed.elapsed()
    );
    let seen = gate.vault.seen().attempts;
    sleep(WINDOW * 2).await;
    gate.statuses(25).await;
    assert_eq!(gate.vault.seen().attempts - seen, 25);
}

#[tokio::test(start_paused = true)]
async fn a_shrunken_job_limit_is_honoured_as_jobs_end() {
    let mut gate = Gate::new(FREE, "");
    for _ in 0..3 {
        assert_eq!(gate.send(create()).await.status, 201);
    }
    gate.reload("requests_per_minute = 60\nconcurrent_jobs = 1", "").await.expect("taken");
    let fourth = tokio::spawn(gate.send(create()));
    for job in ["job-1", "job-2"] {
        gate.vault.finish(job);
        while gate.send(poll(job)).await.json()["status"] != "completed" {
            sleep(Duration::from_secs(1)).await;
        }
        sleep(Duration::from_secs(120)).await;
        assert_eq!(gate.vault.seen().created, 3, "others still live");
    }
    gate.vault.finish("job-3");
    assert_eq!(fourth.await.expect("answered").status, 201);
    assert_eq!((gate.vault.seen().most_jobs, gate.proxy.usage().jobs_live), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_loses_and_gets_back_its_rate_counts_what_it_does_not_know_as_full() {
    let mut gate = Gate::new("requests_per_minute = 5", "");
    gate.statuses(5).await;
    gate.reload("concurrent_jobs = 5", "").await.expect("taken");
    gate.statuses(20).await;
    let begun = Instant::now();
    gate.reload("requests_per_minute = 5", "").await.expect("taken");
    gate.statuses(1).await;
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn credits_that_were_used_stay_used() {
    let prices = "[models.flux-schnell]\ncredits = 1";
    let mut gate = Gate::new("requests_per_minute = 60\ncredits_per_day = 2", prices);
    for _ in 0..2 {
        assert_eq!(gate.send(create()).await.status, 201);
    }
    assert_eq!(gate.send(create()).await.code(), "credits_exhausted");
    gate.reload("requests_per_minute = 60\ncredits_per_day = 3", prices).await.expect("taken");
    assert_eq!(gate.send(create()).await.status, 201);
    assert_eq!(gate.send(create()).await.code(), "credits_exhausted");
}

#[tokio::test(start_paused = true)]
async fn who_has_begun_ends_by_the_terms_of_the_beginning() {
    let plan = "requests_per_minute = 1";
    let mut gate = Gate::new(plan, WEB);
    let as_web = || get("/v1/echo").with("sluicegate-token", "web-token");
    assert_eq!(gate.send(as_web()).await.status, 200);
    let waits = tokio::spawn(gate.send(as_web()));
    while gate.waiting() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    gate.reload(plan, &format!("{BATCH}[queue]\nmax_wait = \"0s\"")).await.expect("taken");
    let at_once = gate.send(get("/v1/echo").with("sluicegate-token", "batch-token")).await;
    assert_eq!(at_once.code(), "rate_limited", "the new terms do not wait");
    assert_eq!(waits.await.expect("answered").status, 200, "who is gone meanwhile is answered all the same");
}

#[tokio::test(start_paused = true)]
async fn a_window_that_was_made_longer_is_kept_across_a_kill() {
    let state = "[state]\npath = \"state\"";
    let mut gate = Gate::new("requests = 10\nper = \"1s\"", state);
    gate.statuses(30).await;
    let begun = Instant::now();
    let longer = "requests = 10\nper = \"1m\"";
    gate.reload(longer, state).await.expect("taken");
    let Gate { proxy, vault, scratch, .. } = gate;
    drop(proxy);
    let gate = Gate::at(longer, state, vault, scratch);
    gate.statuses(1).await;
    assert!(begun.elapsed() >= Duration::from_secs(50), "{:?}", begun.elapsed());
}
