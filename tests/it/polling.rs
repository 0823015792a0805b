//! Polls answered by the proxy: from the last state, held until the end, from memory; and how little that costs upstream.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluicegate::mock::{Fault, Options, RunTime};
use tokio::time::{Instant, sleep};

use crate::support::client::{With as _, request, try_exchange_h2};
use crate::support::{Live, Setup, Site, create, poll, post};

fn running(secs: u64) -> Site {
    let mock = Options { run_time: RunTime::Fixed(Duration::from_secs(secs)), ..Options::default() };
    Setup { mock, ..Setup::default() }.memory()
}

fn polls_upstream(site: &Site) -> usize {
    site.mock.requests().iter().filter(|seen| seen.method == "GET").count()
}

/// Five jobs, so many callers for each; returns the polls that reached the upstream.
async fn watched_by(callers: usize) -> usize {
    let site = Arc::new(running(20));
    let mut tasks = Vec::new();
    for _ in 0..5 {
        let id = site.start_job().await;
        for _ in 0..callers {
            let (site, id) = (Arc::clone(&site), id.clone());
            tasks.push(tokio::spawn(async move {
                while site.send(poll(&id)).await.json()["status"] != "completed" {
                    sleep(Duration::from_millis(100)).await;
                }
            }));
        }
    }
    for task in tasks {
        task.await.expect("saw the end");
    }
    polls_upstream(&site)
}

#[tokio::test(start_paused = true)]
async fn any_number_of_callers_costs_as_much_as_one() {
    let (one, many) = (watched_by(1).await, watched_by(20).await);
    assert_eq!(one, many);
    assert!(many <= 30, "{many} polls for five jobs of 20 s");
}

#[tokio::test(start_paused = true)]
async fn a_poll_tells_how_old_its_state_is_and_when_there_may_be_news() {
    let site = running(30);
    let id = site.start_job().await;
    sleep(Duration::from_secs(5)).await;
    // Looks came at 1.04, 2.6 and 4.94 s; the next comes at 8.45 s, too late to be waited for.
    let answer = site.send(poll(&id)).await;
    assert_eq!((answer.status.as_u16(), answer.header("age"), answer.header("retry-after")), (200, "0", "4"));
    assert_eq!(answer.json()["status"], "processing");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(site.send(poll(&id)).await.header("age"), "1");
    assert_eq!(polls_upstream(&site), 3);
}

#[tokio::test(start_paused = true)]
async fn head_is_answered_as_get_is_and_costs_as_little() {
    let site = running(2);
    let id = site.start_job().await;
    let told = site.send(poll(&id).with("prefer", "wait=60")).await;
    let attempts = site.mock.stats().attempts;
    let head = site.send(request("HEAD", &format!("/v1/predictions/{id}"), "")).await;
    assert_eq!((head.status.as_u16(), head.attempts(), head.body.len()), (200, 0, 0), "{head:?}");
    assert_eq!(head.number("content-length"), told.body.len() as u64);
    // Where nobody else leaves the body out. And a refusal's.
    for (path, host, status) in
        [(format!("/v1/predictions/{id}"), "localhost:8787", 200), ("/v1/echo".into(), "evil.test", 421)]
    {
        let mut asked = request("HEAD", &path, "");
        asked.headers_mut().insert("host", host.parse().expect("a host"));
        let head = try_exchange_h2(site.connect(), asked).await.expect("an answer");
        assert_eq!((head.status.as_u16(), head.body.len(), head.whole), (status, 0, true), "{head:?}");
        assert!(head.number("content-length") > 0, "{head:?}");
    }
    assert_eq!(site.mock.stats().attempts, attempts);
    // Of a job that nobody knows the upstream is asked.
    let unknown = site.send(request("HEAD", "/v1/predictions/nosuch", "")).await;
    assert_eq!(unknown.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_poll_near_the_end_is_held_until_it() {
    let site = running(3);
    // Teaches the run time.
    let first = site.start_job().await;
    site.send(poll(&first).with("prefer", "wait=60")).await;
    let id = site.start_job().await;
    let begun = Instant::now();
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(site.send(poll(&id)).await.json()["status"], "completed");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_ended_job_is_told_from_memory_for_a_while() {
    let site = running(2);
    let id = site.start_job().await;
    site.send(poll(&id).with("prefer", "wait=60")).await;
    let spent = site.mock.stats().attempts;
    for _ in 0..100 {
        let answer = site.send(poll(&id)).await;
        assert_eq!((answer.json()["status"].as_str(), answer.header("retry-after")), (Some("completed"), ""));
    }
    assert_eq!(site.mock.stats().attempts, spent);
    sleep(Duration::from_secs(601)).await;
    assert_eq!(site.send(poll(&id)).await.json()["status"], "completed");
    assert_eq!(site.mock.stats().attempts, spent + 1, "forgotten, so asked for again");
}

#[tokio::test(start_paused = true)]
async fn prefer_wait_holds_create_and_status_and_is_not_sent_upstream() {
    let site = running(7);
    let body = json!({"model": "m", "input": {"prompt": "x"}}).to_string();
    let begun = Instant::now();
    let created = site.send(post("/v1/predictions", body.clone()).with("prefer", "wait=60")).await;
    assert_eq!((created.status.as_u16(), created.header("preference-applied")), (201, "wait"));
    assert_eq!(created.json()["status"], "completed");
    assert!(begun.elapsed() >= Duration::from_secs(7));
    assert!(site.mock.requests().iter().all(|seen| !seen.headers.contains_key("prefer")));

    let created = site.send(post("/v1/predictions", body).with("prefer", "wait=2")).await;
    assert_eq!(created.json()["status"], "pending", "the create's own answer");
    let waited = site.send(poll(&created.job_id()).with("prefer", "wait=1")).await;
    assert_eq!((waited.header("preference-applied"), waited.status.as_u16()), ("wait", 200));
    assert_ne!(waited.json()["status"], "completed");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_a_held_answer_stops_nothing() {
    let site = running(5);
    let body = json!({"model": "m", "input": {"prompt": "x"}}).to_string();
    let held = site.spawn(post("/v1/predictions", body).with("prefer", "wait=60"));
    site.mock.wait_until(|stats| stats.creates_accepted == 1).await;
    sleep(Duration::from_secs(1)).await;
    held.abort();
    site.mock.wait_until(|stats| stats.jobs_live_now == 0).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(site.proxy.usage().jobs_live, 0, "its end was seen");
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_says_instead_of_a_state_is_passed_on_and_the_job_kept() {
    let mock = Options { run_time: RunTime::Fixed(Duration::from_secs(60)), ..Options::default() };
    let site = Setup { mock, toml: "[jobs]\nhold = \"0s\"", ..Setup::default() }.memory();
    let id = site.start_job().await;
    let odd = Fault::Status { code: 401, headers: std::collections::BTreeMap::new(), execute: false };
    site.mock.script([odd.on("GET", "/v1/predictions/").times(1)]);
    site.mock.wait_until(|stats| stats.faults == 1).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(site.send(poll(&id)).await.status, 401);
    assert_eq!(site.proxy.usage().jobs_live, 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(site.send(poll(&id)).await.json()["status"], "processing", "and after the next look");
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_state_is_never_told_is_asked_for_ever_more_rarely() {
    for code in [401, 500] {
        let site = running(3600);
        site.start_job().await;
        let odd = Fault::Status { code, headers: std::collections::BTreeMap::new(), execute: false };
        site.mock.script([odd.on("GET", "/v1/predictions/").times(10_000)]);
        sleep(Duration::from_secs(60)).await;
        let looks = polls_upstream(&site);
        // A look that is answered 500 is tried four times.
        assert!((5..=if code == 500 { 40 } else { 12 }).contains(&looks), "{looks} after {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_of_a_job_that_nothing_is_known_of_does_not_wait_for_ever() {
    let mock = Arc::new(sluicegate::mock::Mock::in_memory(Options {
        run_time: RunTime::Fixed(Duration::from_secs(3600)),
        keys: vec![crate::support::KEY.to_owned()],
        ..Options::default()
    }));
    let state = Setup { toml: "[state]\npath = \"state\"", ..Setup::default() };
    let site = state.proxy_to(Arc::clone(&mock), crate::support::config::Scratch::new());
    let id = site.start_job().await;
    let Site { proxy, scratch, .. } = site;
    drop(proxy);
    let down = Fault::Status { code: 401, headers: std::collections::BTreeMap::new(), execute: false };
    mock.script([down.on("GET", "/v1/predictions/").times(10_000)]);
    let site = Setup { toml: "[state]\npath = \"state\"", ..Setup::default() }.proxy_to(mock, scratch);
    let begun = Instant::now();
    assert_eq!(site.send(poll(&id)).await.status, 401);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

const RUNS: Duration = Duration::from_millis(1_500);

/// Five jobs of known run time over real sockets, so many callers for each, every 100 ms. What the upstream was asked, and how long after
/// the end, by its clock, each caller heard of it.
async fn watched_for_real(callers: usize) -> (usize, Vec<Duration>) {
    let mock = Options { requests: None, run_time: RunTime::Fixed(RUNS), ..Options::default() };
    let toml = "[models.\"flux-schnell\"]\npoll = \"500ms\"";
    let live = Arc::new(Setup { mock, plan: "concurrent_jobs = 5", toml, ..Setup::default() }.loopback().await);
    for _ in 0..2 {
        let id = live.send(create()).await.job_id();
        live.send(poll(&id).with("prefer", "wait=60")).await;
    }
    let polls = |live: &Live| live.mock.requests().iter().filter(|seen| seen.method == "GET").count();
    let (before, mut tasks) = (polls(&live), Vec::new());
    for _ in 0..5 {
        let id = live.send(create()).await.job_id();
        let created =
            live.mock.requests().iter().rev().find(|seen| seen.job.as_ref() == Some(&id)).expect("a create").at;
        for _ in 0..callers {
            let (live, id) = (Arc::clone(&live), id.clone());
            tasks.push(tokio::spawn(async move {
                while live.send(poll(&id)).await.json()["status"] != "completed" {
                    sleep(Duration::from_millis(100)).await;
                }
                (created + RUNS).elapsed()
            }));
        }
    }
    let mut late = Vec::new();
    for task in tasks {
        late.push(task.await.expect("saw the end"));
    }
    late.sort_unstable();
    (polls(&live) - before, late)
}

#[tokio::test]
async fn a_hundred_callers_over_sockets_cost_as_much_as_one_a_job_and_hear_of_the_end_soon() {
    let ((one, _), (many, late)) = (watched_for_real(1).await, watched_for_real(20).await);
    // Looks go by the clock, so that one more or less is no news.
    assert!(many <= one + 5, "{many} polls upstream, and {one} where one asks");
    assert!(late[late.len() / 2] < Duration::from_secs(2), "{late:?}");
}
