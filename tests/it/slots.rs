//! Job slots: held from the create to the job's end, and freed in every way a job can end.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::json;
use sluicegate::mock::{Dialect, Fault, Options, RunTime};
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{self, With, request};
use crate::support::{KEY, NOTHING, Setup, Site, create, create_with, get, poll};

const LONG: RunTime = RunTime::Fixed(Duration::from_secs(3600));

fn long_jobs() -> Setup {
    Setup {
        mock: Options { run_time: LONG, requests: None, ..Options::default() },
        plan: "concurrent_jobs = 5",
        ..Setup::default()
    }
}

async fn five_jobs(site: &Site) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(site.start_job().await);
    }
    ids
}

fn delete(id: &str) -> Request<Full<bytes::Bytes>> {
    request("DELETE", &format!("/v1/predictions/{id}"), "")
}

#[tokio::test(start_paused = true)]
async fn the_sixth_job_waits_until_one_ends() {
    for dialect in [Dialect::A, Dialect::B] {
        let mut setup = long_jobs();
        setup.mock.dialect = dialect;
        let site = setup.memory();
        let jobs = five_jobs(&site).await;
        let mut sixth = site.spawn(create());
        assert!(timeout(Duration::from_secs(5), &mut sixth).await.is_err(), "there is no slot");
        site.mock.finish(&jobs[2]);
        site.send(poll(&jobs[2])).await;
        assert_eq!(sixth.await.expect("answered").status, 201);
        let stats = site.mock.stats();
        assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (5, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_freed_by_end_failure_cancel_and_loss() {
    let site = long_jobs().memory();
    let live = |site: &Site| site.proxy.usage().jobs_live;

    let id = site.start_job().await;
    assert_eq!(live(&site), 1);
    site.send(poll(&id)).await;
    assert_eq!(live(&site), 1, "it runs on");
    assert_eq!(site.send(delete(&id)).await.status, 200);
    assert_eq!(live(&site), 0, "cancelled");
    assert_eq!(site.send(delete(&id)).await.status, 409, "and still the upstream answers");

    let failing = json!({"model": "m", "input": {"fail": true, "run_time_ms": 100}});
    let id = site.send(create_with(&failing)).await.job_id();
    assert_eq!(site.send(poll(&id).with("prefer", "wait=9")).await.json()["status"], "failed");
    assert_eq!(live(&site), 0, "failed");

    site.start_job().await;
    for (code, attempts, freed) in [(500, 4, 1), (401, 1, 1), (410, 1, 0)] {
        let before = site.mock.stats().faults;
        site.mock.script([status(code).on("GET", "/v1/predictions/").times(attempts)]);
        site.mock.wait_until(|stats| stats.faults == before + u64::from(attempts)).await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!(live(&site), freed, "{code}");
    }

    let refused = site.send(create_with(&json!({"input": {}}))).await;
    assert_eq!((refused.status.as_u16(), refused.header("sluicegate-charge")), (422, "refused"));
    assert_eq!(site.proxy.usage(), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn uploads_take_slots_too() {
    let site = long_jobs().memory();
    let form = |filler: usize| {
        let body = format!(
            "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nowner/model\r\n\
             --x\r\nContent-Disposition: form-data; name=\"input\"\r\n\r\n{{}}\r\n\
             --x\r\nContent-Disposition: form-data; name=\"file:image\"; filename=\"a\"\r\n\r\n{}\r\n--x--\r\n",
            "a".repeat(filler)
        );
        request("POST", "/v1/predictions/upload", body).with("content-type", "multipart/form-data; boundary=x")
    };
    for filler in [10, 3 << 20] {
        let answer = site.send(form(filler)).await;
        assert_eq!((answer.status.as_u16(), answer.header("sluicegate-charge")), (201, "accepted"), "{answer:?}");
    }
    assert_eq!(site.proxy.usage().jobs_live, 2);
    for _ in 0..3 {
        site.start_job().await;
    }
    let refused = site.send(form(3 << 20).with("sluicegate-max-wait", "5s")).await;
    assert_eq!(refused.code(), "queue_timeout", "{refused:?}");
    assert_eq!(site.proxy.usage().held_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_polls_is_looked_at_in_growing_intervals() {
    let mut setup = long_jobs();
    setup.mock.run_time = RunTime::Fixed(Duration::from_secs(4));
    let site = setup.memory();
    site.start_job().await;
    // Nothing is known of the model: after a little more than 1 s, 1.5 s and 2.25 s.
    sleep(Duration::from_millis(4_900)).await;
    assert_eq!((site.mock.stats().attempts, site.proxy.usage().jobs_live), (3, 1));
    sleep(Duration::from_millis(100)).await;
    assert_eq!((site.mock.stats().attempts, site.proxy.usage().jobs_live), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_at_its_greatest_age_is_looked_at_once_more_and_then_lets_go() {
    let mut setup = long_jobs();
    setup.toml = "[jobs]\nmax_age = \"1m\"";
    let site = setup.memory();
    site.start_job().await;
    sleep(Duration::from_secs(59)).await;
    let before = site.mock.stats().attempts;
    assert_eq!(site.proxy.usage().jobs_live, 1);
    sleep(Duration::from_millis(1_100)).await;
    assert_eq!(site.proxy.usage().jobs_live, 0);
    assert_eq!(site.mock.stats().attempts, before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_create_of_unknown_outcome_holds_its_slot_for_the_grace_period() {
    for (fault, executed) in [
        (Fault::ResetAfter, 1),
        (Fault::HalfBody, 1),
        (Fault::Hang { execute: true }, 1),
        (Fault::Garbage { execute: true }, 1),
        (Fault::ResetBefore, 0),
    ] {
        let site = long_jobs().memory();
        site.mock.fault_next("POST", "/v1/predictions", fault.clone());
        let answer = site.send(create()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (502, "outcome_unknown".into()), "{fault:?}");
        assert_eq!(answer.header("sluicegate-charge"), "unknown");
        assert_eq!(answer.header("x-should-retry"), "false");
        let (stats, usage) = (site.mock.stats(), site.proxy.usage());
        assert_eq!((stats.attempts, stats.creates_accepted), (1, executed), "{fault:?}: never sent twice");
        assert_eq!((usage.jobs_live, usage.jobs_uncertain), (1, 1), "{fault:?}");
        sleep(Duration::from_secs(119)).await;
        assert_eq!(site.proxy.usage().jobs_live, 1, "{fault:?}");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(site.proxy.usage(), NOTHING, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_jobs_of_others_wait_for_a_job_to_end_and_not_for_the_window() {
    let mut setup = long_jobs();
    setup.mock.requests = Some(1000);
    let site = setup.memory();
    let mut ours = Vec::new();
    for _ in 0..2 {
        ours.push(site.start_job().await);
    }
    for _ in 0..3 {
        let (near, far) = tokio::io::duplex(4096);
        site.mock.serve(far);
        client::exchange(near, create().with("x-api-key", KEY)).await;
    }
    let waiting = site.spawn(create());
    site.mock.wait_until(|stats| stats.refused_job_429 == 1).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(site.send(get("/v1/echo")).await.status, 200, "others are not held up");
    let begun = Instant::now();
    site.mock.finish(&ours[0]);
    let answer = waiting.await.expect("answered");
    assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 2));
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
    assert_eq!(site.proxy.status()["accounts"][0]["paced"], false);
}

#[tokio::test(start_paused = true)]
async fn a_job_started_past_the_proxy_takes_a_slot_once_it_is_seen() {
    let site = long_jobs().memory();
    let (near, far) = tokio::io::duplex(4096);
    site.mock.serve(far);
    let id = client::exchange(near, create().with("x-api-key", KEY)).await.job_id();
    site.send(poll(&id)).await;
    assert_eq!(site.proxy.usage().jobs_live, 1);
    site.send(delete(&id)).await;
    assert_eq!(site.proxy.usage(), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_visible_to_its_client_only() {
    let clients = r#"
        [[clients]]
        name = "web"
        token = { env = "WEB_TOKEN" }
        [[clients]]
        name = "batch"
        token = { env = "BATCH_TOKEN" }
        account = "other"
        [accounts.other]
        plan = "main"
        key = { env = "SECOND_KEY" }
        "#;
    for (shared, status) in [("", 404), ("[jobs]\nshared = true", 200)] {
        let mut setup = long_jobs();
        setup.toml = format!("{clients}\n{shared}").leak();
        setup.mock.keys = vec![KEY.into(), "cdt_second_key".into()];
        let site = setup.memory();
        let id = site.send(create().with("x-api-key", "web-token")).await.job_id();
        let others = site.send(poll(&id).with("x-api-key", "batch-token")).await;
        assert_eq!(others.status.as_u16(), status);
        if status == 404 {
            assert_eq!(others.json(), json!({"error": "prediction not found"}));
            let cancel = site.send(delete(&id).with("x-api-key", "batch-token")).await;
            assert_eq!(cancel.status, 404);
        }
        assert_eq!(site.mock.stats().jobs_live_now, 1);
        assert_eq!(site.send(poll(&id).with("x-api-key", "web-token")).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_loses_no_job() {
    let mut setup = long_jobs();
    setup.mock.answer_delay = Duration::from_secs(5);
    let site = setup.memory();
    let call = site.spawn(create());
    site.mock.wait_until(|stats| stats.creates_accepted == 1).await;
    call.abort();
    sleep(Duration::from_secs(6)).await;
    let usage = site.proxy.usage();
    assert_eq!((usage.in_flight, usage.tasks_running, usage.jobs_live), (0, 0, 1));
    assert_eq!(usage.jobs_uncertain, 0, "the job is known by its id");
}

fn status(code: u16) -> Fault {
    Fault::Status { code, headers: std::collections::BTreeMap::new(), execute: false }
}

/// Callers whose jobs use up the attempts of a window: 12 a minute, jobs of 2 s in 2 slots.
fn scarce(max_wait: &str) -> Site {
    let mock = Options {
        run_time: RunTime::Fixed(Duration::from_secs(2)),
        requests: Some(12),
        concurrent_jobs: Some(2),
        ..Options::default()
    };
    let toml = format!("[queue]\nmax_wait = \"{max_wait}\"");
    Setup { mock, plan: "requests_per_minute = 12\nconcurrent_jobs = 2", toml: toml.leak(), ..Setup::default() }
        .memory()
}

async fn live_jobs_when_attempts_are_used_up(site: &Site) -> u32 {
    let creates: Vec<_> = (0..9).map(|_| site.spawn(create())).collect();
    sleep(Duration::from_secs(40)).await;
    let live = site.proxy.usage().jobs_live;
    creates.iter().for_each(tokio::task::JoinHandle::abort);
    live
}

#[tokio::test(start_paused = true)]
async fn no_job_starts_whose_end_nobody_could_ask_about() {
    assert_eq!(live_jobs_when_attempts_are_used_up(&scarce("10m")).await, 0, "its create waits instead");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_cannot_wait_for_attempts_is_not_held() {
    assert!(live_jobs_when_attempts_are_used_up(&scarce("45s")).await > 0);
}
