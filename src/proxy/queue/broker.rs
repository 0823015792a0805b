//! The calls to the store that replicas share: one at a time for an account, with all that was asked for and noted meanwhile.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::credits::Credits;
use crate::metrics::shared::Metrics;
use crate::state::redis::answers::Answers;
use crate::state::redis::wire::{Op, Reply, Request, SlotEntry};
use crate::state::redis::{self, Failure, Link, Terms};

use super::shared::purse::Funds;
use super::shared::{News, Outcome, Shared, Told};
use super::{Account, Slot};

/// A slot that came to us from a replica that is gone.
pub(crate) struct Adopted {
    pub(crate) slot: Slot,
    pub(crate) entry: SlotEntry,
}

/// What the calls bring about beside turns.
pub(crate) struct Around {
    /// Takes the slots of replicas that are gone.
    pub(crate) adopted: UnboundedSender<Adopted>,
    pub(crate) metrics: Metrics,
    /// The names of the other replicas are kept in it.
    pub(crate) members: PathBuf,
    /// Knows which day it is.
    pub(crate) credits: Arc<Credits>,
}

/// What an operator sees of the store.
#[derive(Debug, Clone)]
pub(crate) struct SharedView {
    /// `up`, `joining`, `no_seat`, `outdated`, `holding`, `share`, `stopped`.
    pub(crate) state: &'static str,
    pub(crate) replicas: u32,
    /// While the store does not answer: for how long.
    pub(crate) silent_secs: f64,
    pub(crate) told: Told,
    /// Where attempts are granted in blocks: those that are left here, and those that were given back or have lapsed.
    pub(crate) unspent: Option<(u32, u64)>,
    /// Where the plan has a budget.
    pub(crate) funds: Option<Funds>,
}

impl Account {
    /// From now on the account is shared under these terms, by the replica of this name. Before anything is taken.
    /// `others`: the members that an earlier process knew.
    pub(crate) fn share(&self, terms: Terms, id: String, clients: Vec<String>, others: BTreeMap<String, String>) {
        let now = Instant::now();
        let mut book = self.book();
        let shared = Shared::new(terms, id, self.name.clone(), clients, others, book.quota.log(), now);
        book.shared = Some(Box::new(shared));
    }

    /// Calls the store until this replica is to leave, and then takes its leave.
    pub(crate) async fn keep_shared(self: Arc<Self>, mut link: Link, around: Around, leaving: CancellationToken) {
        leaving.run_until_cancelled(self.keep_calling(&mut link, &around)).await;
        if self.leave_shared(&mut link, around.credits.day()).await {
            // The store knows that we owe nobody anything.
            drop(std::fs::remove_file(&around.members));
        }
    }

    async fn keep_calling(self: &Arc<Self>, link: &mut Link, around: &Around) {
        let mut told_failure = false;
        let mut next_beat = Instant::now();
        loop {
            if !self.book().is_urgent(Instant::now()) {
                tokio::select! {
                    biased;
                    () = self.broker.notified() => if !self.book().is_urgent(Instant::now()) { continue },
                    () = tokio::time::sleep_until(next_beat) => {}
                }
            }
            let sent = Instant::now();
            let Some(beat) = self.book().shared.as_ref().map(|shared| shared.beat()) else { return };
            next_beat = sent + beat;
            let Some(request) = self.prepare(around.credits.day(), sent) else { continue };
            let answer = link.call(&request).await;
            around.metrics.called(answer.is_ok());
            let failed = answer.as_ref().err().map(ToString::to_string);
            let outcome = self.take(answer, sent);
            match failed {
                Some(error) if !std::mem::replace(&mut told_failure, true) => tracing::warn!(
                    account = self.name,
                    error,
                    "the shared store does not answer: nothing is sent for a while, then this replica's share; no new jobs"
                ),
                Some(_) => {}
                None => told_failure = false,
            }
            self.remember(&around.members);
            self.carry_out(outcome, &around.adopted);
        }
    }

    /// Ready when the store knows the jobs of all slots, or does not answer: then another replica would hold such a job's slot for
    /// `jobs.uncertain` if this one were gone. At once where nothing is shared.
    pub(crate) async fn jobs_are_told(&self) {
        let asked = self
            .book()
            .shared
            .as_ref()
            .filter(|shared| shared.asks())
            .map(|shared| (shared.names().0, shared.patience()));
        let Some((wanted, patience)) = asked else { return };
        let mut told = self.told.subscribe();
        // Either way the caller goes on.
        drop(tokio::time::timeout(patience, told.wait_for(|named| *named >= wanted)).await);
    }

    /// Keeps the names of the others, for a process that comes after this one.
    fn remember(&self, file: &Path) {
        let changed = self.book().shared.as_mut().and_then(|shared| shared.changed_others());
        let Some(others) = changed else { return };
        let kept =
            serde_json::to_vec(&others).map_err(std::io::Error::from).and_then(|json| std::fs::write(file, json));
        if let Err(error) = kept {
            tracing::warn!(account = self.name, %error, "the other replicas' names cannot be kept");
        }
    }

    fn prepare(&self, today: i64, now: Instant) -> Option<Request> {
        let mut book = self.book();
        let book = &mut *book;
        let waiting = book.waiting_for_place(now);
        let shared = book.shared.as_mut()?;
        shared.prepare(book.quota.log(), waiting, today, now)
    }

    fn take(&self, answer: Result<Reply, Failure>, sent: Instant) -> Outcome {
        let now = Instant::now();
        let mut book = self.book();
        let Some(shared) = book.shared.as_mut() else { return Outcome::default() };
        let mut outcome = match answer {
            Ok(reply) => shared.heard(&reply, sent, now),
            Err(_) => shared.failed(now),
        };
        self.told.send_replace(shared.names().1);
        for asking in outcome.back.drain(..) {
            book.put_back((asking.ticket, asking.need, asking.claim, asking.waiter), now);
        }
        for (asking, _) in &outcome.unfunded {
            book.give_back(&asking.ticket, asking.need, asking.claim, now);
        }
        for (_, entry) in &outcome.adopted {
            book.live += 1;
            let client = book.shared.as_ref().map_or(0, |shared| shared.client(&entry.client));
            book.clients.0[client].live += 1;
        }
        outcome
    }

    fn carry_out(self: &Arc<Self>, outcome: Outcome, adopted: &UnboundedSender<Adopted>) {
        for (asking, place, slot) in outcome.served {
            let turn = self.make_turn(asking.ticket, asking.need, asking.claim, Some((place, slot)));
            // A waiter that has just given up drops the turn, and so gives back what it holds.
            drop(asking.waiter.sender.send(Ok(turn)));
        }
        for (asking, no) in outcome.unfunded {
            // The same goes for one that is refused.
            let _ = asking.waiter.sender.send(Err(no));
        }
        for (number, entry) in outcome.adopted {
            let client = self.book().shared.as_ref().map_or(0, |shared| shared.client(&entry.client));
            let slot =
                Slot { account: Arc::clone(self), client: super::index(client), shared: NonZeroU32::new(number) };
            tracing::info!(account = self.name, job = entry.job, "a replica is gone: its job's slot is ours now");
            // Nobody listens when the proxy ends, and then nothing more is told to the store either.
            drop(adopted.send(Adopted { slot, entry }));
        }
        self.tell(outcome.news.as_ref());
        self.pump();
        self.dismiss();
    }

    /// Whoever had no time, and waited only for what the store would say of another block, has its answer.
    fn dismiss(&self) {
        let now = Instant::now();
        let mut book = self.book();
        if book.hurried && !book.is_urgent(now) {
            book.hurried = false;
            book.line.drop_all(|waiter| waiter.deadline <= now);
        }
    }

    fn tell(&self, news: Option<&News>) {
        let account = &self.name;
        if let (Some(News::Joined | News::Back | News::Reset(_)), Some(answers)) = (news, self.answers()) {
            answers.renew();
        }
        match news {
            None => {}
            Some(News::Joined) => tracing::info!(account, "the shared store answers: this replica is a member"),
            Some(News::Back) => tracing::info!(account, "the shared store answers again"),
            Some(News::Stepped) => {
                tracing::warn!(account, "the shared store's clock has stepped: the window counts as full");
            }
            Some(News::NoSeat) => {
                tracing::error!(account, "more replicas than state.redis.replicas: this one sends nothing");
            }
            Some(News::Outdated) => {
                tracing::error!(
                    account,
                    "the shared store is kept by a newer version of sluicegate, which this one would misread: it sends nothing; update it"
                );
            }
            Some(News::Reset(why)) => {
                tracing::warn!(account, why, "the shared store cannot say what was sent: the window counts as full");
            }
        }
    }

    /// Tells the store that this replica sends nothing any more: its share is free at once, its jobs for others to look at.
    /// True if it heard.
    async fn leave_shared(&self, link: &mut Link, today: i64) -> bool {
        let sent = Instant::now();
        self.book().shared.iter_mut().for_each(|shared| shared.give_up());
        // What was noted last.
        if let Some(request) = self.prepare(today, sent).filter(|request| request.op == Op::Call) {
            drop(self.take(link.call(&request).await, sent));
        }
        let request = self.book().shared.as_mut().and_then(|shared| shared.leave());
        // Who is gone without a word is noticed too, a little later.
        match request {
            Some(request) => link.call(&request).await.is_ok(),
            None => false,
        }
    }

    /// From now on jobs may live for as long as this says, where the account is shared.
    pub(crate) fn follow(&self, jobs: &config::Jobs) {
        if let Some(shared) = &mut self.book().shared {
            shared.follow(redis::slots_for(jobs));
        }
    }

    /// The terms on which the account is shared, where it is.
    pub(crate) fn terms(&self) -> Option<Terms> {
        self.book().shared.as_ref().map(|shared| shared.terms().clone())
    }

    /// This replica's name and its life, as the store knows them.
    pub(crate) fn member(&self) -> Option<(String, String)> {
        self.book().shared.as_ref().map(|shared| shared.member())
    }

    /// From now on idempotency keys are shared too.
    pub(crate) fn share_answers(&self, answers: Arc<Answers>) {
        // Set once, at the start.
        let _ = self.answers.set(answers);
    }

    /// Idempotency keys, where they are shared.
    pub(crate) fn answers(&self) -> Option<&Arc<Answers>> {
        self.answers.get()
    }

    /// What an operator sees; `None` where nothing is shared.
    pub(crate) fn shared_view(&self) -> Option<SharedView> {
        let now = Instant::now();
        let book = self.book();
        let shared = book.shared.as_ref()?;
        let state = shared.state(now);
        let silent = if state == "up" { 0.0 } else { shared.silent_for(now).as_secs_f64() };
        let replicas = shared.terms().replicas;
        let funds = shared.purse.as_ref().map(|purse| purse.funds(now));
        let (told, unspent) = (shared.told.clone(), shared.unspent(now));
        Some(SharedView { state, replicas, silent_secs: silent, told, unspent, funds })
    }
}

#[cfg(test)]
mod tests;
