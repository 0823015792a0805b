//! One look at a job by the proxy itself: a status request through the queue, like any poll of the job's client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::time::Instant;

use crate::config::Amount;
use crate::proxy::Seat;
use crate::proxy::body::{Held, Place};
use crate::proxy::classify::Call;
use crate::proxy::queue::Ask;
use crate::proxy::retry::{Sending, Unanswered};

use super::Owner;
use super::Told;
use super::schedule::Look;

/// The longest a look waits for its turn.
const LOOK_WAITS: Duration = Duration::from_secs(60);

/// The proxy's own looks at jobs, sent like any poll of the job's client.
pub(crate) struct Looker(pub(crate) Arc<Seat>);

impl Look for Looker {
    async fn look(&self, id: String, owner: Owner) -> bool {
        let worker = self.0.worker();
        let app = &worker.app;
        let (mut head, ()) = Request::new(()).into_parts();
        let Some((method, path)) = app.jobs.status_request(&id) else { return true };
        let Ok(uri) = path.parse() else { return true };
        (head.method, head.uri) = (method, uri);
        let call = Call::look(&id);
        if app.retarget(&mut head).is_err() {
            return true;
        }
        let (account, client) = (owner.account, owner.client);
        let queue = &app.accounts[account].queue;
        // With a place of its own, as it may be what those wait for who fill the queue. There is one a live job at most.
        let again = Some(queue.place());
        let ask = Ask {
            client,
            class: call.class,
            slot: false,
            again,
            price: Amount::ZERO,
            deadline: Instant::now() + LOOK_WAITS,
        };
        let turn = async {
            worker.upstream.reachable(false, ask.deadline).await.ok()?;
            queue.turn(ask).await.ok()
        };
        let turn = tokio::select! {
            biased;
            turn = turn => turn,
            // Nobody needs to know any more, and the drain waits for us.
            () = app.drain.cancelled() => return false,
        };
        let Some(turn) = turn else { return false };
        app.dress(&call, account, &mut head.headers);
        let mut body = Held::Whole(Bytes::new(), Place::default());
        let asked = Instant::now();
        let mut sending = Sending {
            worker: &worker,
            call: &call,
            account,
            client,
            head: &mut head,
            kept: Vec::new(),
            held: &mut body,
            pending: None,
            hold: None,
            caller: None,
            patience: ask.deadline,
            now: asked,
        };
        let answered = tokio::select! {
            answered = sending.send(turn.permit, turn.seq) => answered,
            () = app.drain.cancelled() => return false,
        };
        match answered {
            Ok(reply) => {
                if let Some(whole) = reply.body.whole() {
                    app.jobs.saw_status(&id, owner, Told::new(reply.head.status, &reply.head.headers, whole), asked);
                } else {
                    app.jobs.saw_too_much(&id);
                }
            }
            Err(Unanswered { rejection: error, .. }) => tracing::debug!(job = id, %error, "a look at a job failed"),
        }
        true
    }
}
