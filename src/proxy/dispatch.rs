//! From the queue to the answer: a turn, a slot for creates, attempts, and what the answer says about jobs.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use http::request;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::credits::hold::Meter;
use crate::credits::{Cost, Receipt};
use crate::ledger::answers::Keyed;
use crate::state::redis::answers::Claim;
use crate::webhooks::Intent;

use super::body::Held;
use super::classify::Call;
use super::create::Outcome;
use super::finish::Record;
use super::jobs::{self, Charge, Owner, Told};
use super::queue::{Ask, Class, Permit, Turn};
use super::rejection::Rejection;
use super::retry::{Reply, Sending, Unanswered};
use super::{App, Worker};

use self::waiting::Packed;

/// What a request takes while it waits.
mod waiting;

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
    pub(crate) credits: Option<Receipt>,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, charge: Charge::NotSent, spent: Spent::default() }
    }
}

/// A request ready for the queue.
pub(crate) struct Outgoing {
    pub(crate) call: Call,
    pub(crate) account: usize,
    pub(crate) client: usize,
    pub(crate) head: request::Parts,
    pub(crate) held: Held,
    pub(crate) model: Cow<'static, str>,
    pub(crate) cost: Option<Box<Cost>>,
    /// A create's idempotency key, taken with its intent.
    pub(crate) keyed: Option<Keyed>,
    /// The same key among replicas.
    pub(crate) claim: Option<Arc<Claim>>,
    pub(crate) max_wait: Duration,
    /// What will be owed to a create's webhook. Boxed, as few calls have one and all pay for its place.
    pub(crate) webhook: Option<Box<Intent>>,
}

/// An answer to pass on.
pub(crate) struct Passed {
    pub(crate) reply: Reply,
    pub(crate) charge: Option<Charge>,
    /// The job that a create started.
    pub(crate) job: Option<String>,
    pub(crate) queued: Duration,
    pub(crate) credits: Option<Receipt>,
    /// Counts the tokens of the answer as it passes.
    pub(crate) meter: Option<Box<Meter>>,
}

impl Outgoing {
    /// Credits, queue, slot, quota, send with retries, observe. `caller` is watched while nothing is under way: when all have left, so do we.
    pub(crate) async fn dispatch(
        mut self: Box<Self>,
        worker: &Worker,
        caller: Option<&watch::Sender<Outcome>>,
        record: Option<&mut Record>,
    ) -> Result<Passed, Refusal> {
        let begun = Instant::now();
        let (turn, asked) = self.turn(worker, caller, record, begun).await?;
        // Boxed: those who wait for their turn need none of it yet.
        Box::pin(self.go(worker, caller, turn, (begun, asked))).await
    }

    /// Waits for its turn, and tells since when it has it. Meanwhile neither it nor its record keeps the buffer that it was read into.
    async fn turn(
        &mut self,
        worker: &Worker,
        caller: Option<&watch::Sender<Outcome>>,
        mut record: Option<&mut Record>,
        begun: Instant,
    ) -> Result<(Turn, Instant), Refusal> {
        let app = &worker.app;
        let (account, client, call, max_wait) = (self.account, self.client, &self.call, self.max_wait);
        let queue = &app.accounts[account].queue;
        app.credits.check(account, self.cost.as_deref())?;
        let ask = Ask {
            client,
            class: call.class,
            slot: call.create.is_some(),
            again: None,
            price: app.credits.price(account, self.cost.as_deref()),
            deadline: begun + max_wait,
        };
        let mut turn = std::pin::pin!(async {
            // Before anything is taken: what cannot leave must not keep others from going.
            worker.upstream.reachable(!call.repeatable, ask.deadline).await?;
            if !app.metered(account, call) {
                return Ok(queue.unmetered(client));
            }
            queue.turn(ask).await.map_err(|no| app.no_turn(account, client, no, begun, max_wait))
        });
        let mut packed = None;
        let turn = poll_fn(|cx| {
            let polled = turn.as_mut().poll(cx);
            if polled.is_pending() && packed.is_none() {
                record.as_deref_mut().into_iter().for_each(Record::detach);
                packed = Some(Packed::take(&mut self.head, &mut self.held));
            }
            polled
        });
        let turn = tokio::select! {
            biased;
            turn = turn => turn.map_err(|rejection: Rejection| unsent(rejection, begun.elapsed()))?,
            () = app.drained.cancelled() => return Err(Rejection::Draining.into()),
            () = gone(caller) => return Err(Rejection::BadRequest("the caller left").into()),
        };
        let Some(packed) = packed else { return Ok((turn, begun)) };
        packed.give_back(&mut self.head);
        Ok((turn, Instant::now()))
    }

    /// The rest of the way, once it has its turn.
    async fn go(
        mut self: Box<Self>,
        worker: &Worker,
        caller: Option<&watch::Sender<Outcome>>,
        turn: Turn,
        (begun, asked): (Instant, Instant),
    ) -> Result<Passed, Refusal> {
        let app = &worker.app;
        let (account, client, call) = (self.account, self.client, &self.call);
        let owner = Owner { account, client };
        let queued = asked - begun;
        let unsent = |rejection| unsent(rejection, queued);
        let Turn { mut permit, slot, seq } = turn;
        let number =
            || self.webhook.as_ref().and_then(|webhook| webhook.number()).unwrap_or_else(|| app.ledger.number());
        let slot = slot.map(|slot| (slot, number()));
        let mut hold = app
            .credits
            .reserve(self.cost, slot.as_ref().map(|(_, number)| *number), &mut permit)
            .await
            .map_err(unsent)?;
        if let Some(claim) = &self.claim {
            // Boxed: few calls have one, and all would pay for its place.
            Box::pin(begin(claim, &permit, queued)).await.map_err(unsent)?;
            if caller.is_some_and(watch::Sender::is_closed) {
                return Err(Rejection::BadRequest("the caller left").into());
            }
        }
        let mut pending = match slot {
            // A create that the ledger cannot keep is not sent. The ledger has told the log why.
            Some(slot) => {
                let begun = app.jobs.begin(slot, owner, &self.model, self.keyed).await;
                Some(begun.map_err(|_| unsent(Rejection::Internal))?)
            }
            None => None,
        };
        // Not before: whom the queue refuses does not need it.
        app.dress(call, account, &mut self.head.headers);
        let path = call.job.as_ref().map(|_| self.head.uri.path().to_owned()).unwrap_or_default();
        // Only a slot, a price or a claim can have taken time to note.
        let begun = if pending.is_none() && hold.is_none() && self.claim.is_none() { asked } else { Instant::now() };
        let sent = Sending {
            worker,
            call,
            account,
            client,
            head: &mut self.head,
            kept: Vec::new(),
            held: &mut self.held,
            pending: pending.as_mut(),
            hold: hold.as_deref_mut(),
            caller,
            patience: asked - queued + self.max_wait,
            now: begun,
        }
        .send(permit, seq)
        .await;
        let reply = match sent {
            Ok(reply) => reply,
            Err(Unanswered { rejection, attempts, upstream }) => {
                let charge = pending.as_ref().map_or(Charge::NotSent, jobs::Pending::charge);
                if charge == Charge::Unknown {
                    self.webhook.into_iter().for_each(|webhook| webhook.unknown());
                }
                let credits = hold.map(|hold| hold.settle());
                return Err(Refusal { rejection, charge, spent: Spent { attempts, queued, upstream, credits } });
            }
        };
        let (charge, job) = match (pending, &call.job, call.class) {
            // Boxed: few calls are creates, and all would pay for its place.
            (Some(pending), ..) => {
                let (charge, job) = Box::pin(settle(pending, self.webhook, told(&reply), app)).await;
                (Some(charge), job)
            }
            (None, Some(id), Class::Poll) => {
                if reply.body.whole().is_some() {
                    app.jobs.saw_poll(id, owner, &path, told(&reply), asked);
                } else {
                    app.jobs.saw_too_much(id);
                }
                (None, None)
            }
            (None, Some(id), Class::Cancel) => {
                app.jobs.saw_cancel(id, told(&reply));
                (None, None)
            }
            _ => (None, None),
        };
        let (credits, meter) = hold.map(|hold| hold.answered(&reply.head, charge)).unwrap_or_default();
        Ok(Passed { reply, charge, job, queued, credits, meter })
    }
}

/// What an answer says about jobs.
fn told(reply: &Reply) -> Told {
    let whole = reply.body.whole().cloned().unwrap_or_default();
    Told::new(reply.head.status, &reply.head.headers, &whole)
}

/// It waited for so long and was not sent.
fn unsent(rejection: Rejection, queued: Duration) -> Refusal {
    Refusal { spent: Spent { queued, ..Spent::default() }, ..rejection.into() }
}

/// No other replica sends a create with this key from now on. The store is asked for as long as the permit is good.
async fn begin(claim: &Claim, permit: &Permit, waited: Duration) -> Result<(), Rejection> {
    loop {
        match claim.begin().await {
            Ok(true) => return Ok(()),
            Err(_) if !permit.is_stale() => tokio::time::sleep(claim.poll()).await,
            Ok(false) | Err(_) => return Err(Rejection::QueueTimeout { waited, retry_in: claim.poll() }),
        }
    }
}

/// What the answer to a create means for its webhook, its slot and its money.
async fn settle(
    pending: jobs::Pending,
    webhook: Option<Box<Intent>>,
    told: Told,
    app: &App,
) -> (Charge, Option<String>) {
    if let Some(webhook) = webhook {
        // Before the job table may see the job's end.
        webhook.answered(&app.protocol, told.status, &told.body).await;
    }
    pending.settle(&told).await
}

/// Resolves when every caller of a create has left; never for calls that end by being dropped.
pub(crate) async fn gone(caller: Option<&watch::Sender<Outcome>>) {
    match caller {
        Some(caller) => caller.closed().await,
        None => std::future::pending().await,
    }
}
