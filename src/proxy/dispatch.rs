//! From the queue to the answer: a turn, a slot for creates, attempts, and what the answer says about jobs.

use http::request;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Worker;
use super::body::Held;
use super::classify::Call;
use super::create::Outcome;
use super::jobs::{self, Charge, Owner, Told};
use super::queue::{Ask, Class, Turn};
use super::rejection::Rejection;
use super::retry::{Reply, Sending, Unanswered};

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
    pub(crate) model: String,
    pub(crate) max_wait: Duration,
}

/// An answer to pass on.
pub(crate) struct Passed {
    pub(crate) reply: Reply,
    pub(crate) charge: Option<Charge>,
    /// The job that a create started.
    pub(crate) job: Option<String>,
    pub(crate) queued: Duration,
}

impl Outgoing {
    /// Queue, slot, quota, send with retries, observe. `caller` is watched while nothing is under way: when all have left, so do we.
    pub(crate) async fn dispatch(
        self,
        worker: &Worker,
        caller: Option<&watch::Sender<Outcome>>,
    ) -> Result<Passed, Refusal> {
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
                () = app.drained.cancelled() => return Err(Rejection::Draining.into()),
                () = gone(caller) => return Err(Rejection::BadRequest("the caller left").into()),
            }
        } else {
            queue.unmetered(client)
        };
        let (asked, queued) = (Instant::now(), begun.elapsed());
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
            Err(Unanswered { rejection, attempts, upstream }) => {
                let charge = pending.as_ref().map_or(Charge::NotSent, jobs::Pending::charge);
                return Err(Refusal { rejection, charge, spent: Spent { attempts, queued, upstream } });
            }
        };
        let status = reply.head.status;
        let whole = reply.body.whole().cloned().unwrap_or_default();
        let (charge, job) = match (pending, &call.job, call.class) {
            (Some(pending), ..) => {
                let (charge, job) = pending.settle(&Told::new(status, &reply.head.headers, &whole));
                (Some(charge), job)
            }
            (None, Some(id), Class::Poll) => {
                app.jobs.saw_status(id, owner, Told::new(status, &reply.head.headers, &whole), asked);
                (None, None)
            }
            (None, Some(id), Class::Cancel) => {
                app.jobs.saw_cancel(id, Told::new(status, &reply.head.headers, &whole));
                (None, None)
            }
            _ => (None, None),
        };
        Ok(Passed { reply, charge, job, queued })
    }
}

/// Resolves when every caller of a create has left; never for calls that end by being dropped.
pub(crate) async fn gone(caller: Option<&watch::Sender<Outcome>>) {
    match caller {
        Some(caller) => caller.closed().await,
        None => std::future::pending().await,
    }
}
