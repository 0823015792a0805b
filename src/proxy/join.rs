//! Polls that only the upstream can answer: of jobs that are not known here, or whose last state is not.
//!
//! One is under way for each job and client; those that arrive meanwhile wait for its answer. Nothing is remembered here: who comes after
//! it asks anew, so that a 404 is always true.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::RouteAuth;

use super::dispatch::{Outgoing, Passed, Refusal};
use super::headers::strip_hop_by_hop;
use super::retry::{Reply, ReplyBody};
use super::{App, Worker};

/// Polls under way that others may join. As many as there are polls at the upstream; touched twice by each.
#[derive(Default)]
pub(crate) struct Joins(Mutex<HashMap<Key, watch::Receiver<Outcome>>>);

/// Polls with the same key get the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    account: usize,
    client: usize,
    method: Method,
    uri: Uri,
    accept: Option<HeaderValue>,
}

/// `None` while it is under way; an answer that cannot be shared is never set.
type Outcome = Option<Arc<Result<Answer, Refusal>>>;

/// An upstream answer that was read whole.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Sends the poll, or waits for the answer to the same one.
pub(crate) async fn poll(worker: &Worker, mut outgoing: Box<Outgoing>) -> Result<Passed, Refusal> {
    // What is not sent tells polls apart neither.
    strip_hop_by_hop(&mut outgoing.head.headers);
    let Some(key) = Key::of(&outgoing) else { return outgoing.dispatch(worker, None, None).await };
    let (begun, max_wait) = (Instant::now(), outgoing.max_wait);
    loop {
        match worker.app.joins.enter(&key) {
            Ok(place) => {
                let _place = Leave { app: &worker.app, key: &key };
                let passed = outgoing.dispatch(worker, None, None).await;
                if let Some(outcome) = shared(&passed) {
                    place.send_replace(Some(Arc::new(outcome)));
                }
                return passed;
            }
            Err(mut first) => {
                let left = max_wait.saturating_sub(begun.elapsed());
                let first = tokio::time::timeout(left, outcome_of(&mut first)).await;
                if let Ok(Some(outcome)) = &first {
                    return told(outcome, begun.elapsed());
                }
                // It left, or its answer was for it alone. Out of time, the queue says so.
                outgoing.max_wait = max_wait.saturating_sub(begun.elapsed());
                if first.is_err() {
                    return outgoing.dispatch(worker, None, None).await;
                }
            }
        }
    }
}

/// `None`: there is none to share.
async fn outcome_of(first: &mut watch::Receiver<Outcome>) -> Outcome {
    first.wait_for(Option::is_some).await.ok()?.clone()
}

impl Key {
    /// `None` where each poll must be sent: it has a credential of its own, or a body.
    fn of(outgoing: &Outgoing) -> Option<Self> {
        let Outgoing { call, account, client, head, held, .. } = outgoing;
        let alike =
            call.auth == RouteAuth::Account && held.is_there() && !held.is_streamed() && held.bytes().is_empty();
        let conditional = [header::RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
        if !alike || conditional.iter().any(|name| head.headers.contains_key(name)) {
            return None;
        }
        let (method, uri) = (head.method.clone(), head.uri.clone());
        Some(Self {
            account: *account,
            client: *client,
            method,
            uri,
            accept: head.headers.get(header::ACCEPT).cloned(),
        })
    }
}

impl Joins {
    /// The first gets a place to put its answer, the others the first's.
    fn enter(&self, key: &Key) -> Result<watch::Sender<Outcome>, watch::Receiver<Outcome>> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()) {
            Entry::Occupied(first) => Err(first.get().clone()),
            Entry::Vacant(free) => {
                let (sender, receiver) = watch::channel(None);
                free.insert(receiver);
                Ok(sender)
            }
        }
    }
}

/// Lets the next poll be sent: this one has its answer, or its caller left.
struct Leave<'a> {
    app: &'a App,
    key: &'a Key,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.app.joins.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
    }
}

/// What others may be told, too: what the upstream said, and that it did not answer. That there was no turn in time is for each to find out.
fn shared(passed: &Result<Passed, Refusal>) -> Option<Result<Answer, Refusal>> {
    match passed {
        Ok(Passed { reply: Reply { head, body, .. }, .. }) => {
            let body = body.whole()?.clone();
            Some(Ok(Answer { status: head.status, headers: head.headers.clone(), body }))
        }
        Err(refusal) => (refusal.spent.attempts > 0).then(|| Err(refusal.clone())),
    }
}

fn told(outcome: &Result<Answer, Refusal>, waited: Duration) -> Result<Passed, Refusal> {
    let Answer { status, headers, body } = outcome.as_ref().map_err(Clone::clone)?;
    let (mut head, ()) = Response::new(()).into_parts();
    (head.status, head.headers) = (*status, headers.clone());
    let reply = Reply { head, body: ReplyBody::Whole(body.clone()), attempts: 0, upstream: Duration::ZERO };
    Ok(Passed { reply, charge: None, job: None, queued: waited, credits: None, meter: None })
}
