//! A caller's own `Idempotency-Key` on a create, honoured here: the same key and body get the first answer again, for 24 h.
//!
//! Creates under way and answers of this process are here; those of earlier processes are asked for in the ledger.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::answers::{Earlier, Said};
use crate::proxy::App;
use crate::proxy::dispatch::{Refusal, Spent};
use crate::proxy::jobs::Charge;
use crate::proxy::rejection::Rejection;

use super::{Answer, Created, Outcome};

/// How long an answer is given again for the same key.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Most answers kept; the oldest finished ones go first.
const MOST_KEPT: usize = 10_000;

/// What a caller's `Idempotency-Key` is scoped to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) account: usize,
    pub(crate) client: usize,
    pub(crate) name: String,
}

struct Kept {
    body: [u8; 32],
    outcome: Arc<watch::Sender<Outcome>>,
    since: Instant,
}

/// Creates by idempotency key. Keyed and many; bounded by `MOST_KEPT` and 24 h.
#[derive(Default)]
pub(crate) struct Idempotency(DashMap<Key, Kept>);

/// What to do with a create that brings a key.
pub(crate) enum Entered {
    /// It is the first: run it and tell this sender.
    First(Arc<watch::Sender<Outcome>>),
    /// It runs or has run: wait for this.
    Join(watch::Receiver<Outcome>),
}

impl Idempotency {
    /// Joins the create with this key, or becomes it. The same key with another body is refused.
    pub(crate) fn enter(&self, key: Key, hash: [u8; 32]) -> Result<Entered, Rejection> {
        let now = Instant::now();
        if self.0.len() >= MOST_KEPT {
            self.make_room(now);
        }
        match self.0.entry(key) {
            Entry::Occupied(kept) if now - kept.get().since < KEPT_FOR => {
                let kept = kept.get();
                if kept.body != hash {
                    return Err(Rejection::IdempotencyMismatch);
                }
                Ok(Entered::Join(kept.outcome.subscribe()))
            }
            Entry::Occupied(mut old) => {
                let outcome = Arc::new(watch::Sender::new(None));
                old.insert(Kept { body: hash, outcome: Arc::clone(&outcome), since: now });
                Ok(Entered::First(outcome))
            }
            Entry::Vacant(free) => {
                let outcome = Arc::new(watch::Sender::new(None));
                free.insert(Kept { body: hash, outcome: Arc::clone(&outcome), since: now });
                Ok(Entered::First(outcome))
            }
        }
    }

    /// Forgets a create that cost nothing, so that the same key may try again.
    pub(crate) fn forget(&self, key: &Key, outcome: &Arc<watch::Sender<Outcome>>) {
        self.0.remove_if(key, |_, kept| Arc::ptr_eq(&kept.outcome, outcome));
    }

    fn make_room(&self, now: Instant) {
        self.0.retain(|_, kept| now - kept.since < KEPT_FOR);
        let finished = self.0.iter().filter(|kept| kept.outcome.borrow().is_some());
        let mut oldest: Vec<(Instant, Key)> = finished.map(|kept| (kept.since, kept.key().clone())).collect();
        oldest.sort_by_key(|(since, _)| *since);
        for (_, key) in oldest.into_iter().take(MOST_KEPT / 10) {
            self.0.remove(&key);
        }
    }
}

/// What tells one body from another.
pub(crate) fn hash(body: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, body).as_ref());
    hash
}

impl App {
    /// What an earlier process knows of this key: the answer to give again, or `None`, and then the create is the first with it. One that was
    /// sent and not answered is not sent again, whoever asks.
    pub(super) async fn answered_earlier(&self, key: &Key, hash: [u8; 32]) -> Result<Option<Created>, Refusal> {
        let (account, client) = self.names(key);
        let earlier = self.ledger.earlier(account, client, &key.name).await.map_err(|_| Rejection::Internal)?;
        let Some(Earlier { asked, said }) = earlier else { return Ok(None) };
        if asked != hash {
            return Err(Rejection::IdempotencyMismatch.into());
        }
        said.map(|said| Some(again(said))).ok_or_else(nobody_knows)
    }

    /// Keeps an answer for later processes.
    pub(super) fn keep_answer(&self, key: &Key, created: &Created) {
        let Some(said) = said(created) else { return };
        let (account, client) = self.names(key);
        self.ledger.answered(account, client, &key.name, said);
    }

    pub(super) fn names(&self, key: &Key) -> (&str, &str) {
        (&self.account(key.account).name, &self.clients.names()[key.client])
    }
}

/// What is kept of a create's end; nothing where the key may try again, or nobody knows the answer.
pub(super) fn said(created: &Created) -> Option<Said> {
    let Answer { status, headers, body, charge, .. } = created.answer.as_ref().ok()?;
    let kept = matches!(charge, Charge::Accepted | Charge::Unknown);
    let accepted = *charge == Charge::Accepted;
    kept.then(|| Said { status: *status, headers: headers.clone(), body: body.clone(), accepted })
}

/// The first answer again.
pub(super) fn again(Said { status, headers, body, accepted }: Said) -> Created {
    let charge = if accepted { Charge::Accepted } else { Charge::Unknown };
    Created { answer: Ok(Answer { status, headers, body, charge, job: None }), spent: Spent::default(), replayed: true }
}

/// It was sent, and its answer will not be known: it is not sent again.
pub(super) fn nobody_knows() -> Refusal {
    Refusal { charge: Charge::Unknown, ..Rejection::OutcomeUnknown { attempts: 0 }.into() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::proxy::create::outcome;

    fn key(name: &str) -> Key {
        Key { account: 0, client: 0, name: name.into() }
    }

    fn created() -> Arc<Created> {
        let (status, charge) = (StatusCode::CREATED, Charge::Accepted);
        let answer = Answer { status, headers: HeaderMap::new(), body: Bytes::from_static(b"{}"), charge, job: None };
        Arc::new(Created { answer: Ok(answer), spent: Spent { attempts: 1, ..Spent::default() }, replayed: false })
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_key_and_body_get_the_first_answer_for_a_day() {
        let kept = Idempotency::default();
        let Ok(Entered::First(sender)) = kept.enter(key("a"), hash(b"body")) else { panic!("the first") };
        let Ok(Entered::Join(running)) = kept.enter(key("a"), hash(b"body")) else { panic!("joins") };
        sender.send_replace(Some(created()));
        assert!(outcome(running).await.is_some());
        let Ok(Entered::Join(again)) = kept.enter(key("a"), hash(b"body")) else { panic!("again") };
        assert_eq!(outcome(again).await.expect("there").charge(), Charge::Accepted);
        assert!(matches!(kept.enter(key("a"), hash(b"other")), Err(Rejection::IdempotencyMismatch)));
        assert!(matches!(kept.enter(Key { client: 1, ..key("a") }, hash(b"other")), Ok(Entered::First(_))));
        tokio::time::advance(KEPT_FOR).await;
        assert!(matches!(kept.enter(key("a"), hash(b"other")), Ok(Entered::First(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_create_that_cost_nothing_is_forgotten_and_the_number_kept_is_bounded() {
        let kept = Idempotency::default();
        let Ok(Entered::First(sender)) = kept.enter(key("a"), hash(b"body")) else { panic!("the first") };
        kept.forget(&key("a"), &sender);
        assert!(matches!(kept.enter(key("a"), hash(b"other")), Ok(Entered::First(_))));
        for n in 0..MOST_KEPT + 5 {
            if let Ok(Entered::First(sender)) = kept.enter(key(&n.to_string()), hash(b"")) {
                sender.send_replace(Some(created()));
            }
        }
        assert!(kept.0.len() <= MOST_KEPT);
    }
}
