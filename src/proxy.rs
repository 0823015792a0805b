//! The way of one request, top to bottom: [`forward`] is the table of contents, the modules below are its steps in order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::{self, Llm, RouteAuth};
use crate::metrics::Metrics;
use crate::protocol::{Create, Family, KeyHeaders, Protocol};

use self::body::{Bodies, Held, Place};
use self::classify::Call;
use self::create::{Answer, Created, Entered, Idempotency, Key, Outcome};
use self::finish::{Finish, Record};
use self::guard::Guard;
use self::headers::Outbound;
use self::identify::Clients;
use self::jobs::watch::Look;
use self::jobs::{Charge, Jobs, Owner};
use self::queue::{Ask, NoTurn, Turn};
use self::rejection::{LIMIT_SOURCE, Rejection, SHOULD_RETRY};
use self::response::{RelayBody, Told};
use self::retry::{Budget, Reply, ReplyBody, Sending, Target, Unanswered};
use self::upstream::Upstream;

/// Connections from callers, spread over the workers.
pub(crate) mod accept;

/// Header-only refusals: method, target, size, Host, Origin.
pub(crate) mod guard;

/// Which client calls.
pub(crate) mod identify;

/// What kind of call it is.
pub(crate) mod classify;

/// Bodies held for the queue and for retries, or streamed once.
pub(crate) mod body;

/// Creates run in tasks of their own and may carry an idempotency key.
pub(crate) mod create;

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

/// Our own answers.
pub(crate) mod rejection;

/// The end of a request: its log line and its metrics.
pub(crate) mod finish;

/// The longest a look of our own waits for its turn.
const LOOK_WAITS: Duration = Duration::from_secs(60);

/// The parts that all workers share, each with its own lock where it needs one.
pub(crate) struct App {
    pub(crate) accounts: Vec<Account>,
    /// By client: index of its account.
    pub(crate) account_of: Vec<usize>,
    pub(crate) clients: Clients,
    pub(crate) guard: Guard,
    pub(crate) routes: Vec<config::Route>,
    pub(crate) protocol: &'static Protocol,
    pub(crate) target: Target,
    pub(crate) bodies: Bodies,
    pub(crate) max_body_bytes: u64,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) idempotency: Idempotency,
    pub(crate) retry: config::Retry,
    pub(crate) max_wait: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) total_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    /// Creates under way, waited for by the drain.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when new work is refused.
    pub(crate) drain: CancellationToken,
}

/// One account of the configuration. Those with the same key share a queue.
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) key: KeyHeaders,
    pub(crate) queue: Arc<queue::Account>,
    pub(crate) plan: Arc<config::Plan>,
    budget: Mutex<Budget>,
}

impl Account {
    pub(crate) fn new(account: &config::Account, key: KeyHeaders, queue: Arc<queue::Account>, budget: Budget) -> Self {
        let (name, plan) = (account.name.clone(), Arc::clone(&account.plan));
        Self {
            name,
            key,
            queue,
            plan,
            budget: Mutex::new(budget),
        }
    }

    pub(crate) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request lives on from accept to answer: one thread, its own connections.
pub(crate) struct Worker {
    pub(crate) app: Arc<App>,
    pub(crate) upstream: Upstream,
}

/// The way of one request. Any step may refuse, and the refusal is the answer; a refusal spends nothing that was taken before it.
async fn forward(
    worker: &Arc<Worker>,
    head: request::Parts,
    body: Incoming,
    record: &mut Record,
) -> Result<Passed, Refusal> {
    let app = &worker.app;
    app.guard.check(&head)?;
    let client = app.clients.identify(&head.headers, head.uri.query())?;
    record.client = Some(app.clients.name(client).to_owned());
    let call = Call::classify(app.protocol, &app.routes, &head);
    record.class = Some(call.class);
    let account = app.account_for(client, &call)?;
    record.account = Some(app.accounts[account].name.clone());
    app.refuse_while_draining()?;
    let max_wait = app.max_wait(&head)?;
    let (held, model) = app.take_body(&call, body).await?;
    let idempotency = app.idempotency_key(&call, account, client, &head, &held);
    let head = app.outbound(&call, account, head)?;
    let outgoing = Outgoing {
        call,
        account,
        client,
        head,
        held,
        model,
        max_wait,
    };
    match outgoing.call.create {
        Some(_) => create(worker, outgoing, idempotency).await,
        None => outgoing.dispatch(worker, None).await,
    }
}

/// A rejection and, for creates, what it says about money.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) rejection: Rejection,
    pub(crate) charge: Charge,
    pub(crate) spent: Spent,
}

/// What a call took, whatever came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) attempts: u32,
    pub(crate) queued: Duration,
    /// From the first dispatch to the last response head, or to giving up.
    pub(crate) upstream: Duration,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self {
            rejection,
            charge: Charge::NotSent,
            spent: Spent::default(),
        }
    }
}

/// A request ready for the queue.
struct Outgoing {
    call: Call,
    account: usize,
    client: usize,
    head: request::Parts,
    held: Held,
    model: String,
    max_wait: Duration,
}

/// An answer to pass on.
struct Passed {
    reply: Reply,
    charge: Option<Charge>,
    queued: Duration,
}

impl Outgoing {
    /// Queue, slot, quota, send with retries, observe. `caller` is watched while nothing is under way: when all have left, so do we.
    async fn dispatch(self, worker: &Worker, caller: Option<&watch::Sender<Outcome>>) -> Result<Passed, Refusal> {
        let app = &worker.app;
        let (account, client, call) = (self.account, self.client, &self.call);
        let owner = Owner { account, client };
        let queue = &app.accounts[account].queue;
        let begun = Instant::now();
        let ask = Ask {
            client,
            class: call.class,
            slot: call.create.is_some(),
            again: None,
            deadline: begun + self.max_wait,
        };
        let turn = if app.metered(account, call) {
            tokio::select! {
                turn = queue.turn(ask) => turn.map_err(|no| Refusal {
                    spent: Spent { queued: begun.elapsed(), ..Spent::default() },
                    ..app.no_turn(account, client, no, begun, self.max_wait).into()
                })?,
                () = gone(caller) => return Err(Rejection::BadRequest("the caller left").into()),
            }
        } else {
            queue.unmetered(client)
        };
        let queued = begun.elapsed();
        let Turn { permit, slot, seq } = turn;
        let mut pending = slot.map(|slot| app.jobs.begin(slot, owner, &self.model));
        let sending = Sending {
            worker,
            call,
            account,
            client,
            head: self.head,
            held: self.held,
            pending: pending.as_mut(),
            caller,
        };
        let reply = match sending.send(permit, seq).await {
            Ok(reply) => reply,
            Err(Unanswered {
                rejection,
                attempts,
                upstream,
            }) => {
                let charge = pending.as_ref().map_or(Charge::NotSent, jobs::Pending::charge);
                let spent = Spent {
                    attempts,
                    queued,
                    upstream,
                };
                return Err(Refusal {
                    rejection,
                    charge,
                    spent,
                });
            }
        };
        let status = reply.head.status;
        let whole = reply.body.whole().cloned().unwrap_or_default();
        let charge = pending.map(|pending| pending.settle(status, &whole));
        match (&call.job, call.class) {
            (Some(id), queue::Class::Poll) => app.jobs.saw_status(id, (owner, queue), status, &whole, true),
            (Some(id), queue::Class::Cancel) => app.jobs.saw_cancel(id, status, &whole),
            _ => {}
        }
        Ok(Passed { reply, charge, queued })
    }
}

/// Resolves when every caller of a create has left; never for calls that end by being dropped.
pub(crate) async fn gone(caller: Option<&watch::Sender<Outcome>>) {
    match caller {
        Some(caller) => caller.closed().await,
        None => std::future::pending().await,
    }
}

/// Runs a create in a task of its own, or joins the one with the same idempotency key.
async fn create(worker: &Arc<Worker>, outgoing: Outgoing, key: Option<Key>) -> Result<Passed, Refusal> {
    let app = &worker.app;
    let first = match &key {
        Some(key) => app.idempotency.enter(key.clone(), outgoing.held.bytes())?,
        None => Entered::First(Arc::new(watch::Sender::new(None))),
    };
    let receiver = match first {
        Entered::Join(receiver) => receiver,
        Entered::First(sender) => {
            let receiver = sender.subscribe();
            let teller = Teller {
                app: Arc::clone(app),
                sender,
                key,
            };
            let worker = Arc::clone(worker);
            app.tasks.spawn(async move {
                let created = run_create(&worker, outgoing, &teller.sender).await;
                teller.tell(created);
            });
            receiver
        }
    };
    let created = create::outcome(receiver).await.ok_or(Rejection::Internal)?;
    let Created {
        answer,
        attempts,
        queued,
        upstream,
    } = &*created;
    match answer {
        Ok(Answer {
            status,
            headers,
            body,
            charge,
        }) => {
            let (mut head, ()) = Response::new(()).into_parts();
            (head.status, head.headers) = (*status, headers.clone());
            let reply = Reply {
                head,
                body: ReplyBody::Whole(body.clone()),
                attempts: *attempts,
                upstream: *upstream,
            };
            Ok(Passed {
                reply,
                charge: Some(*charge),
                queued: *queued,
            })
        }
        Err(refusal) => Err(refusal.clone()),
    }
}

async fn run_create(worker: &Worker, outgoing: Outgoing, caller: &watch::Sender<Outcome>) -> Created {
    match outgoing.dispatch(worker, Some(caller)).await {
        Ok(Passed { reply, charge, queued }) => {
            let Reply {
                head,
                body,
                attempts,
                upstream,
            } = reply;
            let (body, charge) = (
                body.whole().cloned().unwrap_or_default(),
                charge.unwrap_or(Charge::Unknown),
            );
            let answer = Answer {
                status: head.status,
                headers: head.headers,
                body,
                charge,
            };
            Created {
                answer: Ok(answer),
                attempts,
                queued,
                upstream,
            }
        }
        Err(refusal) => Created::refused(refusal),
    }
}

/// Tells all callers of a create how it ended; on drop (a panic) that it failed.
struct Teller {
    app: Arc<App>,
    sender: Arc<watch::Sender<Outcome>>,
    key: Option<Key>,
}

impl Teller {
    fn tell(&self, created: Created) {
        let kept = matches!(created.charge(), Charge::Accepted | Charge::Unknown);
        if let Some(key) = self.key.as_ref().filter(|_| !kept) {
            self.app.idempotency.forget(key, &self.sender);
        }
        self.sender.send_replace(Some(Arc::new(created)));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if self.sender.borrow().is_none() {
            self.tell(Created::refused(Refusal {
                rejection: Rejection::Internal,
                charge: Charge::Unknown,
                spent: Spent::default(),
            }));
        }
    }
}

/// Serves one request: `forward` with its log line, metrics and the fields of every answer around it.
pub(crate) async fn serve(worker: Arc<Worker>, request: Request<Incoming>) -> Response<RelayBody> {
    let app = Arc::clone(&worker.app);
    let (head, body) = request.into_parts();
    let family = Family::of(head.uri.path());
    let record = Record {
        request_id: headers::request_id(&head.headers),
        method: head.method.clone(),
        path: head.uri.path().to_owned(),
        ..Record::default()
    };
    let mut finish = Finish::new(Arc::clone(&app.metrics), record);
    let passed = caught(forward(&worker, head, body, &mut finish.record)).await;
    match passed {
        Ok(passed) => app.relay(passed, finish),
        Err(refusal) => app.reject(&refusal, family, finish),
    }
}

/// A panic of a handler is answered, and frees what it held by unwinding.
async fn caught<T>(future: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)))
            .unwrap_or(Poll::Ready(Err(Rejection::Internal.into())))
    })
    .await
}

impl App {
    pub(crate) fn account(&self, account: usize) -> &Account {
        &self.accounts[account]
    }

    /// Whose key a call takes: a job's creator's, else the caller's own account's. Jobs of others look like none.
    fn account_for(&self, client: usize, call: &Call) -> Result<usize, Rejection> {
        match call.job.as_ref().and_then(|id| self.jobs.owner(id)) {
            Some(owner) if self.jobs.visible(owner, client) => Ok(owner.account),
            Some(_) => Err(Rejection::NotYours),
            None => Ok(self.account_of[client]),
        }
    }

    fn refuse_while_draining(&self) -> Result<(), Rejection> {
        if self.drain.is_cancelled() {
            Err(Rejection::Draining)
        } else {
            Ok(())
        }
    }

    /// How long this call may wait: `queue.max_wait`, or less if the caller says so.
    fn max_wait(&self, head: &request::Parts) -> Result<Duration, Rejection> {
        let Some(asked) = head.headers.get(headers::MAX_WAIT) else {
            return Ok(self.max_wait);
        };
        let asked = asked
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse::<jiff::SignedDuration>().ok());
        let asked = asked.and_then(|duration| Duration::try_from(duration).ok());
        asked
            .map(|asked| asked.min(self.max_wait))
            .ok_or(Rejection::BadRequest("Sluicegate-Max-Wait is not a duration like 10s"))
    }

    /// Takes the body as far as it is needed before the queue, and the model that it names.
    async fn take_body(&self, call: &Call, body: Incoming) -> Result<(Held, String), Rejection> {
        let (held, model) = match call.create {
            Some(Create::Json) => {
                let held = self.bodies.whole(body).await?;
                let model = model_of(held.bytes());
                (held, model)
            }
            Some(Create::Multipart) => self.bodies.multipart(body).await?,
            None => (self.bodies.small_or_unread(body).await?, None),
        };
        Ok((held, model.unwrap_or_else(|| "unknown".into())))
    }

    fn idempotency_key(
        &self,
        call: &Call,
        account: usize,
        client: usize,
        head: &request::Parts,
        held: &Held,
    ) -> Option<Key> {
        let is_whole = call.create.is_some() && matches!(held, Held::Whole(..));
        let key = head.headers.get(headers::IDEMPOTENCY_KEY).filter(|_| is_whole)?;
        Some(Key {
            account,
            client,
            key: String::from_utf8_lossy(key.as_bytes()).into_owned(),
        })
    }

    /// The head of the attempts: target below the upstream's prefix, credentials out, key in.
    fn outbound(&self, call: &Call, account: usize, mut head: request::Parts) -> Result<request::Parts, Rejection> {
        let query = head
            .uri
            .query()
            .map(|query| identify::without_key(query).unwrap_or_else(|| query.to_owned()));
        let target = self.target.origin_form(head.uri.path(), query.as_deref());
        head.uri = target.ok_or(Rejection::BadRequest("the request target is not valid"))?;
        if head
            .headers
            .get_all(http::header::AUTHORIZATION)
            .iter()
            .any(|value| self.clients.is_token(value))
        {
            head.headers.remove(http::header::AUTHORIZATION);
        }
        let key = (call.auth == RouteAuth::Account).then(|| self.accounts[account].key.header(call.family));
        let idempotency_key = call
            .create
            .and_then(|_| HeaderValue::from_str(&headers::random_id()).ok());
        let out = Outbound {
            host: &self.target.host,
            key,
            plain_answer: call.observed(),
            idempotency_key,
        };
        headers::prepare(&mut head.headers, out);
        Ok(head)
    }

    /// LLM calls of a plan with `llm = "unmetered"` and routes without the account's key spend no quota.
    fn metered(&self, account: usize, call: &Call) -> bool {
        let free = call.family.is_llm() && self.accounts[account].plan.llm == Llm::Unmetered;
        !free && call.auth == RouteAuth::Account
    }

    fn no_turn(&self, account: usize, client: usize, no_turn: NoTurn, begun: Instant, max_wait: Duration) -> Rejection {
        let limited = |retry_in| {
            let view = self.accounts[account].queue.view(client);
            let (limit, window) = view.map_or((0, Duration::ZERO), |view| (view.limit, view.window));
            Rejection::RateLimited {
                limit,
                window,
                retry_in,
            }
        };
        match no_turn {
            NoTurn::TooLate { retry_in } => limited(retry_in),
            NoTurn::Deadline { retry_in } if max_wait.is_zero() => limited(retry_in),
            NoTurn::Full { waiting, retry_in } => Rejection::QueueFull { waiting, retry_in },
            NoTurn::NoSlot { live, limit } => Rejection::JobLimit { live, limit },
            NoTurn::Deadline { retry_in } => Rejection::QueueTimeout {
                waited: begun.elapsed(),
                retry_in,
            },
        }
    }

    /// 10 min below `/llm`, where answers are computed while we wait, as configured elsewhere.
    pub(crate) fn attempt_timeout(&self, family: Family) -> Duration {
        if family.is_llm() {
            self.attempt_timeout * 10
        } else {
            self.attempt_timeout
        }
    }

    fn relay(&self, passed: Passed, mut finish: Finish) -> Response<RelayBody> {
        let Passed {
            reply:
                Reply {
                    head,
                    body,
                    attempts,
                    upstream,
                },
            charge,
            queued,
        } = passed;
        let (status, mut headers) = (head.status, head.headers);
        let record = &mut finish.record;
        (record.status, record.attempts, record.queued, record.upstream) = (status, attempts, queued, upstream);
        record.charge = charge.map(Charge::name);
        response::clean(&mut headers);
        if self.retry.statuses.contains(&status) {
            // We have tried as often as it makes sense: SDKs must not multiply that.
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(LIMIT_SOURCE, HeaderValue::from_static("upstream"));
        }
        response::tell(&mut headers, &self.told(&finish.record, charge));
        let body = match body {
            ReplyBody::Whole(bytes) => RelayBody::whole(bytes, finish),
            ReplyBody::Stream { prefix, rest, back } => {
                RelayBody::stream(prefix, rest, back, self.idle_timeout, finish)
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    fn reject(&self, refusal: &Refusal, family: Family, mut finish: Finish) -> Response<RelayBody> {
        let Refusal {
            rejection,
            charge,
            spent,
        } = refusal;
        let record = &mut finish.record;
        let charge = (record.class == Some(queue::Class::Create)).then_some(*charge);
        (record.status, record.code) = (rejection.status(), Some(rejection.code()));
        (record.attempts, record.queued, record.upstream) = (spent.attempts, spent.queued, spent.upstream);
        record.charge = charge.map(Charge::name);
        let (mut head, body) = rejection.response(family).into_parts();
        response::tell(&mut head.headers, &self.told(&finish.record, charge));
        Response::from_parts(head, RelayBody::whole(body, finish))
    }

    fn told<'a>(&self, record: &'a Record, charge: Option<Charge>) -> Told<'a> {
        let client = record
            .client
            .as_ref()
            .and_then(|name| self.clients.names().iter().position(|known| known == name));
        let account = record
            .account
            .as_ref()
            .and_then(|name| self.accounts.iter().find(|account| account.name == *name));
        Told {
            request_id: &record.request_id,
            queued: record.queued,
            upstream: record.upstream,
            attempts: record.attempts,
            view: client
                .zip(account)
                .and_then(|(client, account)| account.queue.view(client)),
            charge,
            wall: self.clock.wall(),
        }
    }
}

/// The `model` of a JSON create.
fn model_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Model {
        model: String,
    }
    serde_json::from_slice::<Model>(body).ok().map(|create| create.model)
}

/// The proxy's own looks at jobs, sent like any poll of the job's client.
pub(crate) struct Looker(pub(crate) Arc<Worker>);

impl Look for Looker {
    async fn look(&self, id: String, owner: Owner) {
        let app = &self.0.app;
        let (mut head, ()) = Request::new(()).into_parts();
        let Ok(uri) = app.protocol.status_path(&id).parse() else {
            return;
        };
        head.uri = uri;
        let call = Call::look(&id);
        let Ok(head) = app.outbound(&call, owner.account, head) else {
            return;
        };
        let (account, client) = (owner.account, owner.client);
        let queue = &app.accounts[account].queue;
        let ask = Ask {
            client,
            class: call.class,
            slot: false,
            again: None,
            deadline: Instant::now() + LOOK_WAITS,
        };
        let turn = tokio::select! {
            turn = queue.turn(ask) => turn,
            // Nobody needs to know any more, and the drain waits for us.
            () = app.drain.cancelled() => return,
        };
        let Ok(turn) = turn else { return };
        let held = Held::Whole(Bytes::new(), Place::default());
        let sending = Sending {
            worker: &self.0,
            call: &call,
            account,
            client,
            head,
            held,
            pending: None,
            caller: None,
        };
        match sending.send(turn.permit, turn.seq).await {
            Ok(reply) => {
                let whole = reply.body.whole().cloned().unwrap_or_default();
                app.jobs
                    .saw_status(&id, (owner, queue), reply.head.status, &whole, false);
            }
            Err(Unanswered { rejection: error, .. }) => tracing::debug!(job = id, %error, "a look at a job failed"),
        }
    }

    fn starved(&self, owner: Owner) -> bool {
        self.0.app.accounts[owner.account].queue.starved_of_slots()
    }
}
