//! Creates run in a task of their own: a caller that hangs up must not lose a job that was paid for.
//!
//! The caller watches the task. As long as nothing was sent, its leaving ends the call; afterwards the task goes on until the outcome is
//! known.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::sync::watch;

use crate::ledger::answers::Keyed;

use super::dispatch::{Outgoing, Passed, Refusal, Spent};
use super::jobs::Charge;
use super::rejection::Rejection;
use super::response::keep_secret;
use super::retry::{Reply, ReplyBody};
use super::{App, Worker};

use self::idempotency::{Entered, Key};

/// Callers' own idempotency keys.
pub(crate) mod idempotency;

/// The same among replicas.
mod among;

/// Says that the answer was another request's, with the same idempotency key: nothing was sent for this one.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Runs a create in a task of its own, or joins the one with the same idempotency key.
pub(crate) async fn start(
    worker: &Arc<Worker>,
    mut outgoing: Box<Outgoing>,
    key: Option<Key>,
) -> Result<Started, Rejection> {
    let app = &worker.app;
    let first = match &key {
        Some(key) => {
            let asked = idempotency::hash(outgoing.held.bytes());
            outgoing.keyed = Some(Keyed { key: key.name.clone(), asked });
            app.idempotency.enter(key.clone(), asked)?
        }
        None => Entered::First(Arc::new(watch::Sender::new(None))),
    };
    let joins = matches!(first, Entered::Join(_));
    let outcome = match first {
        Entered::Join(receiver) => receiver,
        Entered::First(sender) => {
            let receiver = sender.subscribe();
            let teller = Teller { app: Arc::clone(app), sender, key };
            let worker = Arc::clone(worker);
            let mut task = Box::pin(app.tasks.track_future(async move {
                let created = match &teller.key {
                    // Boxed, as few creates have one.
                    Some(key) => Box::pin(run_keyed(&worker, outgoing, &teller.sender, key)).await,
                    None => run_create(&worker, outgoing, &teller.sender).await,
                };
                teller.tell(created);
            }));
            // Its first steps are taken here: one that has to wait then lets go of the buffer that it was read into before others come.
            let mut step = |cx: &mut Context<'_>| catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx)));
            if let Ok(Poll::Pending) = poll_fn(|cx| Poll::Ready(step(cx))).await {
                tokio::spawn(task);
            }
            receiver
        }
    };
    Ok(Started { outcome, joins })
}

/// A create under way, which goes on by itself once it may have been sent.
pub(crate) struct Started {
    outcome: watch::Receiver<Outcome>,
    /// It is another request's, of the same key.
    joins: bool,
}

/// How it ended. What another request has paid for is not told as this one's too: who adds up would count it twice.
pub(crate) async fn ended(Started { outcome: receiver, joins }: Started) -> Result<Passed, Refusal> {
    let created = outcome(receiver).await.ok_or(Rejection::Internal)?;
    let Created { answer, spent, replayed } = &*created;
    let replayed = joins || *replayed;
    let spent = if replayed { Spent::default() } else { *spent };
    match answer {
        Ok(Answer { status, headers, body, charge, job }) => {
            let (mut head, ()) = Response::new(()).into_parts();
            (head.status, head.headers) = (*status, headers.clone());
            if replayed {
                head.headers.insert(REPLAYED, HeaderValue::from_static("true"));
            }
            let Spent { attempts, queued, upstream, credits } = spent;
            let reply = Reply { head, body: ReplyBody::Whole(body.clone()), attempts, upstream };
            Ok(Passed { reply, charge: Some(*charge), job: job.clone(), queued, credits, meter: None })
        }
        Err(refusal) if replayed => Err(Refusal { spent, ..refusal.clone() }),
        Err(refusal) => Err(refusal.clone()),
    }
}

/// Asks the ledger first: an earlier process may have had this key.
async fn run_keyed(worker: &Worker, outgoing: Box<Outgoing>, caller: &watch::Sender<Outcome>, key: &Key) -> Created {
    let app = &worker.app;
    let asked = outgoing.keyed.as_ref().map(|keyed| keyed.asked).unwrap_or_default();
    match app.answered_earlier(key, asked).await {
        Ok(Some(created)) => created,
        Ok(None) => {
            let created = match app.account(key.account).queue.answers() {
                Some(answers) => among::run(worker, outgoing, caller, key, answers).await,
                None => run_create(worker, outgoing, caller).await,
            };
            app.keep_answer(key, &created);
            created
        }
        Err(refusal) => Created::refused(refusal),
    }
}

async fn run_create(worker: &Worker, mut outgoing: Box<Outgoing>, caller: &watch::Sender<Outcome>) -> Created {
    // After the idempotency key was compared: the body that goes up differs each time.
    // Boxed, as all that follows is smaller, and may wait for long.
    if let Err(rejection) = Box::pin(worker.app.take_webhook(&mut outgoing)).await {
        return Created::refused(rejection.into());
    }
    let account = outgoing.account;
    match outgoing.dispatch(worker, Some(caller), None).await {
        Ok(Passed { reply, charge, job, queued, credits, .. }) => {
            let Reply { mut head, body, attempts, upstream } = reply;
            // It is kept, here and where replicas share.
            keep_secret(&mut head.headers, &worker.app.account(account).key);
            let (body, charge) = (body.whole().cloned().unwrap_or_default(), charge.unwrap_or(Charge::Unknown));
            let answer = Answer { status: head.status, headers: head.headers, body, charge, job };
            Created { answer: Ok(answer), spent: Spent { attempts, queued, upstream, credits }, replayed: false }
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
        // What was not sent from here and is unknown may be known to the ledger or another replica by the next time.
        let kept = match &created.answer {
            Ok(answer) => matches!(answer.charge, Charge::Accepted | Charge::Unknown),
            Err(refusal) => refusal.charge == Charge::Unknown && refusal.spent.attempts > 0,
        };
        if let Some(key) = self.key.as_ref().filter(|_| !kept) {
            self.app.idempotency.forget(key, &self.sender);
        }
        self.sender.send_replace(Some(Arc::new(created)));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if self.sender.borrow().is_none() {
            self.tell(Created::refused(Refusal { charge: Charge::Unknown, ..Rejection::Internal.into() }));
        }
    }
}

/// How a create ended, in a form that any number of callers can get.
#[derive(Debug, Clone)]
pub(crate) struct Created {
    pub(crate) answer: Result<Answer, Refusal>,
    pub(crate) spent: Spent,
    /// It was another create's: of an earlier process or another replica.
    pub(crate) replayed: bool,
}

/// An upstream answer, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) charge: Charge,
    pub(crate) job: Option<String>,
}

impl Created {
    /// It ended without an answer of the upstream.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self { answer: Err(refusal), spent: Spent::default(), replayed: false }
    }

    /// What became of the money.
    pub(crate) fn charge(&self) -> Charge {
        self.answer.as_ref().map_or_else(|refusal| refusal.charge, |answer| answer.charge)
    }
}

/// Set once, when the create has ended.
pub(crate) type Outcome = Option<Arc<Created>>;

/// Waits for the outcome. `None`: the task ended without one.
async fn outcome(mut receiver: watch::Receiver<Outcome>) -> Option<Arc<Created>> {
    let outcome = receiver.wait_for(Option::is_some).await.ok()?;
    outcome.clone()
}
