//! Creates with an `Idempotency-Key` among replicas: one of them runs it, the others wait for its answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::proxy::dispatch::{Outgoing, Refusal, gone};
use crate::proxy::jobs::Charge;
use crate::proxy::rejection::Rejection;
use crate::proxy::{App, Worker};
use crate::state::redis::answers::{Answers, Claim, Entry};

use super::idempotency::{Key, again, nobody_knows, said};
use super::{Created, Outcome, run_create};

/// Longest between two questions after a create of another replica.
const SELDOM: Duration = Duration::from_secs(1);

/// Runs a create if no other replica has its key, and else gives that one's answer.
pub(super) async fn run(
    worker: &Worker,
    mut outgoing: Box<Outgoing>,
    caller: &watch::Sender<Outcome>,
    key: &Key,
    answers: &Arc<Answers>,
) -> Created {
    let app = &worker.app;
    let asked = outgoing.keyed.as_ref().map(|keyed| keyed.asked).unwrap_or_default();
    let (begun, max_wait) = (Instant::now(), outgoing.max_wait);
    let claim = Arc::new(answers.claim(app.names(key), &key.name, asked));
    match other_s(app, &claim, caller, max_wait).await {
        Ok(None) => {}
        Ok(Some(created)) => return created,
        Err(refusal) => return Created::refused(refusal),
    }
    outgoing.claim = Some(Arc::clone(&claim));
    outgoing.max_wait = max_wait.saturating_sub(begun.elapsed());
    let created = run_create(worker, outgoing, caller).await;
    if claim.is_taken() {
        // This replica was not heard of for so long that another went on with the key. Nothing was sent here.
        let again = answers.claim(app.names(key), &key.name, asked);
        return match other_s(app, &again, caller, max_wait.saturating_sub(begun.elapsed())).await {
            Ok(Some(others)) => others,
            // Nor did the other one send anything: the caller may try again.
            Ok(None) => created,
            Err(refusal) => Created::refused(refusal),
        };
    }
    match (created.charge(), said(&created)) {
        (_, Some(said)) => claim.said(said),
        (Charge::NotSent | Charge::Refused, None) => claim.forget(),
        // Its drop says that nobody knows.
        (Charge::Accepted | Charge::Unknown, None) => {}
    }
    created
}

/// The answer of another replica's create, once it is there; `None`: the key is ours. Where the store does not say, `max_wait` ends it.
async fn other_s(
    app: &App,
    claim: &Claim,
    caller: &watch::Sender<Outcome>,
    max_wait: Duration,
) -> Result<Option<Created>, Refusal> {
    let (begun, mut pause) = (Instant::now(), claim.poll());
    let asking = async {
        loop {
            match claim.enter().await {
                Ok(Entry::Yours) => return Ok(None),
                Ok(Entry::Said(said)) => return Ok(Some(again(said))),
                Ok(Entry::Other) => return Err(Rejection::IdempotencyMismatch.into()),
                Ok(Entry::Unknown) => return Err(nobody_knows()),
                Err(_) if begun.elapsed() >= max_wait => {
                    return Err(Rejection::QueueTimeout { waited: begun.elapsed(), retry_in: pause }.into());
                }
                Ok(Entry::Runs) | Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(SELDOM);
        }
    };
    tokio::select! {
        biased;
        answer = asking => answer,
        () = app.drained.cancelled() => Err(Rejection::Draining.into()),
        () = gone(Some(caller)) => Err(Rejection::BadRequest("the caller left").into()),
    }
}
