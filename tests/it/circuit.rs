//! The circuit breaker: while no connection can be had, calls wait with nothing in their hands, and one at a time tries for all.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sluicegate::server::Server;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::secrets::Log;
use crate::support::client::{self, With};
use crate::support::config::Scratch;
use crate::support::raw::{Before, GOOD, Step, send, send_and_close};
use crate::support::{Answer, NOTHING, create, get, post};

/// One attempt a call, so that five calls open it.
const ONCE: &str = "[retry]\nmax_attempts = 1\n[models.flux-schnell]\ncredits = 1";
const PLAN: &str = "requests_per_minute = 60\nconcurrent_jobs = 5\ncredits_per_day = 50";

fn at_once(call: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    call.with("sluicegate-max-wait", "0s")
}

fn circuit(before: &Before) -> String {
    before.proxy.status()["upstream"]["circuit"].as_str().expect("a word").to_owned()
}

fn spawn(before: &Before, call: Request<Full<Bytes>>) -> tokio::task::JoinHandle<Answer> {
    tokio::spawn(before.send(call))
}

/// Nothing can connect, and five calls have found out.
async fn opened(toml: &str) -> Before {
    let before = Before::with_plan(PLAN, toml);
    before.raw.refuse(5);
    for n in 1..=5 {
        assert_eq!(circuit(&before), "closed", "{n}");
        assert_eq!(before.send(get("/v1/a")).await.code(), "upstream_unreachable", "{n}");
    }
    assert_eq!(circuit(&before), "open");
    before
}

#[tokio::test(start_paused = true)]
async fn who_does_not_want_to_wait_is_refused_at_once_and_spends_nothing() {
    let before = opened(ONCE).await;
    before.raw.refuse(100);
    let credits = before.proxy.credits();
    for call in [create(), get("/v1/a"), post("/llm/openai/v1/chat/completions", "{}")] {
        let (begun, is_create) = (Instant::now(), call.uri().path() == "/v1/predictions");
        let answer = before.send(at_once(call)).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (503, "circuit_open".into()), "{answer:?}");
        assert_eq!((answer.header("retry-after"), answer.attempts()), ("1", 0));
        assert!((1..=1_000).contains(&answer.number("retry-after-ms")), "{answer:?}");
        assert!(answer.header("proxy-status").contains("destination_unavailable"), "{answer:?}");
        assert_eq!(answer.header("sluicegate-charge"), if is_create { "not-sent" } else { "" });
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
    assert_eq!(before.raw.refusals_left(), 100, "no connection was tried");
    assert_eq!(before.proxy.usage(), NOTHING);
    assert_eq!(before.proxy.status()["accounts"][0]["requests"]["used"], 0);
    assert_eq!(before.proxy.credits(), credits);
}

#[tokio::test(start_paused = true)]
async fn who_can_wait_waits_for_the_one_that_tries() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    let _spare = tracing::Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(subscriber);
    let before = opened(ONCE).await;
    before.raw.refuse(3);
    let begun = Instant::now();
    let calls: Vec<_> = (0..20).map(|n| spawn(&before, if n % 4 == 0 { create() } else { get("/v1/a") })).collect();
    // Pauses of up to 1 s, 2 s and 4 s: three probes, and nothing else.
    sleep(Duration::from_millis(400)).await;
    assert_eq!(before.raw.refusals_left(), 3, "not before half a second");
    assert_eq!((before.proxy.usage().waiting, before.proxy.usage().jobs_live), (20, 0), "with nothing in their hands");
    for call in calls {
        let answer = call.await.expect("answered");
        assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 1), "{answer:?}");
    }
    let (took, requests) = (begun.elapsed(), before.raw.requests().len());
    assert!(took >= Duration::from_millis(7_500) && took <= Duration::from_secs(15), "{took:?}");
    assert_eq!((requests, circuit(&before)), (20, "closed".into()));
    drop(guard);
    let log = log.text();
    assert_eq!(
        (log.matches("the circuit is open").count(), log.matches("the circuit is closed").count()),
        (1, 1),
        "{log}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_cannot_wait_long_enough_hears_it_as_soon_as_it_is_certain() {
    let before = opened(ONCE).await;
    before.raw.refuse(10_000);
    let begun = Instant::now();
    let answer = before.send(create().with("sluicegate-max-wait", "20s")).await;
    assert_eq!((answer.code(), answer.header("sluicegate-charge")), ("circuit_open".into(), "not-sent"));
    // After 15 s at most the next probe is 16 s away, or 8 s.
    assert!(
        begun.elapsed() >= Duration::from_secs(3) && begun.elapsed() <= Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    let answer = before.send(get("/v1/a")).await;
    assert_eq!(answer.code(), "circuit_open", "after queue.max_wait");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(29 * 60) && took <= Duration::from_secs(30 * 60), "{took:?}");
    let tried = 10_000 - before.raw.refusals_left();
    assert!((60..=130).contains(&tried), "a probe each 15 to 30 s: {tried}");
    assert_eq!(before.settled().await, NOTHING);
}

/// Two find out together that nothing can connect: the circuit opens while they wait for another try.
#[tokio::test(start_paused = true)]
async fn who_had_its_turn_waits_no_longer_for_a_connection_than_it_wants_to() {
    let before = Before::with_plan(PLAN, "");
    before.raw.refuse(10_000);
    let begun = Instant::now();
    let calls = [get("/v1/a"), create()].map(|call| spawn(&before, call.with("sluicegate-max-wait", "2s")));
    for call in calls {
        let answer = call.await.expect("answered");
        assert!(["circuit_open", "upstream_unreachable"].contains(&&*answer.code()), "{answer:?}");
    }
    assert_eq!(circuit(&before), "open");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(before.settled().await, NOTHING);
}

#[tokio::test(start_paused = true)]
async fn answers_of_any_status_keep_it_closed() {
    let before = Before::with_plan("concurrent_jobs = 5", ONCE);
    for status in [400, 401, 404, 422, 429, 500, 502, 503, 504] {
        // A new connection each time, refused four times, then good enough to be told no.
        before.raw.refuse(4);
        for _ in 0..4 {
            assert_eq!(before.send(get("/v1/a")).await.code(), "upstream_unreachable");
        }
        before.raw.next(
            1,
            &send_and_close(format!("HTTP/1.1 {status} No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")),
        );
        assert_eq!(before.send(get("/v1/a")).await.status.as_u16(), status);
        assert_eq!(circuit(&before), "closed", "{status}");
    }
    // What fails after connecting is no failure to connect.
    before.raw.next(20, &[Step::Close]);
    for _ in 0..20 {
        assert_eq!(before.send(get("/v1/a")).await.code(), "bad_upstream_answer");
        assert_eq!(circuit(&before), "closed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_an_older_connection_closes_it() {
    let before = Before::with_plan(PLAN, ONCE);
    before.send(get("/v1/a")).await;
    sleep(Duration::from_millis(1)).await;
    before.raw.next(1, &[Step::Pause(Duration::from_millis(400)), Step::Send(GOOD.into())]);
    before.raw.refuse(1000);
    let old = spawn(&before, get("/v1/old"));
    tokio::task::yield_now().await;
    sleep(Duration::from_millis(1)).await;
    for _ in 0..5 {
        assert_eq!(before.send(get("/v1/new")).await.code(), "upstream_unreachable");
    }
    assert_eq!(circuit(&before), "open");
    assert_eq!(old.await.expect("answered").status, 201);
    assert_eq!(circuit(&before), "closed");
    // And for as long as it is there, it serves also while the circuit is open.
    before.raw.next(1, &[Step::Pause(Duration::from_millis(400)), Step::Send(GOOD.into())]);
    let old = spawn(&before, get("/v1/old"));
    sleep(Duration::from_millis(1)).await;
    for _ in 0..5 {
        before.send(get("/v1/new")).await;
    }
    let waits = spawn(&before, get("/v1/waits"));
    assert_eq!(
        (old.await.expect("answered").status.as_u16(), waits.await.expect("answered").status.as_u16()),
        (201, 201)
    );
    assert_eq!(before.raw.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_had_its_turn_when_it_opened_gives_it_back_and_waits_too() {
    let before = Before::with_plan("requests = 5\nper = \"10s\"\nconcurrent_jobs = 5", ONCE);
    before.raw.refuse(5);
    before.raw.delay(Duration::from_secs(1));
    for n in 0..5 {
        before.raw.next(1, &send(GOOD.replace("job-1", &format!("job-{n}"))));
    }
    let calls: Vec<_> = (0..10).map(|_| spawn(&before, create())).collect();
    let mut told = Vec::new();
    for call in calls {
        let answer = call.await.expect("answered");
        told.push((answer.status.as_u16(), answer.attempts(), answer.header("sluicegate-charge").to_owned()));
    }
    told.sort();
    let (served, refused) = told.split_at(5);
    assert!(served.iter().all(|told| *told == (201, 1, "accepted".into())), "{told:?}");
    assert!(refused.iter().all(|told| *told == (502, 1, "not-sent".into())), "{told:?}");
    assert_eq!(before.raw.requests().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn whoever_tries_and_hangs_up_hands_the_duty_on() {
    let before = opened(ONCE).await;
    before.raw.delay(Duration::from_secs(3));
    let leaves = spawn(&before, get("/v1/leaves"));
    sleep(Duration::from_millis(1)).await;
    let stays = spawn(&before, get("/v1/stays"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(circuit(&before), "probing");
    assert_eq!(before.send(at_once(get("/v1/a"))).await.code(), "circuit_open");
    leaves.abort();
    let begun = Instant::now();
    assert_eq!(stays.await.expect("answered").status, 201);
    assert!(begun.elapsed() <= Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((before.raw.connections(), before.settled().await), (1, NOTHING));
}

/// Connecting takes longer than an attempt may: that counts too, and the probe, which no attempt waits for, has the time that it needs.
#[tokio::test(start_paused = true)]
async fn connections_that_no_attempt_waits_for_open_it_and_the_probe_may_still_succeed() {
    let toml = "[retry]\nmax_attempts = 1\n[upstream]\nattempt_timeout = \"1s\"\ntotal_timeout = \"1s\"";
    let before = Before::with_plan(PLAN, toml);
    before.raw.delay(Duration::from_secs(3));
    for _ in 0..5 {
        assert_eq!(before.send(get("/v1/a")).await.code(), "upstream_unreachable");
    }
    assert_eq!(circuit(&before), "open");
    let answer = before.send(create()).await;
    assert_eq!((answer.status.as_u16(), answer.attempts(), circuit(&before)), (201, 1, "closed".into()));
}

#[tokio::test(start_paused = true)]
async fn as_many_wait_as_in_a_queue() {
    let before = opened("[retry]\nmax_attempts = 1\n[queue]\nmax_waiting = 3").await;
    before.raw.refuse(2);
    let calls: Vec<_> = (0..3).map(|_| spawn(&before, get("/v1/a"))).collect();
    sleep(Duration::from_millis(1)).await;
    let full = before.send(get("/v1/a")).await;
    assert_eq!((full.status.as_u16(), full.code()), (429, "queue_full".into()));
    for call in calls {
        assert_eq!(call.await.expect("answered").status, 201);
    }
}

/// Retries of one call wait for the probe too, instead of spending what attempts they have.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_tried_again_waits_for_the_probe() {
    let before = Before::with_plan(PLAN, "");
    before.raw.refuse(8); // four by the first call, one by the second, three by probes
    assert_eq!(before.send(get("/v1/a")).await.code(), "upstream_unreachable");
    let answer = before.send(create()).await;
    assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 2), "{answer:?}");
}

/// The proxy's own looks at jobs do not hammer an upstream that is away, and go on when it is back.
#[tokio::test(start_paused = true)]
async fn looks_at_jobs_wait_like_any_call() {
    let before = Before::with_plan(PLAN, "");
    before.raw.next(1, &send_and_close(GOOD.replace("content-type", "connection: close\r\ncontent-type")));
    assert_eq!(before.send(create()).await.status, 201);
    before.raw.refuse(10_000);
    sleep(Duration::from_secs(600)).await;
    let tried = 10_000 - before.raw.refusals_left();
    assert!((10..=80).contains(&tried), "in ten minutes: {tried}");
    before.raw.be_good();
    sleep(Duration::from_secs(100)).await;
    assert!(before.raw.requests().len() >= 2, "{:?}", before.raw.requests());
    assert_eq!(before.proxy.usage().jobs_live, 1);
}

#[tokio::test]
async fn it_shows_on_the_admin_port_and_does_not_hold_up_the_drain() {
    let scratch = Scratch::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let toml = format!("{ONCE}\n[server]\ndrain_timeout = \"200ms\"");
    let config = scratch.load("concurrent_jobs = 5", &toml, &format!("http://{closed}"));
    let server = Server::start(&config).await.expect("free ports");
    let (listen, admin) = (server.listen[0], server.admin.expect("an admin port"));
    let send = async |address, call| client::exchange(TcpStream::connect(address).await.expect("open"), call).await;
    for _ in 0..5 {
        assert_eq!(send(listen, get("/v1/a")).await.code(), "upstream_unreachable");
    }
    let status = send(admin, get("/api/v1/status")).await.json();
    assert_ne!(status["upstream"]["circuit"], "closed", "{status}");
    let metrics = String::from_utf8(send(admin, get("/metrics")).await.body.to_vec()).expect("text");
    for line in [
        "sluicegate_circuit_open 1",
        "sluicegate_circuit_opened_total 1",
        "sluicegate_connect_failures_total{reason=\"refused\"} 5",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let waits = tokio::spawn(client::exchange(TcpStream::connect(listen).await.expect("open"), get("/v1/a")));
    while server.proxy().usage().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let drained = timeout(Duration::from_secs(10), server.drain()).await;
    assert!(drained.is_ok(), "it ends");
    assert_eq!(waits.await.expect("answered").code(), "draining");
}
