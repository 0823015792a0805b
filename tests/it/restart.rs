//! What survives a process that was killed: the window, the live jobs, the creates without an answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluicegate::mock::{Fault, Mock, Options, RunTime};
use tokio::time::{Instant, sleep};

use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::{KEY, NOTHING, Setup, Site, copy_all, create, create_with, get, poll};

/// The state is in the scratch directory: `HOME` of the configuration's environment.
fn setup() -> Setup {
    Setup { toml: "[state]\nstore = \"local\"", ..Setup::default() }
}

fn start(mock: &Arc<Mock>, scratch: Scratch) -> Site {
    setup().proxy_to(Arc::clone(mock), scratch)
}

/// Ends a proxy as `kill -9` does: nothing of it runs on, nothing was told to anybody. The lock is given back by dropping it.
fn kill(site: Site) -> Scratch {
    let Site { proxy, scratch, .. } = site;
    drop(proxy);
    scratch
}

fn mock(options: Options) -> Arc<Mock> {
    Arc::new(Mock::in_memory(Options { keys: vec![KEY.into()], ..options }))
}

#[tokio::test(start_paused = true)]
async fn the_window_holds_across_kills() {
    let mock = mock(Options::default());
    let mut scratch = Scratch::new();
    let begun = Instant::now();
    let mut answered = 0;
    for _ in 0..5 {
        let site = start(&mock, scratch);
        for _ in 0..17 {
            let call = get("/v1/echo").with("sluicegate-max-wait", "1s");
            answered += usize::from(site.send(call).await.status == 200);
        }
        scratch = kill(site);
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(answered, 60, "no more than the plan, and no less");
    let stats = mock.stats();
    assert_eq!((stats.max_in_window, stats.refused_rate_429), (60, 0));
}

#[tokio::test(start_paused = true)]
async fn live_jobs_keep_their_slots_and_their_owner() {
    let mock = mock(Options { run_time: RunTime::Fixed(Duration::from_secs(3600)), ..Options::default() });
    let site = start(&mock, Scratch::new());
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(site.start_job().await);
    }
    mock.fault_next("POST", "/v1/predictions", Fault::ResetAfter);
    assert_eq!(site.send(create()).await.code(), "outcome_unknown");
    let site = start(&mock, kill(site));
    let usage = site.proxy.usage();
    assert_eq!((usage.jobs_live, usage.jobs_uncertain), (5, 1));
    let refused = site.send(create().with("sluicegate-max-wait", "9s")).await;
    assert_eq!(refused.code(), "queue_timeout", "{refused:?}");
    assert_eq!(mock.stats().refused_job_429, 0);

    mock.finish(&ids[0]);
    assert_eq!(site.send(poll(&ids[0]).with("prefer", "wait=60")).await.json()["status"], "completed");
    assert_eq!(site.send(create()).await.status, 201);
    let site = start(&mock, kill(site));
    assert_eq!(site.proxy.usage().jobs_live, 5, "one ended, one came");
    sleep(Duration::from_secs(121)).await;
    let usage = site.proxy.usage();
    assert_eq!((usage.jobs_live, usage.jobs_uncertain), (4, 0), "the grace period is over");
}

#[tokio::test(start_paused = true)]
async fn jobs_that_ended_while_nobody_ran_are_found_out_by_looking() {
    let mock = mock(Options::default());
    let site = start(&mock, Scratch::new());
    for _ in 0..5 {
        site.start_job().await;
    }
    let scratch = kill(site);
    sleep(Duration::from_secs(600)).await;
    // Paused time does not reach the file.
    alter_ledger(&scratch, "UPDATE jobs SET wall_ms = wall_ms - 600000, boot_ms = boot_ms - 600000");
    let site = start(&mock, scratch);
    assert_eq!(site.proxy.usage().jobs_live, 5);
    // The window is on the machine's clock, which paused time does not move: five places are still taken.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(site.proxy.usage(), NOTHING);
    assert_eq!(mock.stats().attempts, 10);
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_gets_the_first_answer_from_the_next_process_too() {
    let mock = mock(Options { run_time: RunTime::Fixed(Duration::from_secs(3600)), ..Options::default() });
    let site = start(&mock, Scratch::new());
    let keyed = |key: &str| create().with("idempotency-key", key);
    let first = site.send(keyed("answered")).await;
    assert_eq!(first.status, 201);
    mock.fault_next("POST", "/v1/predictions", Fault::Status { code: 422, headers: BTreeMap::new(), execute: false });
    assert_eq!(site.send(keyed("refused")).await.status, 422);
    mock.fault_next("POST", "/v1/predictions", Fault::ResetAfter);
    assert_eq!(site.send(keyed("unanswered")).await.code(), "outcome_unknown");
    mock.fault_next("POST", "/v1/predictions", Fault::Hang { execute: true });
    let hanging = site.spawn(keyed("under way"));
    sleep(Duration::from_secs(1)).await;
    hanging.abort();

    let site = start(&mock, kill_in_flight(site).await);
    assert_eq!(mock.stats().creates_accepted, 3);
    for _ in 0..2 {
        let again = site.send(keyed("answered")).await;
        assert_eq!((again.status, &again.body, again.job_id()), (first.status, &first.body, first.job_id()));
        assert_eq!(again.header("sluicegate-charge"), "accepted");
        assert_eq!((again.header("idempotent-replayed"), again.attempts()), ("true", 0));
        for key in ["unanswered", "under way"] {
            let unknown = site.send(keyed(key)).await;
            let told = (unknown.status.as_u16(), unknown.code(), unknown.header("sluicegate-charge").to_owned());
            assert_eq!(told, (502, "outcome_unknown".into(), "unknown".into()), "{key}");
        }
        let other = create_with(&json!({"model": "other", "input": {}}));
        assert_eq!(site.send(other.with("idempotency-key", "answered")).await.code(), "idempotency_mismatch");
    }
    assert_eq!(mock.stats().creates_accepted, 3, "none was sent again");
    assert_eq!(site.send(keyed("refused")).await.status, 201, "it cost nothing, so it may be tried again");

    let scratch = kill(site);
    alter_ledger(&scratch, "UPDATE answers SET wall_ms = wall_ms - 86400001, boot_ms = boot_ms - 86400001");
    let site = start(&mock, scratch);
    assert_ne!(site.send(keyed("answered")).await.job_id(), first.job_id(), "a day is over");
}

#[tokio::test(start_paused = true)]
async fn a_held_create_keeps_what_is_left_of_its_grace() {
    let mock = mock(Options::default());
    let site = start(&mock, Scratch::new());
    mock.fault_next("POST", "/v1/predictions", Fault::ResetAfter);
    assert_eq!(site.send(create()).await.code(), "outcome_unknown");
    let scratch = kill(site);
    alter_ledger(&scratch, "UPDATE jobs SET wall_ms = wall_ms - 90000, boot_ms = boot_ms - 90000");
    let site = start(&mock, scratch);
    sleep(Duration::from_secs(25)).await;
    assert_eq!(site.proxy.usage().jobs_uncertain, 1);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(site.proxy.usage(), NOTHING);
    assert_eq!(start(&mock, kill(site)).proxy.usage(), NOTHING, "given up for good");
}

#[tokio::test(start_paused = true)]
async fn a_day_s_step_of_the_clock_neither_ends_nor_keeps_a_job() {
    let rebooted = ", boot = 'another', boot_ms = 5";
    for (step, reboot) in [(-86_400_000_i64, ""), (86_400_000, ""), (-86_400_000, rebooted), (86_400_000, rebooted)] {
        let mock = mock(Options { run_time: RunTime::Fixed(Duration::from_secs(7200)), ..Options::default() });
        let site = start(&mock, Scratch::new());
        site.start_job().await;
        let scratch = kill(site);
        alter_ledger(&scratch, &format!("UPDATE jobs SET wall_ms = wall_ms + {step}{reboot}"));
        let site = start(&mock, scratch);
        // Across a reboot half of its time is granted at least.
        let lives = if reboot.is_empty() { 1790 } else { 890 };
        sleep(Duration::from_secs(lives)).await;
        assert_eq!(site.proxy.usage().jobs_live, 1, "{step}{reboot}");
        sleep(Duration::from_secs(1830 - lives)).await;
        assert_eq!(site.proxy.usage().jobs_live, 0, "{step}{reboot}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_is_still_its_client_s() {
    let toml = "[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n\
                [[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }\n[state]\nstore = \"local\"";
    let start = |mock: &Arc<Mock>, scratch| Setup { toml, ..Setup::default() }.proxy_to(Arc::clone(mock), scratch);
    let mock = mock(Options::default());
    let site = start(&mock, Scratch::new());
    let id = site.send(create().with("sluicegate-token", "web-token")).await.job_id();
    mock.finish(&id);
    assert_eq!(site.send(poll(&id).with("sluicegate-token", "web-token")).await.status, 200);
    let site = start(&mock, kill(site));
    assert_eq!(site.send(poll(&id).with("sluicegate-token", "batch-token")).await.status, 404);
    assert_eq!(site.send(poll(&id).with("sluicegate-token", "web-token")).await.status, 200);
    assert_eq!(site.proxy.usage(), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn in_memory_everything_works_and_nothing_is_written() {
    let mock = mock(Options::default());
    let site = Setup::default().proxy_to(Arc::clone(&mock), Scratch::new());
    let first = site.send(create().with("idempotency-key", "once")).await;
    let again = site.send(create().with("idempotency-key", "once")).await;
    assert_eq!(first.job_id(), again.job_id());
    assert_eq!(find(&site.scratch.0, "ledger.sqlite"), None);
    let site = Setup::default().proxy_to(Arc::clone(&mock), kill(site));
    assert_eq!(site.proxy.usage(), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn killed_in_the_middle_of_creates_the_bounds_hold() {
    for round in 0..20_u64 {
        let mock = mock(Options { answer_delay: Duration::from_millis(300), ..Options::default() });
        let site = start(&mock, Scratch::new());
        let calls: Vec<_> = (0..30).map(|_| site.spawn(create())).collect();
        sleep(Duration::from_millis(round * 150)).await;
        for call in calls {
            call.abort();
        }
        let site = start(&mock, kill_in_flight(site).await);
        for _ in 0..30 {
            site.spawn(create().with("sluicegate-max-wait", "2m"));
        }
        sleep(Duration::from_secs(100)).await;
        let stats = mock.stats();
        assert!(stats.jobs_live_peak <= 5, "round {round}: {stats:?}");
        assert!(stats.max_in_window <= 60, "round {round}: {stats:?}");
        assert_eq!((stats.refused_job_429, stats.refused_rate_429), (0, 0), "round {round}");
    }
}

/// The first process' tasks run on in this one, unlike after a real kill: its files are copied away as they stand at this moment, when
/// nobody waits for a turn any more.
async fn kill_in_flight(site: Site) -> Scratch {
    sleep(Duration::from_millis(1)).await;
    let copy = Scratch::new();
    copy_all(&site.scratch.0, &copy.0);
    drop(site);
    copy
}

/// Changes what a process that is gone has left, as time or a clock would have.
fn alter_ledger(scratch: &Scratch, sql: &str) {
    let file = find(&scratch.0, "ledger.sqlite").expect("there is a ledger");
    let ledger = rusqlite::Connection::open(file).expect("it is free");
    assert!(ledger.execute(sql, []).expect("a statement") > 0, "it changes something");
}

fn find(folder: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).expect("a directory").find_map(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}
