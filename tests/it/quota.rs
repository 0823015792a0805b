//! The minute quota: never more than the plan in any window, whatever way the upstream counts, and hardly less.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde_json::json;
use sluicegate::clock::Clock;
use sluicegate::mock::{Mock, Options};
use tokio::time::{Instant, sleep};

use crate::support::client::{self, With};
use crate::support::{Answer, KEY, Setup, Site, create, get, post, saturate, vendors_caller};

const W: Duration = Duration::from_secs(60);
/// Counters on which a plan kept in every window is never refused.
const FAIR: [&str; 4] = ["fixed", "anchored", "sliding", "token-bucket"];
/// Counters stricter than the plan that they are sold as.
const STRICTER: [&str; 2] = ["two-bucket:10/1s", "token-bucket:6"];

/// Free with a pacing, and a queue for the patient.
fn setup(counter: &str, pacing: &str) -> Setup {
    Setup {
        mock: Options { counter: counter.parse().expect("a counter"), ..Options::default() },
        plan: match pacing {
            "paced" => "requests_per_minute = 60\nconcurrent_jobs = 5\npacing = \"paced\"",
            "burst" => "requests_per_minute = 60\nconcurrent_jobs = 5\npacing = \"burst\"",
            _ => "requests_per_minute = 60\nconcurrent_jobs = 5",
        },
        toml: "[queue]\nmax_wait = \"6h\"",
        ..Setup::default()
    }
}

/// Fires `n` callers at once; all must be answered with success.
async fn fire(site: &Arc<Site>, n: usize, polling: bool) {
    let callers: Vec<_> = (0..n)
        .map(|_| {
            let site = Arc::clone(site);
            tokio::spawn(async move { if polling { vendors_caller(&site).await } else { site.send(create()).await } })
        })
        .collect();
    for caller in callers {
        let answer = caller.await.expect("no caller panics");
        assert!(answer.status.is_success(), "{answer:?}");
    }
}

fn judge(site: &Site, jobs: u64, counter: &str) {
    let stats = site.mock.stats();
    assert_eq!(stats.creates_accepted, jobs, "{counter}");
    assert!(stats.jobs_live_peak <= 5, "{counter}: {stats:?}");
    assert!(stats.max_in_window <= 60, "{counter}: {stats:?}");
    assert_eq!(stats.refused_job_429, 0, "{counter}");
}

#[tokio::test(start_paused = true)]
async fn five_hundred_creates_at_once_all_get_through_within_the_plan() {
    for polling in [false, true] {
        let site = Arc::new(setup("sliding", "auto").memory());
        fire(&site, 500, polling).await;
        judge(&site, 500, "sliding");
        assert_eq!(site.mock.stats().refused_rate_429, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn no_429_on_any_counter_that_grants_the_plan_whatever_the_network_does() {
    for counter in FAIR {
        let mut setup = setup(counter, "auto");
        setup.mock.count_delay = Duration::from_millis(50);
        setup.mock.count_jitter = Duration::from_millis(1_300);
        setup.mock.answer_delay = Duration::from_millis(400);
        let site = Arc::new(setup.memory());
        fire(&site, 150, true).await;
        judge(&site, 150, counter);
        assert_eq!(site.mock.stats().refused_rate_429, 0, "{counter}");
    }
}

#[tokio::test(start_paused = true)]
async fn on_stricter_counters_there_is_one_episode_of_429_and_every_caller_is_answered() {
    for counter in STRICTER {
        let site = Arc::new(setup(counter, "auto").memory());
        let answered = saturate(&site, 80, Instant::now() + 10 * W).await;
        assert!(answered > 500, "{counter}: {answered}");
        let refused: Vec<_> = site.mock.requests().into_iter().filter(|seen| seen.status == 429).collect();
        let (first, last) = (refused.first().expect("an episode").at, refused.last().expect("one").at);
        assert!(last - first < Duration::from_secs(2), "{counter}: {} over {:?}", refused.len(), last - first);
        assert_eq!(site.proxy.status()["accounts"][0]["paced"], true);
        judge(&site, 0, counter);
    }
}

#[tokio::test(start_paused = true)]
async fn paced_is_never_refused_unless_the_bucket_is_smaller_than_its_burst() {
    for counter in FAIR.into_iter().chain(STRICTER) {
        let mut setup = setup(counter, "paced");
        setup.mock.count_jitter = Duration::from_millis(1_400);
        let site = Arc::new(setup.memory());
        fire(&site, 40, true).await;
        saturate(&site, 70, Instant::now() + 5 * W).await;
        judge(&site, 40, counter);
        assert_eq!(site.mock.stats().refused_rate_429, 0, "{counter}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_plan_never_switches_to_pacing() {
    let site = Arc::new(setup("two-bucket:10/1s", "burst").memory());
    site.mock.fault_next("GET", "/v1/echo", refusal("1"));
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    assert_eq!(site.proxy.status()["accounts"][0]["paced"], false);
}

#[tokio::test(start_paused = true)]
async fn saturated_for_twenty_windows_hardly_a_place_is_left_unused() {
    let table = [("fixed", "auto", 1_164), ("sliding", "auto", 1_164), ("sliding", "paced", 1_140)];
    for (counter, pacing, least) in table {
        let mut setup = setup(counter, pacing);
        setup.mock.count_delay = Duration::from_millis(20);
        setup.mock.answer_delay = Duration::from_millis(80);
        let site = Arc::new(setup.memory());
        let begun = Instant::now();
        saturate(&site, 65, begun + 21 * W).await;
        let requests = site.mock.requests();
        // Without the first window, which a full bucket would flatter.
        let counted = requests.iter().filter(|seen| seen.at >= begun + W && seen.at < begun + 21 * W).count();
        assert!(counted >= least, "{counter} {pacing}: {counted}");
        judge(&site, 0, counter);
        assert_eq!(site.mock.stats().refused_rate_429, 0, "{counter} {pacing}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_wait_is_refused_with_a_retry_after_that_holds() {
    let site = Arc::new(setup("sliding", "auto").memory());
    for _ in 0..60 {
        assert_eq!(site.send(get("/v1/echo")).await.status, 200);
        sleep(Duration::from_millis(100)).await;
    }
    let impatient = || get("/v1/echo").with("sluicegate-max-wait", "5s");
    let begun = Instant::now();
    let refused = site.send(impatient()).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::TOO_MANY_REQUESTS, "rate_limited".into()));
    assert_eq!(begun.elapsed(), Duration::ZERO, "the books alone prove it: no use in waiting");
    assert_eq!(refused.header("sluicegate-limit-source"), "local");
    let wait = Duration::from_millis(refused.number("retry-after-ms"));
    assert!(wait <= Duration::from_secs(refused.number("retry-after")) && wait > Duration::from_secs(50));
    sleep(wait).await;
    assert_eq!(site.send(get("/v1/echo").with("sluicegate-max-wait", "0s")).await.status, 200);
    assert_eq!(site.mock.stats().attempts, 61);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_in_the_queue_is_told_as_such_and_spends_nothing() {
    let site = setup("sliding", "auto").memory();
    for _ in 0..5 {
        site.spawn(create_long());
    }
    site.mock.wait_until(|stats| stats.jobs_live_now == 5).await;
    let begun = Instant::now();
    let refused = site.send(create().with("sluicegate-max-wait", "3s")).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "queue_timeout".into()), "{refused:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert_eq!(refused.header("sluicegate-charge"), "not-sent");
    let at_once = site.send(create().with("sluicegate-max-wait", "0s")).await;
    assert_eq!((at_once.status.as_u16(), at_once.code()), (429, "job_limit".into()));
    assert_eq!(site.mock.stats().refused_job_429, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses() {
    let setup = Setup { plan: "requests_per_minute = 1", toml: "[queue]\nmax_waiting = 2", ..Setup::default() };
    let site = Arc::new(setup.memory());
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    let waiting = [site.spawn(get("/v1/echo")), site.spawn(get("/v1/echo"))];
    sleep(Duration::from_millis(1)).await;
    let refused = site.send(get("/v1/echo")).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "queue_full".into()));
    assert!(refused.number("retry-after") >= 59, "{refused:?}");
    for waiter in waiting {
        assert_eq!(waiter.await.expect("answered").status, 200);
    }
    assert_eq!(site.mock.stats().max_in_window, 1);
}

#[tokio::test(start_paused = true)]
async fn llm_calls_share_the_quota_unless_the_plan_says_otherwise() {
    for (plan, fits) in [("requests_per_minute = 3", 3), ("requests_per_minute = 3\nllm = \"unmetered\"", 10)] {
        let setup = Setup { plan, mock: Options { requests: None, ..Options::default() }, ..Setup::default() };
        let site = setup.memory();
        let mut answered = 0;
        for _ in 0..10 {
            let chat = chat().with("sluicegate-max-wait", "0s");
            answered += usize::from(site.send(chat).await.status == 200);
        }
        assert_eq!(answered, fits, "{plan}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_s_plan_caps_it_inside_the_account_s() {
    let setup = Setup {
        plan: "requests_per_minute = 60\nconcurrent_jobs = 5",
        toml: r#"
            [plans.small]
            requests_per_minute = 10
            concurrent_jobs = 1
            [[clients]]
            name = "web"
            token = { env = "WEB_TOKEN" }
            plan = "small"
            [[clients]]
            name = "batch"
            token = { env = "BATCH_TOKEN" }
            "#,
        ..Setup::default()
    };
    let site = Arc::new(setup.memory());
    let web = |request: http::Request<_>| request.with("x-api-key", "web-token");
    let begun = Instant::now();
    let calls: Vec<_> = (0..25).map(|_| site.spawn(web(get("/v1/echo?web")))).collect();
    for call in calls {
        assert_eq!(call.await.expect("answered").status, 200);
    }
    let times: Vec<Instant> = site.mock.requests().iter().map(|seen| seen.at).collect();
    let most = times.iter().map(|from| times.iter().filter(|at| **at >= *from && **at - *from < W).count()).max();
    assert!(most <= Some(10), "{most:?} in a window");
    assert!(begun.elapsed() > 2 * W && begun.elapsed() < 4 * W, "{:?}", begun.elapsed());

    sleep(W).await;
    site.send(web(create_long())).await;
    let refused = site.send(web(create()).with("sluicegate-max-wait", "9s")).await;
    assert_eq!(refused.code(), "queue_timeout", "its one job runs");
    let other = site.send(create().with("x-api-key", "batch-token")).await;
    assert_eq!(other.status, 201, "which does not concern others");
}

#[tokio::test(start_paused = true)]
async fn accounts_with_one_key_share_one_book() {
    let setup = Setup {
        plan: "requests_per_minute = 4",
        toml: r#"
            [accounts.twin]
            plan = "main"
            key = { env = "KEY" }
            [[clients]]
            name = "web"
            token = { env = "WEB_TOKEN" }
            [[clients]]
            name = "batch"
            token = { env = "BATCH_TOKEN" }
            account = "twin"
            "#,
        ..Setup::default()
    };
    let site = setup.memory();
    let mut answered = 0;
    for n in 0..10 {
        let token = ["web-token", "batch-token"][n % 2];
        let call = get("/v1/echo").with("x-api-key", token).with("sluicegate-max-wait", "0s");
        answered += usize::from(site.send(call).await.status == 200);
    }
    assert_eq!(answered, 4);
}

#[tokio::test(start_paused = true)]
async fn somebody_else_on_the_key_is_noticed_and_costs_no_429() {
    let site = Arc::new(setup("sliding", "auto").memory());
    let foreign = Arc::clone(&site.mock);
    let others = tokio::spawn(async move {
        for _ in 0..30 {
            assert_eq!(past_the_proxy(&foreign, get("/v1/echo")).await.status, 200);
        }
    });
    others.await.expect("done");
    let answered = saturate(&site, 20, Instant::now() + W / 2).await;
    assert_eq!(answered, 30, "what is left");
    assert_eq!(site.mock.stats().refused_rate_429, 0);
    let drift = || site.proxy.status()["accounts"][0]["drift"].as_u64();
    assert!(drift() >= Some(29));
    sleep(W + W / 20).await;
    assert_eq!(drift(), Some(0), "what the others sent has left the window");
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_closes_the_gate_and_then_one_probe_goes() {
    let site = Arc::new(setup("sliding", "auto").memory());
    site.mock.fault_next("GET", "/v1/echo", refusal("20"));
    let first = site.spawn(get("/v1/echo"));
    site.mock.wait_until(|stats| stats.attempts == 1).await;
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    let others: Vec<_> = (0..5).map(|_| site.spawn(get("/v1/echo"))).collect();
    assert_eq!(first.await.expect("answered").attempts(), 2);
    assert!(begun.elapsed() >= Duration::from_secs(19), "{:?}", begun.elapsed());
    for other in others {
        assert_eq!(other.await.expect("answered").status, 200);
    }
}

/// Dates and Unix times are meant by the upstream's clock, which its `Date` tells.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_off_by_half_an_hour_stalls_nothing() {
    static STEP: AtomicI64 = AtomicI64::new(0);
    let half = Duration::from_secs(1800);
    for ours in [SystemTime::now() - half, SystemTime::now() + half] {
        for field in ["retry-after", "x-ratelimit-reset"] {
            let clock = Clock::stepped(ours, &STEP);
            let site = Setup { clock: Some(clock), ..setup("sliding", "auto") }.memory();
            let theirs = SystemTime::now() + Duration::from_secs(20);
            let value = match field {
                "retry-after" => httpdate::fmt_http_date(theirs),
                _ => theirs.duration_since(SystemTime::UNIX_EPOCH).expect("after it").as_secs().to_string(),
            };
            let headers = [(field.to_owned(), value), ("x-ratelimit-remaining".to_owned(), "0".to_owned())];
            let refusal = sluicegate::mock::Fault::Status { code: 429, headers: headers.into(), execute: false };
            site.mock.fault_next("GET", "/v1/echo", refusal);
            let begun = Instant::now();
            let answer = site.send(get("/v1/echo")).await;
            assert_eq!((answer.status.as_u16(), answer.attempts()), (200, 2), "{field}: {answer:?}");
            let took = begun.elapsed();
            assert!(took >= Duration::from_secs(18) && took <= Duration::from_secs(22), "{field}: {took:?}");
        }
    }
}

/// A 429 of the upstream that its own books do not explain.
fn refusal(retry_after: &str) -> sluicegate::mock::Fault {
    let headers = [("retry-after", retry_after), ("x-ratelimit-remaining", "0")];
    sluicegate::mock::Fault::Status {
        code: 429,
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        execute: false,
    }
}

fn create_long() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    crate::support::create_with(&json!({"model": "m", "input": {"run_time_ms": 600_000}}))
}

fn chat() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let body = json!({"model": "gpt", "messages": [{"role": "user", "content": "hello"}]});
    post("/llm/openai/v1/chat/completions", body.to_string())
}

async fn past_the_proxy(mock: &Mock, request: http::Request<http_body_util::Full<bytes::Bytes>>) -> Answer {
    let (near, far) = tokio::io::duplex(4096);
    mock.serve(far);
    client::exchange(near, request.with("x-api-key", KEY)).await
}
