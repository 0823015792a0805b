//! All attempts of one call: the decision whether to try again, pure, and the loop around it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri, Version, response, uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::{self, RetryCreates};

use super::body::{Held, Trouble};
use super::classify::Call;
use super::create::Outcome as Outcomes;
use super::jobs::{Pending, may_have_been_done};
use super::queue::{Ask, Class, Permit};
use super::quota::Refused;
use super::quota::feedback::Feedback;
use super::rejection::{Rejection, Unreachable};
use super::upstream::{Return, SendError};
use super::{Worker, gone};

pub(crate) use self::budget::Budget;

/// Retries as a share of first attempts.
pub(crate) mod budget;

/// Answers that are read before they are passed on may be this long; longer ones stream on unread.
pub(crate) const OBSERVED_BYTES: usize = 8 << 20;
/// What is kept of an answer that will be tried again.
const KEPT_BYTES: usize = 64 * 1024;
/// A connection that fails before anything is written is replaced this often without counting as an attempt.
const RECONNECTS: u32 = 3;

/// What came of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A response head.
    Answer(StatusCode),
    /// Nothing was sent.
    Unsent,
    /// It was sent, and nothing came back.
    Silent,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Pass on what there is.
    Stop,
    /// Try again after this long.
    After(Duration),
    /// Try again when the quota allows it: the upstream said 429, and the queue knows until when.
    Turn,
}

/// The circumstances of a decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tried {
    /// 1-based.
    pub(crate) attempt: u32,
    pub(crate) outcome: Outcome,
    /// The call may be repeated whatever came of it, and its body is still there.
    pub(crate) repeatable: bool,
    pub(crate) replayable: bool,
    pub(crate) retry_after: Option<Duration>,
    /// Until the call's deadline.
    pub(crate) left: Duration,
}

impl config::Retry {
    /// `dice` is uniform on `[0, 1)` (full jitter); `budget` is asked last, and only for what it pays.
    pub(crate) fn next(&self, tried: Tried, dice: f64, budget: impl FnOnce() -> bool) -> Next {
        let too_long = tried.retry_after.is_some_and(|wait| wait > tried.left);
        if tried.attempt >= self.max_attempts.get() || too_long || !tried.replayable || !self.may_repeat(tried) {
            return Next::Stop;
        }
        if tried.outcome == Outcome::Answer(StatusCode::TOO_MANY_REQUESTS) {
            return Next::Turn;
        }
        let doubled = self
            .initial_backoff
            .saturating_mul(2_u32.saturating_pow(tried.attempt - 1));
        let wait = doubled
            .min(self.max_backoff)
            .mul_f64(dice)
            .max(tried.retry_after.unwrap_or_default());
        if wait > tried.left || !budget() {
            Next::Stop
        } else {
            Next::After(wait)
        }
    }

    fn may_repeat(&self, tried: Tried) -> bool {
        let listed = |status| self.statuses.contains(&status);
        match (tried.repeatable, self.creates, tried.outcome) {
            (true, _, Outcome::Answer(status)) | (false, RetryCreates::Documented, Outcome::Answer(status)) => {
                listed(status)
            }
            (true, _, Outcome::Unsent | Outcome::Silent) => true,
            (false, RetryCreates::Safe, Outcome::Answer(status)) => {
                listed(status) && matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            }
            (false, RetryCreates::Documented | RetryCreates::Safe, Outcome::Unsent) => true,
            (false, _, Outcome::Silent) | (false, RetryCreates::Never, _) => false,
        }
    }
}

/// What a call got in the end.
pub(crate) struct Reply {
    pub(crate) head: response::Parts,
    pub(crate) body: ReplyBody,
    pub(crate) attempts: u32,
    /// From the first dispatch to the last response head.
    pub(crate) upstream: Duration,
}

/// What a call got instead of a reply.
pub(crate) struct Unanswered {
    pub(crate) rejection: Rejection,
    pub(crate) attempts: u32,
    pub(crate) upstream: Duration,
}

/// The body of a reply.
pub(crate) enum ReplyBody {
    /// Read whole.
    Whole(Bytes),
    /// Still coming: what was read, the rest, and what becomes of the connection after it.
    Stream {
        prefix: Bytes,
        rest: Incoming,
        back: Return,
    },
}

impl ReplyBody {
    /// The bytes, where all are here.
    pub(crate) fn whole(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Stream { .. } => None,
        }
    }
}

/// One call on its way to the upstream.
pub(crate) struct Sending<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) call: &'a Call,
    /// Index of the account whose key is used.
    pub(crate) account: usize,
    pub(crate) client: usize,
    /// Prepared: hop-by-hop fields and credentials gone, the key in.
    pub(crate) head: http::request::Parts,
    pub(crate) held: Held,
    pub(crate) pending: Option<&'a mut Pending>,
    /// Watched between attempts: nobody pays for another one that nobody waits for.
    pub(crate) caller: Option<&'a watch::Sender<Outcomes>>,
}

struct Failed {
    outcome: Outcome,
    rejection: Rejection,
}

impl Sending<'_> {
    /// Sends with retries. Every attempt but the first waits for its own turn.
    pub(crate) async fn send(mut self, mut permit: Permit, seq: u64) -> Result<Reply, Unanswered> {
        let app = &self.worker.app;
        let begun = Instant::now();
        let attempt_timeout = app.attempt_timeout(self.call.family);
        let deadline = begun + app.total_timeout.max(attempt_timeout);
        app.account(self.account).budget().first(begun);
        let metered = permit.is_metered();
        for attempt in 1.. {
            let until = deadline.min(Instant::now() + attempt_timeout);
            let result = self.attempt(permit, until, attempt, attempt_timeout).await;
            let now = Instant::now();
            let (outcome, retry_after) = match &result {
                Ok(reply) => (
                    Outcome::Answer(reply.head.status),
                    Feedback::read(&reply.head.headers, app.clock.wall()).retry_after,
                ),
                Err(failed) => (failed.outcome, None),
            };
            app.metrics.attempt(self.account, self.call.class, outcome);
            let tried = Tried {
                attempt,
                outcome,
                repeatable: self.call.repeatable,
                replayable: self.held.is_there(),
                retry_after,
                left: deadline.saturating_duration_since(now),
            };
            let account = app.account(self.account);
            let next = app
                .retry
                .next(tried, fastrand::f64(), || account.budget().withdraw(now));
            if next == Next::Stop {
                return self.finish(result, attempt, begun);
            }
            app.metrics.retry(self.account, outcome);
            let kept = keep(result).await;
            let ask = Ask {
                client: self.client,
                class: self.call.class,
                slot: false,
                again: Some(seq),
                deadline,
            };
            let again = async {
                match next {
                    Next::After(wait) => tokio::time::sleep(wait).await,
                    Next::Turn if !metered => tokio::time::sleep(retry_after.unwrap_or(app.retry.max_backoff)).await,
                    Next::Turn | Next::Stop => {}
                }
                if metered {
                    account.queue.turn(ask).await.ok()
                } else {
                    Some(account.queue.unmetered(self.client))
                }
            };
            let turn = tokio::select! {
                turn = again => turn,
                () = gone(self.caller) => None,
            };
            // The deadline came first, or the caller left: the last answer is passed on, if there was one.
            let Some(turn) = turn else {
                return self.finish(kept, attempt, begun);
            };
            permit = turn.permit;
        }
        unreachable!("an attempt is the last one sooner or later")
    }

    fn finish(&self, result: Result<Reply, Failed>, attempts: u32, begun: Instant) -> Result<Reply, Unanswered> {
        let upstream = begun.elapsed();
        match result {
            Ok(reply) => Ok(Reply {
                attempts,
                upstream,
                ..reply
            }),
            Err(failed) => {
                let rejection = match failed.rejection {
                    Rejection::UpstreamUnreachable { reason, .. } => {
                        Rejection::UpstreamUnreachable { reason, attempts }
                    }
                    Rejection::OutcomeUnknown { .. } => Rejection::OutcomeUnknown { attempts },
                    Rejection::UpstreamTimeout { after, .. } => Rejection::UpstreamTimeout { after, attempts },
                    other => other,
                };
                Err(Unanswered {
                    rejection,
                    attempts,
                    upstream,
                })
            }
        }
    }

    async fn attempt(
        &mut self,
        mut permit: Permit,
        until: Instant,
        attempt: u32,
        timeout: Duration,
    ) -> Result<Reply, Failed> {
        let trouble = Trouble::default();
        let fresh = !self.call.repeatable;
        for reconnect in 1.. {
            let connecting = tokio::time::timeout_at(until, self.worker.upstream.ready(fresh)).await;
            let connection = match connecting {
                Ok(Ok(connection)) => connection,
                Ok(Err(failure)) => return Err(unsent(failure.0)),
                Err(_) => return Err(unsent(Unreachable::Timeout)),
            };
            let Some(body) = self.worker.app.bodies.send(&mut self.held, &trouble) else {
                break;
            };
            let mut request = Request::new(body);
            *request.method_mut() = self.head.method.clone();
            *request.headers_mut() = self.head.headers.clone();
            if connection.is_h2() {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = self.worker.app.target.absolute(&self.head.uri);
                request.headers_mut().remove(http::header::HOST);
            } else {
                *request.uri_mut() = self.head.uri.clone();
            }
            permit.sent();
            if let Some(pending) = &mut self.pending {
                pending.sending();
            }
            match tokio::time::timeout_at(until, connection.send(request)).await {
                Ok(Ok((response, back))) => {
                    let (head, rest) = response.into_parts();
                    self.listen(permit, &head);
                    return self.read(head, rest, back, timeout).await;
                }
                Ok(Err(SendError::Unsent(body))) => {
                    permit.unsent();
                    self.held.take_back(body);
                    if let Some(pending) = &mut self.pending {
                        pending.not_done();
                    }
                    if reconnect > RECONNECTS {
                        return Err(unsent(Unreachable::Broken));
                    }
                }
                Ok(Err(SendError::Silent(error))) => return Err(self.silent(&trouble, &error, attempt)),
                Err(_) => {
                    let rejection = if self.call.repeatable {
                        Rejection::UpstreamTimeout {
                            after: timeout,
                            attempts: attempt,
                        }
                    } else {
                        Rejection::OutcomeUnknown { attempts: attempt }
                    };
                    return Err(Failed {
                        outcome: Outcome::Silent,
                        rejection,
                    });
                }
            }
        }
        Err(Failed {
            outcome: Outcome::Unsent,
            rejection: Rejection::Internal,
        })
    }

    /// Tells the books what the answer's head says.
    fn listen(&mut self, permit: Permit, head: &response::Parts) {
        let app = &self.worker.app;
        let account = app.account(self.account);
        let feedback = Feedback::read(&head.headers, app.clock.wall());
        let refused = (head.status == StatusCode::TOO_MANY_REQUESTS).then(|| {
            let for_jobs = match feedback.remaining {
                Some(left) => left > 0,
                None => account.queue.jobs_are_at_the_limit(),
            };
            if self.call.class == Class::Create && for_jobs {
                Refused::Jobs
            } else {
                Refused::Window
            }
        });
        if let Some(refused) = refused {
            app.metrics.upstream_429(self.account, refused);
        }
        if permit.answered(feedback, refused) {
            tracing::warn!(
                account = account.name,
                "the upstream answered 429 although its plan was kept: attempts are evenly spaced from now on (pacing = \"auto\")"
            );
        }
        if let Some(pending) = &mut self.pending
            && (head.status.is_client_error() || head.status.is_server_error())
            && !may_have_been_done(head.status)
        {
            pending.not_done();
        }
    }

    /// Reads the answers that tell of jobs; others are passed on as they come.
    async fn read(
        &mut self,
        head: response::Parts,
        mut rest: Incoming,
        back: Return,
        timeout: Duration,
    ) -> Result<Reply, Failed> {
        let reply = |head, body| {
            Ok(Reply {
                head,
                body,
                attempts: 0,
                upstream: Duration::ZERO,
            })
        };
        if !self.call.observed() {
            return reply(
                head,
                ReplyBody::Stream {
                    prefix: Bytes::new(),
                    rest,
                    back,
                },
            );
        }
        let idle = self.worker.app.idle_timeout.min(timeout);
        let creates = self.call.class == Class::Create;
        let max_body = usize::try_from(self.worker.app.max_body_bytes).unwrap_or(usize::MAX);
        match collect(&mut rest, idle, if creates { max_body } else { OBSERVED_BYTES }).await {
            Collected::Whole(bytes) => {
                back.whole();
                reply(head, ReplyBody::Whole(bytes))
            }
            Collected::Longer(_) if creates => Err(Failed {
                outcome: Outcome::Silent,
                rejection: Rejection::BadUpstreamAnswer("it is longer than server.max_body"),
            }),
            Collected::Longer(prefix) => reply(head, ReplyBody::Stream { prefix, rest, back }),
            Collected::Broken if self.call.repeatable => Err(Failed {
                outcome: Outcome::Silent,
                rejection: Rejection::BadUpstreamAnswer("it broke off before its end"),
            }),
            Collected::Broken if head.status.is_success() || may_have_been_done(head.status) => Err(Failed {
                outcome: Outcome::Silent,
                rejection: Rejection::OutcomeUnknown { attempts: 0 },
            }),
            // A refusal whose explanation broke off is still a refusal.
            Collected::Broken => reply(head, ReplyBody::Whole(Bytes::new())),
        }
    }

    fn silent(&mut self, trouble: &Trouble, error: &hyper::Error, attempt: u32) -> Failed {
        if let Some(rejection) = trouble.take() {
            // The caller's body broke off: the upstream never had the whole request.
            if let Some(pending) = &mut self.pending {
                pending.not_done();
            }
            return Failed {
                outcome: Outcome::Silent,
                rejection,
            };
        }
        if refused_stream(error) {
            if let Some(pending) = &mut self.pending {
                pending.not_done();
            }
            return unsent(Unreachable::Broken);
        }
        tracing::debug!(%error, attempt, "no answer from the upstream");
        let rejection = if self.call.repeatable {
            Rejection::BadUpstreamAnswer("the connection broke before the answer")
        } else {
            Rejection::OutcomeUnknown { attempts: attempt }
        };
        Failed {
            outcome: Outcome::Silent,
            rejection,
        }
    }
}

fn unsent(reason: Unreachable) -> Failed {
    Failed {
        outcome: Outcome::Unsent,
        rejection: Rejection::UpstreamUnreachable { reason, attempts: 0 },
    }
}

/// HTTP/2 says so itself when a stream was never processed (RFC 9113 §8.7).
fn refused_stream(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = cause.source();
    }
    false
}

enum Collected {
    Whole(Bytes),
    Longer(Bytes),
    Broken,
}

async fn collect(body: &mut Incoming, idle: Duration, most: usize) -> Collected {
    let mut whole = BytesMut::new();
    loop {
        match tokio::time::timeout(idle, body.frame()).await {
            Ok(None) => return Collected::Whole(whole.freeze()),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    whole.extend_from_slice(&data);
                }
            }
            Ok(Some(Err(_))) | Err(_) => return Collected::Broken,
        }
        if whole.len() > most {
            return Collected::Longer(whole.freeze());
        }
    }
}

/// Keeps an answer that will be tried again, in case there is no other; reading it gives its connection back.
async fn keep(result: Result<Reply, Failed>) -> Result<Reply, Failed> {
    let Ok(mut reply) = result else { return result };
    if let ReplyBody::Stream { mut rest, back, .. } = reply.body {
        reply.body = match collect(&mut rest, Duration::from_secs(1), KEPT_BYTES).await {
            Collected::Whole(bytes) => {
                back.whole();
                ReplyBody::Whole(bytes)
            }
            Collected::Longer(_) | Collected::Broken => ReplyBody::Whole(Bytes::new()),
        };
    }
    Ok(reply)
}

/// Where attempts go.
pub(crate) struct Target {
    scheme: uri::Scheme,
    authority: uri::Authority,
    /// The authority as a Host field.
    pub(crate) host: http::HeaderValue,
    prefix: String,
}

impl Target {
    /// From a URL that has a scheme and an authority; `None` otherwise.
    pub(crate) fn new(url: &Uri) -> Option<Self> {
        let authority = url.authority()?.clone();
        let host = http::HeaderValue::from_str(authority.as_str()).ok()?;
        let prefix = url.path().trim_end_matches('/').to_owned();
        Some(Self {
            scheme: url.scheme()?.clone(),
            authority,
            host,
            prefix,
        })
    }

    /// The target of an attempt: the caller's path and query byte for byte, below the upstream's prefix.
    pub(crate) fn origin_form(&self, path: &str, query: Option<&str>) -> Option<Uri> {
        let mut target = format!("{}{path}", self.prefix);
        if let Some(query) = query.filter(|query| !query.is_empty()) {
            target.push('?');
            target.push_str(query);
        }
        target.parse().ok()
    }

    fn absolute(&self, origin_form: &Uri) -> Uri {
        let mut parts = origin_form.clone().into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        Uri::from_parts(parts).unwrap_or_else(|_| origin_form.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn policy(creates: RetryCreates) -> config::Retry {
        config::Retry {
            max_attempts: NonZeroU32::new(4).expect("not zero"),
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(30),
            statuses: [408, 429, 500, 502, 503, 504]
                .map(|code| StatusCode::from_u16(code).expect("a status"))
                .to_vec(),
            creates,
            budget: 0.2,
            budget_floor: 10,
        }
    }

    fn tried(outcome: Outcome, repeatable: bool) -> Tried {
        let left = Duration::from_secs(100);
        Tried {
            attempt: 1,
            outcome,
            repeatable,
            replayable: true,
            retry_after: None,
            left,
        }
    }

    fn status(code: u16) -> Outcome {
        Outcome::Answer(StatusCode::from_u16(code).expect("a status"))
    }

    fn again(creates: RetryCreates, tried: Tried) -> bool {
        policy(creates).next(tried, 0.5, || true) != Next::Stop
    }

    #[test]
    fn what_is_safe_to_repeat_is_repeated_on_every_listed_status_and_network_error() {
        for code in [408, 429, 500, 502, 503, 504] {
            assert!(again(RetryCreates::Never, tried(status(code), true)), "{code}");
        }
        assert!(again(RetryCreates::Never, tried(Outcome::Silent, true)));
        assert!(again(RetryCreates::Never, tried(Outcome::Unsent, true)));
        for code in [200, 400, 401, 402, 404, 409, 422, 501] {
            assert!(!again(RetryCreates::Documented, tried(status(code), true)), "{code}");
        }
    }

    #[test]
    fn a_create_that_may_have_run_in_silence_is_never_sent_again() {
        for creates in [RetryCreates::Documented, RetryCreates::Safe, RetryCreates::Never] {
            assert!(!again(creates, tried(Outcome::Silent, false)));
        }
    }

    #[test]
    fn the_setting_decides_about_creates() {
        let table = [
            (RetryCreates::Documented, [true, true, true, true]),
            (RetryCreates::Safe, [true, true, false, true]),
            (RetryCreates::Never, [false, false, false, false]),
        ];
        for (creates, expected) in table {
            let outcomes = [status(429), status(503), status(500), Outcome::Unsent];
            assert_eq!(
                outcomes.map(|outcome| again(creates, tried(outcome, false))),
                expected,
                "{creates:?}"
            );
        }
    }

    #[test]
    fn attempts_deadline_and_body_end_the_call() {
        let last = Tried {
            attempt: 4,
            ..tried(status(503), true)
        };
        let long = Tried {
            retry_after: Some(Duration::from_secs(101)),
            ..tried(status(429), true)
        };
        let gone = Tried {
            replayable: false,
            ..tried(status(503), true)
        };
        for stop in [last, long, gone] {
            assert!(!again(RetryCreates::Documented, stop));
        }
        let broke = policy(RetryCreates::Documented).next(tried(status(503), true), 0.5, || false);
        assert_eq!(broke, Next::Stop, "the budget is spent");
        let quota = policy(RetryCreates::Documented).next(tried(status(429), true), 0.5, || false);
        assert_eq!(quota, Next::Turn, "waiting for quota costs no budget");
    }

    proptest! {
        #[test]
        fn backoff_is_jittered_capped_and_never_below_retry_after(
            attempt in 1_u32..4,
            dice in 0.0_f64..1.0,
            floor in prop::option::of(0_u64..90),
        ) {
            let retry_after = floor.map(Duration::from_secs);
            let tried = Tried { attempt, retry_after, ..tried(status(503), true) };
            let Next::After(wait) = policy(RetryCreates::Documented).next(tried, dice, || true) else {
                return Err(TestCaseError::fail("it is tried again"));
            };
            let floor = retry_after.unwrap_or_default();
            prop_assert!(wait >= floor);
            prop_assert!(wait <= floor.max(Duration::from_secs(1 << (attempt - 1))));
        }
    }

    #[test]
    fn paths_go_up_byte_for_byte_below_the_prefix() {
        let target = Target::new(&"https://api.example.test/base/".parse().expect("a URL")).expect("a target");
        let uri = target.origin_form("/v1/a%2Fb/x:y//z", Some("q=%41&&")).expect("valid");
        assert_eq!(uri, "/base/v1/a%2Fb/x:y//z?q=%41&&");
        assert_eq!(
            target.absolute(&uri),
            "https://api.example.test/base/v1/a%2Fb/x:y//z?q=%41&&"
        );
    }
}
