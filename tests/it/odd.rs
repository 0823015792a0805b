//! Answers that nobody expects: the same id twice, numbers without end, states that are too long; and polls that only the upstream can
//! answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::client::With as _;
use crate::support::config::Scratch;
use crate::support::upstream::{Odd, Scripted};
use crate::support::{create, get, poll, post};

const PLAN: &str = "requests_per_minute = 1000\nconcurrent_jobs = 10\ncredits_per_day = 100";
const PRICED: &str = "[models.\"flux-schnell\"]\ncredits = 1\n[jobs]\nhold = \"0s\"\nuncertain = \"2m\"\n";
const KEPT: &str = "[state]\nstore = \"local\"\n";

fn text(body: &str) -> Bytes {
    Bytes::copy_from_slice(body.as_bytes())
}

fn today(site: &Odd, what: &str) -> Value {
    site.proxy.credits()["today"][0][what].clone()
}

#[tokio::test(start_paused = true)]
async fn two_creates_with_one_id_are_one_job_and_both_are_paid() {
    let ended = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&ended);
    let upstream = Scripted::new(move |line| match line {
        "POST /v1/predictions" => (201, text(r#"{"job_id":"same","status":"pending"}"#)),
        _ if seen.load(Ordering::SeqCst) > 0 => (200, text(r#"{"job_id":"same","status":"failed"}"#)),
        _ => (200, text(r#"{"job_id":"same","status":"processing"}"#)),
    });
    let toml = format!("{PRICED}{KEPT}");
    let site = Odd::new(PLAN, &toml, Arc::clone(&upstream), Scratch::new());
    for _ in 0..3 {
        assert_eq!(site.send(create()).await.header("sluicegate-charge"), "accepted");
    }
    assert_eq!(site.proxy.usage().jobs_live, 1);
    assert_eq!((today(&site, "charged"), today(&site, "reserved")), (json!(3), json!(0)));
    let Odd { proxy, scratch, .. } = site;
    drop(proxy);
    let site = Odd::new(PLAN, &toml, upstream, scratch);
    assert_eq!(site.proxy.usage().jobs_live, 1, "a restart knows one");
    ended.store(1, Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(site.proxy.usage().jobs_live, 0);
    let told = ["charged", "refunded", "reserved", "unknown"].map(|what| today(&site, what));
    assert_eq!(told, [2, 1, 0, 0].map(|amount| json!(amount)), "the job failed once, and was paid three times");
}

#[tokio::test(start_paused = true)]
async fn numbers_that_no_float_holds_pass_and_the_job_is_kept() {
    let upstream = Scripted::new(|line| match line {
        "POST /v1/predictions" => (201, text(r#"{"job_id":"j","status":"pending","seed":1e400}"#)),
        _ => (200, text(r#"{"job_id":"j","status":"processing","n":-1e99999,"big":123456789012345678901234567890}"#)),
    });
    let site = Odd::new(PLAN, PRICED, upstream, Scratch::new());
    let body = r#"{"model":"flux-schnell","input":{"guidance":1e400}}"#;
    let created = site.send(post("/v1/predictions", body)).await;
    assert_eq!((created.status.as_u16(), created.header("sluicegate-charge")), (201, "accepted"));
    assert_eq!(created.body, r#"{"job_id":"j","status":"pending","seed":1e400}"#);
    sleep(Duration::from_secs(5)).await;
    let polled = site.send(poll("j")).await;
    assert_eq!(
        polled.body,
        r#"{"job_id":"j","status":"processing","n":-1e99999,"big":123456789012345678901234567890}"#
    );
    assert_eq!(site.proxy.usage().jobs_live, 1);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_too_long_is_passed_on_and_the_job_kept() {
    let long = format!(r#"{{"job_id":"j","status":"processing","output":"{}"}}"#, "x".repeat(17 << 20));
    let (long, short) = (Bytes::from(long), text(r#"{"job_id":"j","status":"completed"}"#));
    let (expected, looks) = (long.clone(), Arc::new(AtomicUsize::new(0)));
    let upstream = Scripted::new(move |line| match line {
        "POST /v1/predictions" => (201, text(r#"{"job_id":"j","status":"pending"}"#)),
        _ if looks.fetch_add(1, Ordering::SeqCst) < 4 => (200, long.clone()),
        _ => (200, short.clone()),
    });
    let site = Odd::new(PLAN, PRICED, upstream, Scratch::new());
    site.send(create()).await;
    sleep(Duration::from_secs(3)).await;
    let looked = site.upstream.count("GET");
    assert!((1..4).contains(&looked), "{looked}");
    let polled = site.send(poll("j")).await;
    assert!(polled.whole && polled.body == expected, "{} bytes", polled.body.len());
    assert_eq!(site.proxy.usage().jobs_live, 1);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(site.proxy.usage().jobs_live, 0, "and it goes on once its answers can be read");
    assert_eq!(site.send(poll("j")).await.json()["status"], "completed");
}

const TWO: &str = "[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"main\"\n\
    [[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }\naccount = \"main\"\n";

fn by(token: &str, request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    request.with("sluicegate-token", token)
}

#[tokio::test(start_paused = true)]
async fn polls_of_an_unknown_id_join_the_one_under_way_and_nothing_is_remembered_of_a_404() {
    let there = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&there);
    let upstream = Scripted::new(move |_| match now.load(Ordering::SeqCst) {
        0 => (404, text(r#"{"error":"prediction not found"}"#)),
        _ => (200, text(r#"{"job_id":"u","status":"completed","result":"x"}"#)),
    });
    upstream.takes(Duration::from_millis(500));
    let site = Odd::new(PLAN, TWO, upstream, Scratch::new());
    let begun = Instant::now();
    let many: Vec<_> = (0..50).map(|_| tokio::spawn(site.send(by("web-token", poll("u"))))).collect();
    let other = tokio::spawn(site.send(by("batch-token", poll("u"))));
    for answer in many {
        let answer = answer.await.expect("answered");
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]), (404, &json!("prediction not found")));
    }
    assert_eq!(other.await.expect("answered").status, 404);
    assert_eq!(site.upstream.count("GET"), 2, "one for each client");
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody waited for a second one: {:?}", begun.elapsed());
    there.store(1, Ordering::SeqCst);
    assert_eq!(site.send(by("web-token", poll("u"))).await.json()["result"], "x", "true at once");
    for _ in 0..20 {
        assert_eq!(site.send(by("web-token", poll("u"))).await.status, 200);
    }
    assert_eq!(site.upstream.count("GET"), 3, "its end is remembered");
    assert_eq!(site.send(by("batch-token", poll("u"))).await.status, 404, "for its client only");
    assert_eq!(site.upstream.count("GET"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_takes_its_poll_with_it_and_another_goes() {
    let upstream = Scripted::new(|_| (404, text("{}")));
    upstream.takes(Duration::from_secs(2));
    let site = Odd::new(PLAN, "", upstream, Scratch::new());
    let first = tokio::spawn(site.send(poll("u")));
    sleep(Duration::from_millis(500)).await;
    let second = tokio::spawn(site.send(poll("u")));
    sleep(Duration::from_millis(500)).await;
    first.abort();
    assert_eq!(second.await.expect("answered").status, 404);
    assert_eq!(site.upstream.count("GET"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_remembered_job_without_a_last_state_is_asked_for_once() {
    let upstream = Scripted::new(|line| match line {
        "POST /v1/predictions" => (201, text(r#"{"job_id":"j","status":"pending"}"#)),
        "DELETE /v1/predictions/j" => (204, Bytes::new()),
        _ => (200, text(r#"{"job_id":"j","status":"cancelled"}"#)),
    });
    let toml = format!("{PRICED}{KEPT}");
    let site = Odd::new(PLAN, &toml, Arc::clone(&upstream), Scratch::new());
    site.send(create()).await;
    let cancelled = crate::support::client::request("DELETE", "/v1/predictions/j", "");
    assert_eq!(site.send(cancelled).await.status, 204);
    upstream.takes(Duration::from_millis(300));
    for restarted in [false, true] {
        let before = upstream.count("GET");
        let toml = &toml;
        let site = if restarted {
            let Odd { proxy, scratch, .. } = site_of(&upstream, toml).await;
            drop(proxy);
            &Odd::new(PLAN, toml, Arc::clone(&upstream), scratch)
        } else {
            &site
        };
        let many: Vec<_> = (0..20).map(|_| tokio::spawn(site.send(poll("j")))).collect();
        for answer in many {
            assert_eq!(answer.await.expect("answered").json()["status"], "cancelled");
        }
        assert_eq!(site.send(poll("j")).await.status, 200);
        assert_eq!(upstream.count("GET"), before + 1, "after a restart: {restarted}");
    }
}

/// A proxy that has just seen its job cancelled.
async fn site_of(upstream: &Arc<Scripted>, toml: &str) -> Odd {
    let site = Odd::new(PLAN, toml, Arc::clone(upstream), Scratch::new());
    site.send(create()).await;
    site.send(crate::support::client::request("DELETE", "/v1/predictions/j", "")).await;
    site
}

const FAL: &str = r#"
[upstream]
protocol = "fal"
[protocols.fal]
create = ["POST /{owner}/{app}", "POST /{owner}/{app}/{sub*}"]
status = "GET /{owner}/{app}/requests/{id}/status"
cancel = "PUT /{owner}/{app}/requests/{id}/cancel"
about = "GET /{owner}/{app}/requests/{id}"
id = "/request_id"
model = ["{owner}/{app}/{sub}", "{owner}/{app}"]
succeeded = "COMPLETED"
failed = "FAILED"
auth = "Authorization: Key {key}"
[state]
store = "local"
"#;

#[tokio::test(start_paused = true)]
async fn a_job_whose_status_path_names_its_model_is_looked_at_after_a_restart_however_it_was_found() {
    let done = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&done);
    let upstream = Scripted::new(move |line| {
        let status = if now.load(Ordering::SeqCst) > 0 { "COMPLETED" } else { "IN_PROGRESS" };
        let id = if line.contains("strange") { "strange" } else { "ours" };
        (
            200,
            text(
                &json!({"request_id": id, "status": if line.starts_with("POST") { "IN_QUEUE" } else { status }})
                    .to_string(),
            ),
        )
    });
    let site = Odd::new("concurrent_jobs = 5", FAL, Arc::clone(&upstream), Scratch::new());
    assert_eq!(site.send(post("/fal-ai/flux/dev", "{}")).await.header("sluicegate-charge"), "accepted");
    assert_eq!(site.send(get("/fal-ai/veo/requests/strange/status")).await.status, 200);
    assert_eq!(site.proxy.usage().jobs_live, 2, "one of them was adopted");
    let Odd { proxy, scratch, .. } = site;
    drop(proxy);
    done.store(1, Ordering::SeqCst);
    let site = Odd::new("concurrent_jobs = 5", FAL, upstream, scratch);
    assert_eq!(site.proxy.usage().jobs_live, 2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(site.proxy.usage().jobs_live, 0, "both ends were seen");
    assert_eq!(site.upstream.count("GET /fal-ai/flux/requests/ours/status"), 1);
}
