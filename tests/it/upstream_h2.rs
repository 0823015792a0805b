//! An HTTP/2 upstream that fails in its own ways. One connection carries many requests: a stream's failure must not be another's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, server};
use http::{Request, Response};
use http_body_util::Full;
use sluicegate::app::Proxy;
use sluicegate::connect::{Connect, Connected, Connecting};
use tokio::io::{DuplexStream, duplex};
use tokio::time::{sleep, timeout};

use crate::support::config::Scratch;
use crate::support::{Answer, NOTHING, PIPE_BYTES, client, connect, create, get, poll};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Instead of an answer.
    Reset(Reason),
    GoAway(Reason),
    Close,
    Silence,
    /// Fields of this many bytes.
    Head(usize),
    TwoLengths,
    Interim(u32),
    /// This length, five bytes, and then the end.
    Length(u64),
    /// Five bytes of no declared length, and then this.
    ResetInBody(Reason),
    /// A length of 100, five bytes, and then this.
    CloseInBody,
    SilenceInBody,
}

#[derive(Default)]
struct Upstream {
    script: Mutex<VecDeque<Fault>>,
    connections: AtomicU32,
    requests: AtomicU32,
}

const BODY: &[u8] = b"{\"job_id\":\"job-1\",\"status\":\"queued\"}";

impl Upstream {
    fn next(&self, times: usize, fault: Fault) {
        self.script.lock().expect("no panics").extend(std::iter::repeat_n(fault, times));
    }

    async fn serve(self: Arc<Self>, io: DuplexStream) {
        let Ok(mut connection) = server::handshake(io).await else { return };
        while let Some(Ok((_, respond))) = connection.accept().await {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let fault = self.script.lock().expect("no panics").pop_front();
            match fault {
                Some(Fault::Close) => return,
                Some(Fault::GoAway(reason)) => connection.abrupt_shutdown(reason),
                // Held, so that it is not reset.
                Some(Fault::Silence) => drop(tokio::spawn(async move {
                    sleep(Duration::from_secs(3600)).await;
                    drop(respond);
                })),
                fault => {
                    answer(respond, fault);
                    if fault == Some(Fault::CloseInBody) {
                        // The bytes go out first.
                        let _ = timeout(Duration::from_millis(5), connection.accept()).await;
                        return;
                    }
                }
            }
        }
    }
}

fn answer(mut respond: server::SendResponse<Bytes>, fault: Option<Fault>) {
    let mut response = Response::builder().status(201);
    if let Some(Fault::Reset(reason)) = fault {
        return respond.send_reset(reason);
    }
    match fault {
        Some(Fault::Head(bytes)) => response = response.header("x-large", "a".repeat(bytes)),
        Some(Fault::TwoLengths) => response = response.header("content-length", 36).header("content-length", 37),
        Some(Fault::Length(length)) => response = response.header("content-length", length),
        Some(Fault::CloseInBody | Fault::SilenceInBody) => {
            response = response.header("content-length", 100);
        }
        Some(Fault::Interim(times)) => {
            for _ in 0..times {
                let hints = Response::builder().status(103).body(()).expect("a response");
                respond.send_informational(hints).expect("sent");
            }
        }
        _ => {}
    }
    let Ok(mut body) = respond.send_response(response.body(()).expect("a response"), false) else { return };
    match fault {
        Some(Fault::Length(_)) => drop(body.send_data("{\"job".into(), true)),
        Some(Fault::ResetInBody(reason)) => {
            body.send_data("{\"job".into(), false).expect("sent");
            drop(tokio::spawn(async move {
                sleep(Duration::from_millis(5)).await;
                body.send_reset(reason);
            }));
        }
        Some(Fault::CloseInBody) => drop(body.send_data("{\"job".into(), false)),
        Some(Fault::SilenceInBody) => {
            body.send_data("{\"job".into(), false).expect("sent");
            drop(tokio::spawn(async move {
                sleep(Duration::from_secs(3600)).await;
                drop(body);
            }));
        }
        _ => drop(body.send_data(BODY.into(), true)),
    }
}

struct Wire(Arc<Upstream>);

impl Connect for Wire {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            self.0.connections.fetch_add(1, Ordering::SeqCst);
            let (near, far) = duplex(PIPE_BYTES);
            tokio::spawn(Arc::clone(&self.0).serve(far));
            Ok(Connected { io: Box::new(near), h2: true })
        })
    }
}

struct Site {
    proxy: Proxy,
    upstream: Arc<Upstream>,
    _scratch: Scratch,
}

impl Site {
    fn new() -> Self {
        let (scratch, upstream) = (Scratch::new(), Arc::new(Upstream::default()));
        let toml = "[upstream]\nattempt_timeout = \"10s\"\nidle_timeout = \"10s\"";
        let wire = Arc::new(Wire(Arc::clone(&upstream)));
        let proxy = scratch.proxy("requests_per_minute = 600\nconcurrent_jobs = 20", toml, wire);
        Self { proxy, upstream, _scratch: scratch }
    }

    async fn send(&self, call: Request<Full<Bytes>>) -> Answer {
        self.try_send(call).await.expect("an answer")
    }

    /// `None`: the connection was cut before the head was out.
    async fn try_send(&self, call: Request<Full<Bytes>>) -> Option<Answer> {
        timeout(Duration::from_secs(600), client::try_exchange(connect(&self.proxy), call)).await.expect("in time")
    }

    /// Nothing is held, and a good call passes.
    async fn none_the_worse(&self, case: &str) {
        self.upstream.script.lock().expect("no panics").clear();
        let answer = self.send(get("/v1/good")).await;
        assert!(answer.status == 201 && answer.whole && answer.attempts() == 1, "{case}: {answer:?}");
        sleep(Duration::from_secs(200)).await;
        assert_eq!(self.proxy.usage(), NOTHING, "{case}");
        let requests = &self.proxy.status()["accounts"][0]["requests"];
        assert_eq!((&requests["used"], &requests["remaining"]), (&0.into(), &600.into()), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_is_asked_for_again_or_said_to_be_unknown() {
    let cases = [
        (Fault::Reset(Reason::INTERNAL_ERROR), 502, "bad_upstream_answer"),
        (Fault::Reset(Reason::NO_ERROR), 502, "bad_upstream_answer"),
        (Fault::Reset(Reason::ENHANCE_YOUR_CALM), 502, "bad_upstream_answer"),
        (Fault::GoAway(Reason::INTERNAL_ERROR), 502, "bad_upstream_answer"),
        (Fault::Close, 502, "bad_upstream_answer"),
        (Fault::Silence, 504, "upstream_timeout"),
        (Fault::Head(200 << 10), 502, "bad_upstream_answer"),
        (Fault::TwoLengths, 502, "bad_upstream_answer"),
    ];
    for (fault, status, code) in cases {
        let case = format!("{fault:?}");
        for call in [get("/v1/a"), poll("job-9")] {
            let site = Site::new();
            site.upstream.next(10, fault);
            let answer = site.send(call).await;
            assert_eq!((answer.status.as_u16(), answer.code(), answer.attempts()), (status, code.into(), 4), "{case}");
            site.none_the_worse(&case).await;
        }
        let site = Site::new();
        site.upstream.next(10, fault);
        let answer = site.send(create()).await;
        assert_eq!((answer.code(), answer.attempts()), ("outcome_unknown".into(), 1), "{case}: {answer:?}");
        assert_eq!((answer.header("sluicegate-charge"), site.upstream.requests.load(Ordering::SeqCst)), ("unknown", 1));
        site.none_the_worse(&case).await;
    }
}

/// RFC 9113 §8.7: what was refused so was not processed.
#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_sent_again_whatever_it_asked_for() {
    for call in [get("/v1/a"), create()] {
        let site = Site::new();
        site.upstream.next(2, Fault::Reset(Reason::REFUSED_STREAM));
        let answer = site.send(call).await;
        assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 3), "{answer:?}");
        assert_eq!(site.upstream.connections.load(Ordering::SeqCst), 1, "the connection is well");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_never_passed_as_whole() {
    let resets = [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR].map(Fault::ResetInBody);
    let others = [Fault::Length(100), Fault::Length(2), Fault::CloseInBody, Fault::SilenceInBody];
    for fault in resets.into_iter().chain(others) {
        let case = format!("{fault:?}");
        let site = Site::new();
        site.upstream.next(1, fault);
        let answer = site.try_send(get("/v1/a")).await;
        assert!(answer.as_ref().is_none_or(|answer| !answer.whole), "{case}: {answer:?}");
        site.none_the_worse(&case).await;
        let site = Site::new();
        site.upstream.next(10, fault);
        assert_eq!(site.send(poll("job-9")).await.code(), "bad_upstream_answer", "{case}");
        site.none_the_worse(&case).await;
        let site = Site::new();
        site.upstream.next(10, fault);
        let answer = site.send(create()).await;
        assert_eq!(answer.code(), "outcome_unknown", "{case}: {answer:?}");
        site.none_the_worse(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn interim_answers_and_long_heads_within_bounds_pass() {
    for fault in [Fault::Interim(1000), Fault::Head(100 << 10)] {
        let site = Site::new();
        site.upstream.next(1, fault);
        let answer = site.send(create()).await;
        assert_eq!((answer.status.as_u16(), answer.attempts()), (201, 1), "{fault:?}");
    }
}

/// Others on the same connection go on.
#[tokio::test(start_paused = true)]
async fn one_stream_s_end_is_not_another_s() {
    let site = Arc::new(Site::new());
    site.send(get("/v1/a")).await;
    site.upstream.next(1, Fault::SilenceInBody);
    let slow = tokio::spawn({
        let site = Arc::clone(&site);
        async move { site.send(get("/v1/slow")).await }
    });
    sleep(Duration::from_millis(1)).await;
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::REFUSED_STREAM] {
        site.upstream.next(1, Fault::Reset(reason));
        assert_eq!(site.send(get("/v1/b")).await.status, 201, "the second attempt, or the same again");
    }
    assert!(!slow.is_finished());
    let slow = slow.await.expect("ended");
    assert_eq!((slow.status.as_u16(), slow.whole), (201, false), "by its own silence");
    assert_eq!(site.upstream.connections.load(Ordering::SeqCst), 1);
}
