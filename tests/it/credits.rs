//! Credits: prices, budgets of a day, refunds, tokens, restarts and steps of the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sluicegate::clock::Clock;
use sluicegate::mock::{Fault, Mock, Options, RunTime};
use tokio::time::sleep;

use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::{Answer, KEY, Setup, Site, create, create_with, poll, post};

const DAY: i64 = 86_400;
const HOUR: Duration = Duration::from_secs(3_600);
/// Ten credits a day; one a create, two for a thousand tokens.
const PLAN: &str = "requests_per_minute = 1000\nconcurrent_jobs = 100\ncredits_per_day = 10";
const PRICES: &str = r#"
[models."flux-schnell"]
credits = 1
[models."fine"]
credits = 0.5
[models."gpt-5.1"]
credits_per_1k_tokens = 2
[models."claude"]
credits_per_1k_tokens = 2
[models."gemini-2.5-flash"]
credits_per_1k_tokens = 2
"#;

fn joined(parts: &[&str]) -> &'static str {
    Box::leak(parts.concat().into_boxed_str())
}

/// Noon of a day, and how far the wall clock is off it.
fn clock() -> (Clock, &'static AtomicI64) {
    let step: &'static AtomicI64 = Box::leak(Box::new(AtomicI64::new(0)));
    (Clock::stepped(noon(), step), step)
}

fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + 43_200)
}

fn setup(toml: &'static str) -> Setup {
    let mock = Options { requests: None, concurrent_jobs: None, ..Options::default() };
    Setup { mock, plan: PLAN, toml, clock: Some(clock().0), ..Setup::default() }
}

fn site() -> Site {
    setup(PRICES).memory()
}

/// Creates until the budget is gone; returns how many were accepted, and the refusal.
async fn spend(site: &Site) -> (usize, Answer) {
    for accepted in 0.. {
        let answer = site.send(create()).await;
        if answer.status != 201 {
            return (accepted, answer);
        }
    }
    unreachable!()
}

fn used(site: &Site) -> f64 {
    site.proxy.credits()["accounts"][0]["used"].as_f64().expect("a number")
}

/// Who adds up what the answers say comes to what was charged.
#[tokio::test(start_paused = true)]
async fn an_answer_given_again_charges_nothing_a_second_time() {
    let site = site();
    let keyed = || create_with(&json!({"model": "bfl/fine", "input": {}})).with("idempotency-key", "order-1");
    let charged = async || site.send(keyed()).await.header("sluicegate-credits-charged").to_owned();
    assert_eq!([charged().await, charged().await], ["0.5", ""]);
    assert!((used(&site) - 0.5).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_is_402_until_midnight_and_costs_nothing() {
    let site = site();
    let answer = site.send(create_with(&json!({"model": "bfl/fine", "input": {}}))).await;
    assert_eq!(
        (answer.header("sluicegate-credits-charged"), answer.header("sluicegate-credits-remaining")),
        ("0.5", "9.5")
    );
    let (accepted, refused) = spend(&site).await;
    assert_eq!(accepted, 9);
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (402, "credits_exhausted"));
    let body = refused.json();
    assert_eq!((&body["needed"], &body["left"], &body["limit"]), (&json!(1), &json!(0.5), &json!(10)));
    assert_eq!(refused.attempts(), 0);
    assert_eq!((refused.header("sluicegate-charge"), refused.header("sluicegate-credits-charged")), ("not-sent", ""));
    let wait = refused.number("retry-after");
    assert!((43_000..=43_200).contains(&wait), "twelve hours: {wait}");
    assert_eq!(body["resets_at"], (20_001 * DAY));
    assert_eq!(site.mock.stats().creates_accepted, 10);
    let other = site.send(create_with(&json!({"model": "free-of-charge", "input": {}}))).await;
    assert_eq!((other.status.as_u16(), other.header("sluicegate-credits-charged")), (201, ""));

    sleep(Duration::from_secs(wait)).await;
    assert_eq!(spend(&site).await.0, 10, "a new day");
}

#[tokio::test(start_paused = true)]
async fn many_at_once_never_spend_more_than_the_budget() {
    let site = site();
    let calls: Vec<_> = (0..60).map(|_| site.spawn(create())).collect();
    let mut accepted = 0;
    for call in calls {
        let answer = call.await.expect("no panic");
        assert!([201, 402].contains(&answer.status.as_u16()), "{answer:?}");
        accepted += u64::from(answer.status == 201);
    }
    assert_eq!((accepted, site.mock.stats().creates_accepted), (10, 10));
}

#[tokio::test(start_paused = true)]
async fn failed_jobs_are_refunded_and_others_only_if_configured() {
    for (refund, cancelled_costs) in [("", 1.0), ("[credits]\nrefund = [\"failed\", \"cancelled\"]", 0.0)] {
        let site = setup(joined(&[PRICES, refund])).memory();
        let failing = create_with(&json!({"model": "flux-schnell", "input": {"fail": true}}));
        let id = site.send(failing).await.job_id();
        assert!((used(&site) - 1.0).abs() < 1e-9);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(site.send(poll(&id)).await.json()["status"], "failed");
        assert!(used(&site).abs() < 1e-9, "given back");
        let id = site.start_job().await;
        let cancel = crate::support::client::request("DELETE", &format!("/v1/predictions/{id}"), "");
        assert_eq!(site.send(cancel).await.status, 200);
        assert!((used(&site) - cancelled_costs).abs() < 1e-9);
        let done = site.start_job().await;
        sleep(Duration::from_secs(3)).await;
        site.send(poll(&done)).await;
        assert!((used(&site) - 1.0 - cancelled_costs).abs() < 1e-9, "success is paid");
        let today = &site.proxy.credits()["today"][0];
        assert_eq!(today["calls"], 3);
        assert!((today["refunded"].as_f64().expect("a number") - 2.0 + cancelled_costs).abs() < 1e-9, "{today}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_or_not_sent_is_given_back_and_unknown_outcomes_are_kept() {
    let site = site();
    site.wires.refuse(100);
    let unsent = site.send(create()).await;
    assert_eq!((unsent.code().as_str(), unsent.header("sluicegate-credits-charged")), ("upstream_unreachable", "0"));
    site.wires.refuse(0);
    let status = Fault::Status { code: 422, headers: [].into(), execute: false };
    site.mock.fault_next("POST", "/v1/predictions", status);
    let refused = site.send(create()).await;
    assert_eq!((refused.status.as_u16(), refused.header("sluicegate-credits-charged")), (422, "0"));
    assert!(used(&site).abs() < 1e-9);
    site.mock.fault_next("POST", "/v1/predictions", Fault::ResetAfter);
    let unknown = site.send(create()).await;
    assert_eq!((unknown.code().as_str(), unknown.header("sluicegate-credits-charged")), ("outcome_unknown", "1"));
    assert!((used(&site) - 1.0).abs() < 1e-9);
}

fn llm(path: &str, body: &Value) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    post(path, body.to_string())
}

/// What the one line of today says.
fn today(site: &Site, model: &str) -> (u64, f64) {
    let report = site.proxy.credits();
    let lines = report["today"].as_array().expect("a list");
    let line = lines.iter().find(|line| line["model"] == model).unwrap_or_else(|| panic!("{report}"));
    assert_eq!(line["reserved"], 0, "{line}");
    (line["tokens"].as_u64().expect("a number"), line["charged"].as_f64().expect("a number"))
}

#[tokio::test(start_paused = true)]
async fn tokens_of_three_styles_are_counted_in_bodies_and_streams() {
    let message = json!([{"role": "user", "content": "hello"}]);
    let openai = json!({"model": "gpt-5.1", "messages": message, "max_tokens": 500});
    let mut openai_stream = openai.clone();
    openai_stream["stream"] = true.into();
    openai_stream["stream_options"] = json!({"include_usage": true});
    let anthropic = json!({"model": "claude", "messages": message, "max_tokens": 500});
    let mut anthropic_stream = anthropic.clone();
    anthropic_stream["stream"] = true.into();
    let gemini = json!({"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 500}});
    for (path, body, model) in [
        ("/llm/openai/v1/chat/completions", &openai, "gpt-5.1"),
        ("/llm/openai/v1/chat/completions", &openai_stream, "gpt-5.1"),
        ("/llm/anthropic/v1/messages", &anthropic, "claude"),
        ("/llm/anthropic/v1/messages", &anthropic_stream, "claude"),
        ("/llm/gemini/v1beta/models/gemini-2.5-flash:generateContent", &gemini, "gemini-2.5-flash"),
        ("/llm/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", &gemini, "gemini-2.5-flash"),
        ("/llm/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent", &gemini, "gemini-2.5-flash"),
    ] {
        let site = site();
        let answer = site.send(llm(path, body)).await;
        assert_eq!((answer.status.as_u16(), answer.whole), (200, true), "{answer:?}");
        assert_eq!(answer.header("sluicegate-credits-reserved"), "1", "500 tokens at most");
        let (tokens, charged) = today(&site, model);
        // The mock says the same in every style: two for "hello", and one for each word of its answer.
        assert_eq!(tokens, 13, "{path} {body}: {}", String::from_utf8_lossy(&answer.body));
        assert!((charged - 0.026).abs() < 1e-9, "{charged}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_tells_no_tokens_costs_what_was_reserved() {
    let site = site();
    let body = json!({"model": "gpt-5.1", "messages": [], "stream": true});
    assert_eq!(site.send(llm("/llm/openai/v1/chat/completions", &body)).await.status, 200);
    assert_eq!(today(&site, "gpt-5.1"), (0, 2.0));
    let fault = Fault::Status { code: 400, headers: [].into(), execute: false };
    site.mock.fault_next("POST", "/llm", fault);
    let answer = site.send(llm("/llm/openai/v1/chat/completions", &body)).await;
    assert_eq!((answer.status.as_u16(), answer.header("sluicegate-credits-charged")), (400, "0"));
    assert_eq!(today(&site, "gpt-5.1"), (0, 2.0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_costs_more_than_a_day_never_fits() {
    let site = site();
    let body = json!({"model": "gpt-5.1", "messages": [], "max_tokens": 6_000});
    let answer = site.send(llm("/llm/openai/v1/chat/completions", &body)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (402, "credits_exhausted"));
    assert_eq!(answer.json()["error"]["type"], "insufficient_quota");
    assert_eq!((answer.header("retry-after"), answer.header("x-should-retry")), ("", "false"));
    assert_eq!(site.mock.stats().attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn clients_have_budgets_of_their_own_inside_the_account_s() {
    const CLIENTS: &str = r#"
[plans.share]
credits_per_day = 4
[[clients]]
name = "web"
token = { env = "WEB_TOKEN" }
plan = "share"
[[clients]]
name = "batch"
token = { env = "BATCH_TOKEN" }
"#;
    let site = setup(joined(&[PRICES, CLIENTS])).memory();
    let spend = async |token: &str| {
        for accepted in 0.. {
            let answer = site.send(create().with("sluicegate-token", token)).await;
            if answer.status == 402 {
                return (accepted, answer.json()["limit"].as_u64().expect("a number"));
            }
        }
        unreachable!()
    };
    assert_eq!(spend("web-token").await, (4, 4));
    assert_eq!(spend("batch-token").await, (6, 10), "what is left of the account's");
    let report = site.proxy.credits();
    assert_eq!((&report["clients"][0]["remaining"], &report["clients"][1]["limit"]), (&json!(0), &Value::Null));
    assert_eq!(report["accounts"][0]["used"], 10);
}

fn local(clock: Clock) -> Setup {
    Setup { clock: Some(clock), ..setup(joined(&[PRICES, "[state]\nstore = \"local\""])) }
}

fn kill(site: Site) -> Scratch {
    let Site { proxy, scratch, .. } = site;
    drop(proxy);
    scratch
}

fn mock(options: Options) -> Arc<Mock> {
    let unlimited = Options { requests: None, concurrent_jobs: None, keys: vec![KEY.into()], ..options };
    Arc::new(Mock::in_memory(unlimited))
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_the_day_s_total() {
    let (clock, _) = clock();
    let mock = mock(Options { run_time: RunTime::Fixed(HOUR), ..Options::default() });
    let mut scratch = Scratch::new();
    for expected in [4.0, 8.0] {
        let site = local(clock).proxy_to(Arc::clone(&mock), scratch);
        for _ in 0..4 {
            site.start_job().await;
        }
        assert!((used(&site) - expected).abs() < 1e-9);
        scratch = kill(site);
    }
    let site = local(clock).proxy_to(Arc::clone(&mock), scratch);
    assert_eq!(spend(&site).await.0, 2);
    sleep(HOUR * 13).await;
    let site = local(clock).proxy_to(Arc::clone(&mock), kill(site));
    assert_eq!(spend(&site).await.0, 10, "the next day");
    let month = &site.proxy.credits()["last_30_days"][0];
    assert_eq!((&month["charged"], &month["calls"]), (&json!(20), &json!(20)));
    assert_eq!(mock.stats().creates_accepted, 20);
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_at_a_kill_stays_charged() {
    let (clock, _) = clock();
    let mock = mock(Options { answer_delay: Duration::from_secs(1), ..Options::default() });
    let site = local(clock).proxy_to(Arc::clone(&mock), Scratch::new());
    let calls: Vec<_> = (0..3).map(|_| site.spawn(create())).collect();
    sleep(Duration::from_millis(500)).await;
    let site = local(clock).proxy_to(Arc::clone(&mock), kill(site));
    assert!((used(&site) - 3.0).abs() < 1e-9);
    assert_eq!(site.proxy.credits()["today"][0]["reserved"], 0);
    assert_eq!(mock.stats().creates_accepted, 3);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_nothing_that_was_bought_is_forgotten() {
    for round in 0..30_u64 {
        let (clock, _) = clock();
        let (answer_delay, count_delay) = (Duration::from_millis(200), Duration::from_millis(90));
        let mock = mock(Options { answer_delay, count_delay, ..Options::default() });
        let mut scratch = Scratch::new();
        let mut flying = 0;
        for kills in 0..3 {
            let site = local(clock).proxy_to(Arc::clone(&mock), scratch);
            for at in 0..3 {
                site.spawn(create());
                sleep(Duration::from_millis(40 + at)).await;
            }
            flying += 3;
            sleep(Duration::from_millis(round * 17 + kills)).await;
            scratch = kill(site);
        }
        sleep(HOUR).await;
        let site = local(clock).proxy_to(Arc::clone(&mock), scratch);
        #[allow(clippy::cast_precision_loss, reason = "a handful")]
        let bought = mock.stats().creates_accepted as f64;
        assert!(
            used(&site) >= bought && used(&site) <= f64::from(flying),
            "round {round}: {} for {bought}",
            used(&site)
        );
        assert_eq!(site.proxy.credits()["today"][0]["reserved"], 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_after_a_restart_is_refunded() {
    let (clock, _) = clock();
    let mock = mock(Options::default());
    let site = local(clock).proxy_to(Arc::clone(&mock), Scratch::new());
    let failing = create_with(&json!({"model": "flux-schnell", "input": {"fail": true, "run_time_ms": 60_000}}));
    let id = site.send(failing).await.job_id();
    site.start_job().await;
    let site = local(clock).proxy_to(Arc::clone(&mock), kill(site));
    assert!((used(&site) - 2.0).abs() < 1e-9);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(site.send(poll(&id)).await.json()["status"], "failed");
    assert!((used(&site) - 1.0).abs() < 1e-9);
    let site = local(clock).proxy_to(Arc::clone(&mock), kill(site));
    assert!((used(&site) - 1.0).abs() < 1e-9, "once");
}

#[tokio::test(start_paused = true)]
async fn steps_of_the_clock_give_no_extra_credit() {
    let (clock, step) = clock();
    let mock = mock(Options::default());
    let site = local(clock).proxy_to(Arc::clone(&mock), Scratch::new());
    assert_eq!(spend(&site).await.0, 10);
    for by in [DAY, 0, -DAY, 0, 2 * DAY, DAY] {
        step.store(by, Ordering::Relaxed);
        sleep(Duration::from_secs(600)).await;
        let (accepted, refused) = spend(&site).await;
        assert_eq!(accepted, 0, "after a step of {by} s");
        assert!(refused.number("retry-after") > 3_600);
    }
    let site = local(clock).proxy_to(Arc::clone(&mock), kill(site));
    assert_eq!(spend(&site).await.0, 0, "nor does a restart, a day ahead");
    step.store(0, Ordering::Relaxed);
    sleep(HOUR * 11).await;
    assert_eq!(spend(&site).await.0, 10, "midnight has come");
    step.store(-DAY, Ordering::Relaxed);
    assert_eq!(spend(&site).await.0, 0);
    assert_eq!(mock.stats().creates_accepted, 20);
}

#[tokio::test]
async fn the_admin_port_tells_usage_and_metrics() {
    let live = Setup { toml: PRICES, plan: PLAN, ..Setup::default() }.loopback().await;
    assert_eq!(live.send(create()).await.status, 201);
    let free = create_with(&json!({"model": "unheard-of", "input": {}}));
    assert_eq!(live.send(free).await.status, 201);
    let usage = live.admin("/api/v1/usage").await.json();
    assert_eq!((&usage["accounts"][0]["name"], &usage["accounts"][0]["used"]), (&json!("main"), &json!(1)));
    assert_eq!(usage["today"][0]["model"], "flux-schnell");
    let metrics = String::from_utf8(live.admin("/metrics").await.body.to_vec()).expect("text");
    for line in [
        "sluicegate_credits_used{account=\"main\"} 1.0",
        "sluicegate_credits_limit{account=\"main\"} 10.0",
        "sluicegate_credits_unpriced_total{account=\"main\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    live.stop().await;
}
