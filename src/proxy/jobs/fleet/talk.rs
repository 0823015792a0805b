//! The calls to the store about the jobs of one account, one after the other: what is said next, and what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::shared::Metrics;
use crate::state::redis::jobs::{Ask, Heard, JobsLink, LONGEST, Put, millis};

use super::super::{Held, Jobs};
use super::{Asker, Fleet};

/// The most that is said in one call, and the most bytes of answers.
const MOST_SAID: usize = 256;
const MOST_BYTES: usize = 1 << 20;

/// One call.
#[derive(Default)]
struct Batch {
    asks: Vec<Ask>,
    bodies: Vec<Bytes>,
    news: Vec<(String, bool, Option<Instant>)>,
    reads: Vec<(String, Vec<oneshot::Sender<()>>)>,
    answers: Vec<Asker>,
    /// What was noted when it was put together, if it says all of that.
    noted: Option<u64>,
}

impl Batch {
    /// Its place among the call's arguments.
    fn add(&mut self, body: Bytes) -> usize {
        self.bodies.push(body);
        // The first is the request, and Lua counts from one.
        self.bodies.len() + 1
    }
}

impl Jobs {
    /// Calls the store for one account until this replica leaves, and then says what is left.
    pub(crate) async fn keep_in_fleet(
        self: Arc<Self>,
        (account, fleet): (usize, Arc<Fleet>),
        link: JobsLink,
        metrics: Metrics,
        leaving: CancellationToken,
    ) {
        let talk = async {
            let mut next_beat = Instant::now();
            loop {
                if fleet.is_idle() {
                    let beat = tokio::time::sleep_until(next_beat);
                    let idle = fleet.is_up() && fleet.book().watched.is_empty() && fleet.book().followed.is_empty();
                    tokio::select! {
                        biased;
                        () = fleet.wake.notified() => {}
                        () = beat, if !idle => {}
                    }
                }
                let now = Instant::now();
                let is_beat = now >= next_beat;
                if is_beat {
                    next_beat = now + fleet.beat;
                    self.unfollow(&fleet, now);
                } else if !fleet.is_up() {
                    // What failed is not tried again at once.
                    tokio::time::sleep_until(next_beat).await;
                    continue;
                }
                let batch = self.batch(&fleet, is_beat);
                if !batch.asks.is_empty() {
                    self.call(account, &fleet, &link, batch, &metrics).await;
                }
            }
        };
        leaving.run_until_cancelled(talk).await;
        let rest = self.batch(&fleet, false);
        if fleet.is_up() && !rest.asks.is_empty() {
            self.call(account, &fleet, &link, rest, &metrics).await;
        }
    }

    /// What is said next. At a beat also: whether others have seen the ends that are awaited here.
    fn batch(&self, fleet: &Fleet, is_beat: bool) -> Batch {
        let mut batch = Batch::default();
        let mut book = fleet.book();
        let mut news = BTreeMap::new();
        while news.len() < MOST_SAID
            && let Some((id, take)) = book.news.pop_first()
        {
            news.insert(id, take);
        }
        batch.noted = book.news.is_empty().then_some(book.noted);
        let most = book.asks.len().min(MOST_SAID);
        let asks: Vec<_> = book.asks.drain(..most).collect();
        let ids: Vec<String> = book.reads.keys().take(MOST_SAID).cloned().collect();
        let mut reads: BTreeMap<_, _> = ids.into_iter().filter_map(|id| book.reads.remove_entry(&id)).collect();
        if is_beat {
            for id in book.watched.iter().filter(|id| !news.contains_key(*id)) {
                reads.entry(id.clone()).or_default();
            }
            if !fleet.is_up() {
                // Whether it answers.
                reads.entry(String::new()).or_default();
            }
        }
        if !book.is_empty() {
            fleet.wake.notify_one();
        }
        drop(book);
        let mut size = 0;
        for (mut ask, sender) in asks {
            if let Ask::Due { text, body, .. } = &mut ask
                && !text.is_empty()
            {
                size += text.len();
                *body = Some(batch.add(text.clone()));
            }
            batch.asks.push(ask);
            batch.answers.push(sender);
        }
        let mut left = Vec::new();
        for (id, take) in news {
            if size >= MOST_BYTES {
                left.push((id, take));
                continue;
            }
            let Some((mut put, body, said)) = self.to_tell(&id) else { continue };
            if let Some(body) = body {
                size += body.len();
                put.body = Some(batch.add(body));
            }
            put.take = take;
            batch.asks.push(Ask::Put(put));
            batch.news.push((id, take, said));
        }
        if !left.is_empty() {
            batch.noted = None;
            fleet.book().news.extend(left);
            fleet.wake.notify_one();
        }
        for (id, waiters) in reads {
            let v = self.table.get(&id).and_then(|job| job.kept.as_ref().map(|kept| kept.version)).unwrap_or_default();
            batch.asks.push(Ask::Get { id: id.clone(), v, idle: waiters.is_empty() });
            batch.reads.push((id, waiters));
        }
        batch
    }

    /// The state of a job for the store, the answer where the store does not have it, and which answer that makes it have.
    fn to_tell(&self, id: &str) -> Option<(Put, Option<Bytes>, Option<Instant>)> {
        let now = Instant::now();
        let hooks = self.fleets.get().map(|fleets| (fleets.owed)(id)).unwrap_or_default();
        let job = self.table.get(id)?;
        let terms = self.terms.load();
        let told = job.told.as_ref().filter(|told| !job.odd.unread && told.body.len() <= LONGEST);
        let said = told.map(|told| told.at);
        let same = said.is_some() && job.kept.as_ref().is_some_and(|kept| kept.said == said);
        let put = Put {
            id: id.to_owned(),
            account: terms.accounts.get(job.owner.account)?.0.clone(),
            client: terms.clients.get(job.owner.client)?.clone(),
            model: job.model.to_string(),
            own: matches!(job.slot, Some(Held::Here(_))),
            status: job.status.clone(),
            end: job.ended.filter(|_| job.slot.is_none()).map(|end| end.name().to_owned()),
            code: told.map(|told| told.status.as_u16()),
            form: told.and_then(|told| Some(told.content_type.as_ref()?.to_str().ok()?.to_owned())),
            age: told.map(|told| millis(now.saturating_duration_since(told.at))),
            unread: job.odd.unread,
            next: job.slot.is_some().then(|| millis(job.due.saturating_duration_since(now))),
            same,
            hooks,
            ..Put::default()
        };
        Some((put, told.filter(|_| !same).map(|told| told.body.clone()), said))
    }

    async fn call(&self, account: usize, fleet: &Fleet, link: &JobsLink, batch: Batch, metrics: &Metrics) {
        let terms = self.terms.load_full();
        let answer = link.call(&batch.asks, &batch.bodies, &terms.settings).await;
        metrics.called(answer.is_ok());
        let heard = match answer {
            Ok(heard) if heard.len() == batch.asks.len() => heard,
            failed => {
                let error = failed.err().map(|error| error.to_string());
                if fleet.up.swap(false, Ordering::Relaxed) {
                    tracing::warn!(
                        error,
                        "the shared store does not answer about jobs: each replica asks the upstream"
                    );
                }
                let mut book = fleet.book();
                let said = batch.asks.into_iter().zip(batch.answers).filter(|(_, asker)| asker.is_none());
                book.asks.splice(..0, said);
                for (id, take, _) in batch.news {
                    *book.news.entry(id).or_default() |= take;
                }
                // Who waits for an answer finds the sender gone.
                return;
            }
        };
        let mut heard = heard.into_iter();
        for (asker, heard) in batch.answers.into_iter().zip(&mut heard) {
            if let Some(sender) = asker {
                // Who asked may have left.
                drop(sender.send(heard));
            }
        }
        for ((id, _, said), heard) in batch.news.into_iter().zip(&mut heard) {
            self.was_told(fleet, &id, said, &heard);
        }
        for ((id, waiters), heard) in batch.reads.into_iter().zip(heard) {
            if !id.is_empty() {
                self.heard_of(account, fleet, &id, &heard, !waiters.is_empty());
            }
            for waiter in waiters {
                // Who asked may have left.
                let _ = waiter.send(());
            }
        }
        fleet.met.store(true, Ordering::Relaxed);
        if !fleet.up.swap(true, Ordering::Relaxed) {
            tracing::debug!("the shared store answers about jobs");
        }
        if let Some(noted) = batch.noted {
            fleet.told.send_replace(noted);
        }
    }

    fn was_told(&self, fleet: &Fleet, id: &str, said: Option<Instant>, heard: &Heard) {
        let Some(mut job) = self.table.get_mut(id) else { return };
        let ended = job.slot.is_none();
        let kept = job.kept.get_or_insert_default();
        kept.said = said.filter(|_| !heard.lost);
        // What others have told beside it is read at the next beat.
        let anothers = heard.owner.as_ref().is_some_and(|owner| *owner != fleet.me);
        let others = !ended && (heard.end.is_some() || anothers);
        kept.version = if others { 0 } else { heard.v };
        drop(job);
        if heard.lost {
            fleet.note(id, false);
        }
        if ended {
            fleet.watch(id, false);
        }
    }
}
