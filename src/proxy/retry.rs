//! All attempts of one call: each on a connection that is ready, with a permit of its own; what comes back decides about the next.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, Request, StatusCode, Version, response};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Amount;
use crate::config::RouteAuth;
use crate::credits::hold::Hold;
use crate::protocol::Protocol;

use super::Worker;
use super::body::{Held, SendBody, Upload};
use super::classify::Call;
use super::create::Outcome as Outcomes;
use super::dispatch::gone;
use super::jobs::{Pending, may_have_been_done};
use super::queue::{Ask, Class, Permit};
use super::quota::Refused;
use super::quota::feedback::Feedback;
use super::rejection::{Rejection, Unreachable};
use super::response::framing;
use super::upstream::{Answer, Connection, NotReady, SendError};

pub(crate) use self::budget::Budget;
pub(crate) use self::policy::{Next, Outcome, Tried};

/// Whether to try again.
mod policy;

/// Retries as a share of first attempts.
mod budget;

/// Answers that are read before they are passed on may be this long; longer ones stream on unread.
pub(crate) const OBSERVED_BYTES: usize = 16 << 20;
/// What is kept of an answer that will be tried again.
const KEPT_BYTES: usize = 64 * 1024;
/// A connection that fails before anything is written is replaced this often without counting as an attempt.
const RECONNECTS: u32 = 3;
/// Pauses in the body of a refusal that may say how long to wait.
const EXPLAINED_WITHIN: Duration = Duration::from_secs(1);

/// What a call got in the end.
pub(crate) struct Reply {
    pub(crate) head: response::Parts,
    pub(crate) body: ReplyBody,
    pub(crate) attempts: u32,
    /// From the first dispatch to the last response head.
    pub(crate) upstream: Duration,
}

impl Reply {
    fn new(head: response::Parts, body: ReplyBody) -> Self {
        Self { head, body, attempts: 0, upstream: Duration::ZERO }
    }
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
    /// Still coming: what was read, and the rest.
    Stream { prefix: Bytes, rest: Answer },
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
    pub(crate) head: &'a mut http::request::Parts,
    /// The fields of `head`, while an attempt has them.
    pub(crate) kept: Vec<(HeaderName, HeaderValue)>,
    pub(crate) held: &'a mut Held,
    pub(crate) pending: Option<&'a mut Pending>,
    /// What it costs, where it costs anything.
    pub(crate) hold: Option<&'a mut Hold>,
    /// Watched between attempts: nobody pays for another one that nobody waits for.
    pub(crate) caller: Option<&'a watch::Sender<Outcomes>>,
    /// No connection to the upstream is waited for beyond this: its caller does not want to wait longer before anything is sent.
    pub(crate) patience: Instant,
    /// When something last happened: at first when it has its turn, later when an answer's head came.
    pub(crate) now: Instant,
}

struct Failed {
    outcome: Outcome,
    rejection: Rejection,
}

impl Sending<'_> {
    /// Sends with retries. Every attempt but the first waits for its own turn.
    pub(crate) async fn send(&mut self, mut permit: Permit, seq: u64) -> Result<Reply, Unanswered> {
        let app = &self.worker.app;
        let begun = self.now;
        let attempt_timeout = app.attempt_timeout(self.call);
        let deadline = begun + app.total_timeout.max(attempt_timeout);
        app.account(self.account).budget().first(begun);
        let (metered, mut renewed) = (permit.is_metered(), false);
        let mut now = begun;
        for attempt in 1.. {
            let result = loop {
                if app.is_superseded() {
                    self.take_newest_key();
                }
                let until = deadline.min(now + attempt_timeout);
                let result = self.attempt(permit, until, attempt, attempt_timeout).await;
                // The circuit opened while the call waited for its turn: it was no attempt, and it waits again.
                if !matches!(&result, Err(failed) if matches!(failed.rejection, Rejection::CircuitOpen { .. })) {
                    break result;
                }
                // Boxed, as it is rare: every request's future would be larger by it.
                let again = Box::pin(self.once_reachable(seq, metered, begun, deadline)).await;
                now = Instant::now();
                permit = match again {
                    Ok(permit) => permit,
                    Err(rejection) => {
                        return finish(Err(Failed { outcome: Outcome::Unsent, rejection }), attempt - 1, now - begun);
                    }
                };
            };
            now = match &result {
                // It streams on; others have been read.
                Ok(Reply { body: ReplyBody::Stream { .. }, .. }) if !self.call.observed() => self.now,
                _ => Instant::now(),
            };
            let (outcome, retry_after) = match &result {
                Ok(reply) => (
                    Outcome::Answer(reply.head.status),
                    // Of no use with an answer that ends the call.
                    (!reply.head.status.is_success())
                        .then(|| Feedback::read(&reply.head.headers, || app.clock.wall()).retry_after)
                        .flatten(),
                ),
                Err(failed) => (failed.outcome, None),
            };
            app.account(self.account).counters.attempt(self.call.class, outcome);
            let tried = Tried {
                attempt,
                outcome,
                repeatable: self.call.repeatable,
                replayable: self.held.is_there(),
                retry_after,
                left: deadline.saturating_duration_since(now),
            };
            let account = app.account(self.account);
            if !renewed && self.is_key_refused(&result) {
                renewed = true;
                // Boxed, as it is rare: every request's future would be larger by it.
                let again = Box::pin(self.with_another_key(result, seq, metered, deadline)).await;
                now = Instant::now();
                match again {
                    Ok(again) => permit = again,
                    Err(result) => return finish(result, attempt, now - begun),
                }
                account.counters.retry(outcome);
                continue;
            }
            let next = app.retry.next(tried, fastrand::f64(), || account.budget().withdraw(now));
            if next == Next::Stop {
                return finish(result, attempt, now - begun);
            }
            account.counters.retry(outcome);
            // From here on it is rare, and boxed: every request's future would be larger by it.
            let kept = Box::pin(keep(result)).await;
            let ask = self.ask_again(seq, deadline);
            let again = async {
                match next {
                    Next::After(wait) => tokio::time::sleep(wait).await,
                    Next::Turn if !metered => tokio::time::sleep(retry_after.unwrap_or(app.retry.max_backoff)).await,
                    Next::Turn | Next::Stop => {}
                }
                if metered { account.queue.turn(ask).await.ok() } else { Some(account.queue.unmetered(self.client)) }
            };
            let turn = Box::pin(async {
                tokio::select! {
                    biased;
                    turn = again => turn,
                    () = gone(self.caller) => None,
                }
            });
            // The deadline came first, or the caller left: the last answer is passed on, if there was one.
            let turn = turn.await;
            now = Instant::now();
            let Some(turn) = turn else {
                return finish(kept, attempt, now - begun);
            };
            permit = turn.permit;
        }
        Err(Unanswered { rejection: Rejection::Internal, attempts: 0, upstream: begun.elapsed() })
    }

    /// For one more turn, in the old place. What the call costs is reserved already.
    fn ask_again(&self, seq: u64, deadline: Instant) -> Ask {
        let (client, class) = (self.client, self.call.class);
        Ask { client, class, slot: false, again: Some(seq), price: Amount::ZERO, deadline }
    }

    /// A reload may have brought another key while the call waited.
    fn take_newest_key(&mut self) {
        if self.call.auth == RouteAuth::Account {
            self.take_back();
            let (name, value) = self.worker.reloader.header(self.account, self.call.family);
            self.head.headers.insert(name, value);
        }
    }

    /// The upstream does not know the key that we have put in, and the request can be sent again: a 401 says that nothing was done.
    fn is_key_refused(&self, result: &Result<Reply, Failed>) -> bool {
        let refused = matches!(result, Ok(reply) if reply.head.status == StatusCode::UNAUTHORIZED);
        refused && self.call.auth == RouteAuth::Account && self.held.is_there()
    }

    /// Puts in a key that has replaced the refused one meanwhile, and waits for another turn. Without either the refusal is passed on.
    async fn with_another_key(
        &mut self,
        result: Result<Reply, Failed>,
        seq: u64,
        metered: bool,
        deadline: Instant,
    ) -> Result<Permit, Result<Reply, Failed>> {
        self.take_back();
        let reloader = &self.worker.reloader;
        let (name, _) = reloader.header(self.account, self.call.family);
        let Some(used) = self.head.headers.get(&name) else { return Err(result) };
        let other = tokio::time::timeout_at(deadline, reloader.renew(self.account, self.call.family, used)).await;
        let Ok(Some((name, value))) = other else { return Err(result) };
        let kept = keep(result).await;
        self.head.headers.insert(name, value);
        // The key's own book, should a reload have given it another one.
        let latest = reloader.latest();
        let queue = &latest.account(self.account).queue;
        if !metered {
            return Ok(queue.unmetered(self.client).permit);
        }
        let ask = self.ask_again(seq, deadline);
        tokio::select! {
            turn = queue.turn(ask) => turn.map(|turn| turn.permit).map_err(|_| kept),
            () = gone(self.caller) => Err(kept),
        }
    }

    /// Waits for the circuit to close, then for another turn in the old place.
    async fn once_reachable(
        &self,
        seq: u64,
        metered: bool,
        begun: Instant,
        deadline: Instant,
    ) -> Result<Permit, Rejection> {
        let app = &self.worker.app;
        let queue = &app.account(self.account).queue;
        let ask = self.ask_again(seq, deadline);
        let turn = async {
            self.worker.upstream.reachable(!self.call.repeatable, deadline.min(self.patience)).await?;
            if !metered {
                return Ok(queue.unmetered(self.client));
            }
            queue.turn(ask).await.map_err(|no| app.no_turn(self.account, self.client, no, begun, deadline - begun))
        };
        tokio::select! {
            turn = turn => turn.map(|turn| turn.permit),
            () = app.drained.cancelled() => Err(Rejection::Draining),
            () = gone(self.caller) => Err(Rejection::BadRequest("the caller left")),
        }
    }

    /// A new connection, or one that has come free meanwhile.
    async fn connect(&self, until: Instant) -> Result<Connection, Failed> {
        let upstream = &self.worker.upstream;
        match tokio::time::timeout_at(until, upstream.ready(!self.call.repeatable)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(NotReady::Failed(failure))) => Err(unsent(failure.0)),
            Ok(Err(NotReady::Open(retry_in))) => {
                Err(Failed { outcome: Outcome::Unsent, rejection: Rejection::CircuitOpen { retry_in } })
            }
            Err(_) => {
                upstream.too_slow();
                Err(unsent(Unreachable::Timeout))
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
        let fresh = !self.call.repeatable;
        let streamed = self.held.is_streamed();
        let upload = Upload::new(streamed);
        let mut broken = 0;
        loop {
            let (connection, new) = match self.worker.upstream.pooled(fresh) {
                Some(connection) => (connection, false),
                // Boxed, as it is rare: every request's future would be larger by it.
                None => (Box::pin(self.connect(until)).await?, true),
            };
            if permit.is_stale() {
                return Err(unsent(Unreachable::Timeout));
            }
            let Some(body) = self.worker.app.bodies.send(self.held, &upload) else {
                return Err(Failed { outcome: Outcome::Unsent, rejection: Rejection::Internal });
            };
            let request = self.request(body, connection.is_h2());
            permit.sent();
            self.sending();
            let idle = self.worker.app.idle_timeout;
            let answer = if streamed {
                // Boxed, as it is rare: every request's future would be larger by it.
                Box::pin(async {
                    tokio::select! {
                        biased;
                        answer = connection.send(request, None) => answer,
                        // An upload takes the time that its caller needs; the clock of the answer starts when it is through.
                        () = upload.stuck(idle, timeout) => Err(SendError::TooLate),
                    }
                })
                .await
            } else {
                connection.send(request, Some(until)).await
            };
            match answer {
                Ok((mut head, mut rest)) => {
                    self.now = Instant::now();
                    self.worker.upstream.answered();
                    if let Err(broken) = framing::check(&mut head) {
                        return Err(self.broken(broken, attempt));
                    }
                    if self.explains_in_its_body(&head) {
                        // Boxed, as it is rare: every request's future would be larger by it.
                        let read = Box::pin(told_in_the_body(&self.worker.app.protocol, &mut head, &mut rest)).await;
                        self.listen(permit, &head);
                        return Ok(Reply::new(head, read.into_body(rest)));
                    }
                    self.listen(permit, &head);
                    return self.read(head, rest, timeout).await;
                }
                Err(SendError::Unsent(body)) => {
                    permit.unsent();
                    self.held.take_back(body);
                    self.not_done();
                    // An idle connection may have been closed meanwhile, and so may all of them.
                    broken += u32::from(new);
                    if broken > RECONNECTS {
                        return Err(unsent(Unreachable::Broken));
                    }
                }
                Err(SendError::Silent(error)) => return Err(self.silent(&upload, &error, attempt)),
                Err(SendError::Flooded) => {
                    return Err(self.broken("it is announced again and again (1xx), but does not come", attempt));
                }
                Err(SendError::TooLate) => {
                    let rejection = if self.call.repeatable {
                        Rejection::UpstreamTimeout { after: timeout, attempts: attempt }
                    } else {
                        Rejection::OutcomeUnknown { attempts: attempt }
                    };
                    return Err(Failed { outcome: Outcome::Silent, rejection });
                }
            }
        }
    }

    /// The request as it is written. The map of its fields goes with it, as hyper puts the answer's into the same; what another attempt
    /// needs is kept in a list, which takes half of what a copy of the map takes.
    fn request(&mut self, body: SendBody, h2: bool) -> Request<SendBody> {
        self.take_back();
        self.kept.reserve_exact(self.head.headers.len());
        self.kept.extend(self.head.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.headers_mut() = std::mem::take(&mut self.head.headers);
        if h2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.worker.app.target.absolute(&self.head.uri);
            request.headers_mut().remove(http::header::HOST);
        } else {
            *request.uri_mut() = self.head.uri.clone();
        }
        request
    }

    /// The fields are there again, after an attempt.
    fn take_back(&mut self) {
        for (name, value) in self.kept.drain(..) {
            self.head.headers.append(name, value);
        }
    }

    /// A 429 that may say only in its body how long to wait.
    fn explains_in_its_body(&self, head: &response::Parts) -> bool {
        let silent = head.status == StatusCode::TOO_MANY_REQUESTS && !head.headers.contains_key(RETRY_AFTER);
        silent && self.worker.app.protocol.wait.is_some()
    }

    /// Tells the books what the answer's head says.
    fn listen(&mut self, permit: Permit, head: &response::Parts) {
        let app = &self.worker.app;
        let account = app.account(self.account);
        let feedback = Feedback::read(&head.headers, || app.clock.wall());
        let refused = (head.status == StatusCode::TOO_MANY_REQUESTS).then(|| {
            let for_jobs = match feedback.remaining {
                Some(left) => left > 0,
                None => account.queue.jobs_are_at_the_limit(),
            };
            if self.call.class == Class::Create && for_jobs { Refused::Jobs } else { Refused::Window }
        });
        if let Some(refused) = refused {
            account.counters.refused(refused, app.clock.wall());
        }
        if permit.answered(feedback, refused, self.now) {
            tracing::warn!(
                account = account.name,
                "the upstream answered 429 although its plan was kept: attempts are evenly spaced from now on (pacing = \"auto\")"
            );
        }
        if (head.status.is_client_error() || head.status.is_server_error()) && !may_have_been_done(head.status) {
            self.not_done();
        }
    }

    /// From now on it may have been carried out.
    fn sending(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.sending();
        }
        if let Some(hold) = &mut self.hold {
            hold.sending();
        }
    }

    /// This attempt was provably not carried out.
    fn not_done(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.not_done();
        }
        if let Some(hold) = &mut self.hold {
            hold.not_done();
        }
    }

    /// Reads the answers that tell of jobs; others are passed on as they come.
    async fn read(&mut self, head: response::Parts, mut rest: Answer, timeout: Duration) -> Result<Reply, Failed> {
        let reply = |head, body| Ok(Reply::new(head, body));
        if !self.call.observed() {
            return reply(head, ReplyBody::Stream { prefix: Bytes::new(), rest });
        }
        let idle = self.worker.app.idle_timeout.min(timeout);
        let creates = self.call.class == Class::Create;
        let max_body = usize::try_from(self.worker.app.max_body_bytes).unwrap_or(usize::MAX);
        match collect(&mut rest, idle, if creates { max_body } else { OBSERVED_BYTES }).await {
            Collected::Whole(bytes) => reply(head, ReplyBody::Whole(bytes)),
            Collected::Longer(_) if creates => Err(Failed {
                outcome: Outcome::Silent,
                rejection: Rejection::BadUpstreamAnswer { how: "it is longer than server.max_body", attempts: 0 },
            }),
            Collected::Longer(prefix) => reply(head, ReplyBody::Stream { prefix, rest }),
            Collected::Broken if self.call.repeatable => Err(Failed {
                outcome: Outcome::Silent,
                rejection: Rejection::BadUpstreamAnswer { how: "it broke off before its end", attempts: 0 },
            }),
            Collected::Broken if head.status.is_success() || may_have_been_done(head.status) => {
                Err(Failed { outcome: Outcome::Silent, rejection: Rejection::OutcomeUnknown { attempts: 0 } })
            }
            // A refusal whose explanation broke off is still a refusal.
            Collected::Broken => reply(head, ReplyBody::Whole(Bytes::new())),
        }
    }

    fn silent(&mut self, upload: &Upload, error: &hyper::Error, attempt: u32) -> Failed {
        if let Some(rejection) = upload.trouble() {
            // The caller's body broke off: the upstream never had the whole request.
            self.not_done();
            return Failed { outcome: Outcome::Silent, rejection };
        }
        if refused_stream(error) {
            self.not_done();
            return unsent(Unreachable::Broken);
        }
        tracing::debug!(%error, attempt, "no answer from the upstream");
        let how = match error {
            error if error.is_parse_too_large() => "its head is too long, or has too many fields",
            error if error.is_parse() => "it is not HTTP",
            _ => "the connection broke before the answer",
        };
        self.broken(how, attempt)
    }

    /// There is no answer that could be passed on, but the request may have been carried out.
    fn broken(&self, how: &'static str, attempt: u32) -> Failed {
        let rejection = if self.call.repeatable {
            Rejection::BadUpstreamAnswer { how, attempts: attempt }
        } else {
            tracing::warn!(how, attempt, "the upstream's answer is broken: what became of the request is unknown");
            Rejection::OutcomeUnknown { attempts: attempt }
        };
        Failed { outcome: Outcome::Silent, rejection }
    }
}

/// Says how often the call was tried.
fn finish(result: Result<Reply, Failed>, attempts: u32, upstream: Duration) -> Result<Reply, Unanswered> {
    let rejection = match result {
        Ok(reply) => return Ok(Reply { attempts, upstream, ..reply }),
        Err(failed) => failed.rejection,
    };
    let rejection = match rejection {
        Rejection::UpstreamUnreachable { reason, .. } => Rejection::UpstreamUnreachable { reason, attempts },
        Rejection::OutcomeUnknown { .. } => Rejection::OutcomeUnknown { attempts },
        Rejection::BadUpstreamAnswer { how, .. } => Rejection::BadUpstreamAnswer { how, attempts },
        Rejection::UpstreamTimeout { after, .. } => Rejection::UpstreamTimeout { after, attempts },
        other => other,
    };
    Err(Unanswered { rejection, attempts, upstream })
}

fn unsent(reason: Unreachable) -> Failed {
    Failed { outcome: Outcome::Unsent, rejection: Rejection::UpstreamUnreachable { reason, attempts: 0 } }
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

impl Collected {
    /// What is passed on of a refusal that was read.
    fn into_body(self, rest: Answer) -> ReplyBody {
        match self {
            Self::Whole(bytes) => ReplyBody::Whole(bytes),
            Self::Longer(prefix) => ReplyBody::Stream { prefix, rest },
            // A refusal whose explanation broke off is still a refusal.
            Self::Broken => ReplyBody::Whole(Bytes::new()),
        }
    }
}

async fn collect(answer: &mut Answer, idle: Duration, most: usize) -> Collected {
    let mut whole = BytesMut::new();
    loop {
        match tokio::time::timeout(idle, poll_fn(|cx| answer.poll_frame(cx))).await {
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

/// Reads a refusal that says in its body how long to wait, and says it as `Retry-After`, where the rest of the way and the caller look.
async fn told_in_the_body(protocol: &Protocol, head: &mut response::Parts, rest: &mut Answer) -> Collected {
    let read = collect(rest, EXPLAINED_WITHIN, KEPT_BYTES).await;
    if let Collected::Whole(body) = &read
        && let Some(wait) = protocol.wait(body)
    {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        head.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    read
}

/// Keeps an answer that will be tried again, in case there is no other; reading it gives its connection back.
async fn keep(result: Result<Reply, Failed>) -> Result<Reply, Failed> {
    let Ok(mut reply) = result else { return result };
    if let ReplyBody::Stream { mut rest, .. } = reply.body {
        reply.body = match collect(&mut rest, Duration::from_secs(1), KEPT_BYTES).await {
            Collected::Whole(bytes) => ReplyBody::Whole(bytes),
            Collected::Longer(_) | Collected::Broken => ReplyBody::Whole(Bytes::new()),
        };
    }
    Ok(reply)
}
