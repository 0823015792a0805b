//! The way of one request, top to bottom: `forward` is the table of contents, the modules below are its steps in order.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::reload::Reloader;

use self::accept::{Answered, Refused};
use self::body::Inbound;
use self::classify::Call;
use self::dispatch::{Outgoing, Passed, Refusal};
use self::finish::{Finish, Record};
use self::queue::Class;
use self::rejection::Rejection;
use self::response::RelayBody;
use self::upstream::Upstream;

pub(crate) use self::parts::{Account, App, Lasting};

/// Connections from callers, spread over the workers.
pub(crate) mod accept;

/// Header-only refusals: method, target, size, Host, Origin.
pub(crate) mod guard;

/// Pages of allowed origins may read their answers.
mod cors;

/// Which client calls.
pub(crate) mod identify;

/// What kind of call it is.
pub(crate) mod classify;

/// Bodies held for the queue and for retries, or streamed once.
pub(crate) mod body;

/// Answers that need no attempt: the last state of a job.
mod known;

/// What the account's environment may ask for.
pub(crate) mod rules;

/// What it costs.
pub(crate) mod cost;

/// Creates run in tasks of their own and may carry an idempotency key.
pub(crate) mod create;

/// Polls that only the upstream can answer, one at a time for each job.
pub(crate) mod join;

/// The rest of the way, from the queue to the answer.
pub(crate) mod dispatch;

/// Its place among those who wait, and the permission to go.
pub(crate) mod queue;

/// How much may leave.
pub(crate) mod quota;

/// Live jobs and their slots.
pub(crate) mod jobs;

/// Fields that go on, and fields that end here.
pub(crate) mod headers;

/// Attempts, and whether there is another.
pub(crate) mod retry;

/// Connections to the upstream.
pub(crate) mod upstream;

/// The answer on its way down.
pub(crate) mod response;

/// Values of our own fields.
mod values;

/// Our own answers.
pub(crate) mod rejection;

/// The end of a request: its log line and its metrics.
pub(crate) mod finish;

/// What all workers share.
mod parts;

/// What a request lives on from accept to answer: one thread, its own connections.
pub(crate) struct Worker {
    pub(crate) app: Arc<App>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) reloader: Arc<Reloader>,
}

/// Where a thread's connections find their worker: a reload puts another one there, for the requests that come from then on.
pub(crate) struct Seat(ArcSwap<Worker>);

impl Seat {
    pub(crate) fn new(app: Arc<App>, upstream: Upstream, reloader: Arc<Reloader>) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(Worker { app, upstream: Arc::new(upstream), reloader })))
    }

    /// The worker for a request that begins now.
    pub(crate) fn worker(&self) -> Arc<Worker> {
        self.0.load_full()
    }

    /// From now on, requests live by these terms.
    pub(crate) fn serve(&self, app: &Arc<App>) {
        let Worker { upstream, reloader, .. } = &*self.worker();
        let (app, upstream, reloader) = (Arc::clone(app), Arc::clone(upstream), Arc::clone(reloader));
        self.0.store(Arc::new(Worker { app, upstream, reloader }));
    }
}

/// The way of one request. Any step may refuse, and the refusal is the answer; a refusal spends nothing that was taken before it.
async fn forward(worker: &Arc<Worker>, request: Box<Request<Incoming>>, record: &mut Record) -> Result<Way, Refusal> {
    let (mut head, body) = request.into_parts();
    let app = &worker.app;
    app.guard.check(&head)?;
    if let Some(answer) = cors::preflight(&head) {
        return Ok(answer.into());
    }
    let client = app.clients.identify(&head.headers, head.uri.query())?;
    record.client = Some(client);
    if let Some(answer) = known::about_us(&head) {
        return Ok(answer.into());
    }
    classify::plain::check(&app.protocol, &head.method, head.uri.path())?;
    let call = Call::classify(&app.protocol, &app.routes, &head);
    record.class = Some(call.class);
    app.find_job(client, &call).await;
    let account = app.account_for(client, &call)?;
    record.account = Some(account);
    app.refuse_while_draining()?;
    if let Some(known) = app.known_answer(&call, &head).await {
        return Ok(known.into());
    }
    let max_wait = app.max_wait(&head)?;
    call.check_idempotency_key(&head.headers)?;
    let prefers_wait = call.create.and_then(|_| crate::protocol::wait::offered(&head.headers));
    let (mut body, mut model) = app.take_body(&call, head.uri.path(), Inbound::new(body, head.version)).await?;
    record.applied = app.apply_rules(&call, account, &mut head, &mut body, &mut model)?;
    let cost = app.cost(&call, (account, client), &head, &body, model.as_deref());
    let idempotency = call.idempotency_key(account, client, &head, &body);
    app.retarget(&mut head)?;
    let model = model.map_or(Cow::Borrowed("unknown"), Cow::Owned);
    // Boxed, as it goes through many hands, each of which would have a place for it.
    let outgoing = Box::new(Outgoing {
        call,
        account,
        client,
        head,
        held: body,
        model,
        cost,
        keyed: None,
        claim: None,
        max_wait,
        webhook: None,
    });
    let passed = match outgoing.call.create {
        Some(_) => {
            record.detach();
            return Ok(Way::Created(create::start(worker, outgoing, idempotency).await?, prefers_wait));
        }
        // Boxed: few polls get here, and all calls would pay for their place.
        None if outgoing.call.class == Class::Poll => Box::pin(join::poll(worker, outgoing)).await,
        None => outgoing.dispatch(worker, None, Some(record)).await,
    };
    passed.map(Way::Passed)
}

/// Where a request has got to, if it was not refused.
#[expect(clippy::large_enum_variant, reason = "most are answers, and none is kept")]
enum Way {
    /// To its answer.
    Passed(Passed),
    /// A create, and for how long its caller prefers to wait for the job's end.
    Created(create::Started, Option<Duration>),
}

impl From<Passed> for Way {
    fn from(passed: Passed) -> Self {
        Self::Passed(passed)
    }
}

impl App {
    async fn created(&self, create: create::Started, prefers_wait: Option<Duration>) -> Result<Passed, Refusal> {
        let created = create::ended(create).await?;
        // Boxed: those who wait for their turn need none of it yet.
        Ok(Box::pin(self.held_until_end(created, prefers_wait)).await)
    }
}

/// Serves one request: `forward` with its log line, metrics and the fields of every answer around it.
pub(crate) async fn serve(worker: Arc<Worker>, request: Box<Request<Incoming>>) -> Answered<RelayBody> {
    let app = Arc::clone(&worker.app);
    let (uri, headers) = (request.uri(), request.headers());
    let family = app.protocol.family(uri.path());
    let record = Record::new(headers::request_id(headers), request.method().clone(), uri.clone());
    let mut finish = Finish::new(Arc::clone(&app), record);
    finish.record.host = response::reached(&app.protocol, headers);
    finish.record.parent = app.traces.parent(headers);
    finish.record.origin = app.guard.allowed_origin(headers).cloned();
    let passed = {
        let way = std::pin::pin!(forward(&worker, request, &mut finish.record));
        caught(way).await
    };
    match passed {
        Ok(Way::Passed(passed)) => app.relay(passed, finish).into(),
        // It may wait for long, and needs nothing more of what there is here.
        Ok(Way::Created(create, prefers_wait)) => Answered::Later(Box::pin(async move {
            let created = {
                let created = std::pin::pin!(app.created(create, prefers_wait));
                caught(created).await
            };
            match created {
                Ok(created) => app.relay(created, finish),
                Err(refusal) => app.reject(&refusal, family, finish),
            }
        })),
        Err(refusal) => app.reject(&refusal, family, finish).into(),
    }
}

/// Answers a request that may not be acted on.
pub(crate) fn refuse(app: &Arc<App>, refused: Refused) -> Response<RelayBody> {
    let family = app.protocol.family(refused.uri.path());
    let record = Record::new(headers::random_id(), refused.method, refused.uri);
    app.reject(&refused.rejection.into(), family, Finish::new(Arc::clone(app), record))
}

/// A panic of a handler is answered, and frees what it held by unwinding.
async fn caught<T>(mut future: Pin<&mut impl Future<Output = Result<T, Refusal>>>) -> Result<T, Refusal> {
    std::future::poll_fn(|cx| {
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)))
            .unwrap_or(Poll::Ready(Err(Rejection::Internal.into())))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that this function makes.
    fn size_of_future<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// Requests live long in the queue: each byte here is paid a thousand times.
    #[test]
    fn a_request_s_future_stays_small() {
        let size = size_of_future(serve);
        assert!(size <= 1_600, "{size} bytes");
    }
}
