//! Bugs that once were: each test failed before its fix.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sluicegate::mock::Fault;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{self, With};
use crate::support::raw::Before;
use crate::support::{KEY, NOTHING, PIPE_BYTES, Setup, create, get, post};

fn status(code: u16, headers: &[(&str, &str)]) -> Fault {
    let headers: BTreeMap<_, _> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Fault::Status { code, headers, execute: false }
}

/// While every place of the window was granted but not yet used, the timer woke itself without end.
#[tokio::test(start_paused = true)]
async fn a_caller_behind_slow_connections_waits_without_spinning() {
    let site = Setup { plan: "requests_per_minute = 3", ..Setup::default() }.memory();
    site.wires.delay(Duration::from_secs(3));
    let calls: Vec<_> = (0..4).map(|_| site.spawn(get("/v1/echo"))).collect();
    for call in calls {
        assert_eq!(call.await.expect("answered").status, 200);
    }
}

/// A probe that is answered late kept everybody waiting for its whole life.
#[tokio::test(start_paused = true)]
async fn a_slow_probe_holds_up_nobody() {
    let site = Setup::default().memory();
    let llm = "/llm/openai/v1/chat/completions";
    site.mock.fault_next("POST", llm, status(429, &[("retry-after", "1"), ("x-ratelimit-remaining", "0")]));
    site.mock.fault_next("POST", llm, Fault::SlowHead { delay: Duration::from_secs(300) });
    let slow = site.spawn(post(llm, json!({"messages": []}).to_string()));
    site.mock.wait_until(|stats| stats.attempts == 2).await;
    let begun = Instant::now();
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(slow.await.expect("answered").status, 200);
}

/// The newest idle connection was used whatever its age.
#[tokio::test(start_paused = true)]
async fn a_connection_idle_for_longer_than_upstreams_keep_them_is_not_used() {
    let site = Setup::default().memory();
    site.send(get("/v1/echo")).await;
    site.send(get("/v1/echo")).await;
    assert_eq!(site.mock.stats().connections, 1);
    sleep(Duration::from_secs(55)).await;
    site.send(get("/v1/echo")).await;
    assert_eq!(site.mock.stats().connections, 2);
}

/// Only creates insisted on a fresh connection, though no POST may be sent again after silence.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_repeated_goes_over_a_fresh_connection() {
    let site = Setup::default().memory();
    site.send(get("/v1/echo")).await;
    sleep(Duration::from_secs(20)).await;
    site.send(post("/v1/echo", "{}")).await;
    assert_eq!(site.mock.stats().connections, 2);
}

/// No clock ran until the first bytes came.
#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    let site = Setup::default().memory();
    let mut silent = site.connect();
    let mut byte = [0];
    let closed = timeout(Duration::from_secs(60), silent.read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0))), "{closed:?}");
}

/// A place under the upstream's own count that came back unsent was lost until the upstream's reset.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_never_sent_gives_back_its_place_under_the_upstream_s_count() {
    let site = Setup::default().memory();
    for _ in 0..58 {
        let (near, far) = tokio::io::duplex(4096);
        site.mock.serve(far);
        client::exchange(near, get("/v1/echo").with("x-api-key", KEY)).await;
    }
    site.mock.fault_next("GET", "/v1/echo", Fault::CloseIdle);
    assert_eq!(site.send(get("/v1/echo")).await.header("sluicegate-upstream-ratelimit-remaining"), "1");
    sleep(Duration::from_secs(1)).await;
    site.wires.refuse(1);
    let begun = Instant::now();
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Answers of the proxy's own said that they took no attempt, whatever had been sent.
#[tokio::test(start_paused = true)]
async fn a_rejection_tells_what_was_tried_before_it() {
    let site = Setup::default().memory();
    site.mock.fault_next("POST", "/v1/predictions", Fault::SlowHead { delay: Duration::from_secs(100) });
    let answer = site.send(create()).await;
    assert_eq!((answer.code(), answer.attempts()), ("outcome_unknown".into(), 1));
    assert!(answer.header("server-timing").contains("upstream;dur=60000.0"), "{answer:?}");
}

/// Callers that hung up were counted as answered with 200.
#[tokio::test]
async fn a_caller_that_left_is_not_counted_as_answered() {
    let live = Setup::default().loopback().await;
    live.mock.fault_next("GET", "/v1/echo", Fault::Hang { execute: false });
    let call = live.send(get("/v1/echo"));
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        _ = live.mock.wait_until(|stats| stats.attempts == 1) => {}
    }
    while live.server.proxy().usage().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    let metrics = String::from_utf8(live.admin("/metrics").await.body.to_vec()).expect("text");
    assert!(metrics.contains("sluicegate_requests_total{class=\"other\",status=\"4xx\"} 1"), "{metrics}");
    live.stop().await;
}

/// The drain waited for a look of the proxy's own that waited for quota.
#[tokio::test]
async fn a_look_that_waits_for_its_turn_does_not_hold_up_the_drain() {
    let setup = Setup {
        plan: "requests_per_minute = 1\nconcurrent_jobs = 1",
        toml: "[models.flux-schnell]\npoll = \"100ms\"",
        ..Setup::default()
    };
    let live = setup.loopback().await;
    assert_eq!(live.send(create()).await.status, 201);
    let second = live.connect().await;
    let second = tokio::spawn(client::exchange(second, create()));
    let usage = || live.server.proxy().usage();
    while usage().waiting < 2 {
        tokio::task::yield_now().await;
    }
    second.abort();
    while usage().waiting > 1 {
        tokio::task::yield_now().await;
    }
    let finished = timeout(Duration::from_secs(10), live.stop()).await;
    assert_eq!(finished, Ok(true));
}

/// A client that named itself by `Authorization` had its token passed on where the caller's own `Authorization` passes.
#[tokio::test(start_paused = true)]
async fn a_client_s_token_does_not_pass_as_its_own_authorization() {
    let setup = Setup {
        toml: "[[routes]]\nprefix = \"/v1/reports/\"\nauth = \"client\"\n\
               [[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }",
        ..Setup::default()
    };
    let site = setup.memory();
    let report = || post("/v1/reports/generate", "{}");
    assert_eq!(site.send(report().with("authorization", "Bearer web-token")).await.status, 401);
    let both = report().with("authorization", "Bearer session").with("x-api-key", "web-token");
    assert_eq!(site.send(both).await.status, 200);
    for seen in site.mock.requests() {
        assert!(seen.headers.values().all(|value| !format!("{value:?}").contains("web-token")), "{seen:?}");
    }
}

/// A body whose caller reset it with `NO_ERROR` went up as if it had ended there.
#[tokio::test(start_paused = true)]
async fn an_upload_that_was_reset_never_arrives_as_whole() {
    for (reason, path) in [h2::Reason::NO_ERROR, h2::Reason::CANCEL]
        .into_iter()
        .flat_map(|reason| ["/v1/echo", "/v1/predictions", "/v1/predictions/upload"].map(|path| (reason, path)))
    {
        let before = Before::new("");
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(before.proxy.serve(far));
        let (mut caller, connection) = h2::client::handshake(near).await.expect("open");
        tokio::spawn(connection);
        let call = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "multipart/form-data; boundary=x")
            .body(())
            .expect("a request");
        let (answer, mut body) = caller.send_request(call, false).expect("sent");
        let part = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x\r\n";
        body.send_data(part.into(), false).expect("sent");
        sleep(Duration::from_millis(10)).await;
        body.send_reset(reason);
        drop(answer);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(before.raw.requests(), Vec::<String>::new(), "{reason} {path}");
        sleep(Duration::from_secs(200)).await;
        assert_eq!(before.proxy.usage(), NOTHING, "{reason} {path}");
    }
}

/// With the queue full of creates that waited for slots, looks at the jobs that held those slots were refused: nobody went until the
/// creates gave up. Found by the simulation, seed 3721.
#[tokio::test(start_paused = true)]
async fn a_queue_full_of_creates_does_not_keep_the_proxy_from_seeing_jobs_end() {
    let setup = Setup {
        plan: "requests_per_minute = 60\nconcurrent_jobs = 1",
        toml: "[queue]\nmax_waiting = 2",
        ..Setup::default()
    };
    let site = setup.memory();
    site.start_job().await;
    let waiting = [site.spawn(create()), site.spawn(create())];
    let begun = Instant::now();
    for create in waiting {
        assert_eq!(create.await.expect("no panic").status, 201);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "two jobs of 2.5 s: {:?}", begun.elapsed());
}
