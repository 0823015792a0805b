//! Webhooks where replicas share jobs: whoever hears of an end may deliver, and one at a time does.
//!
//! What is owed for a job is told with its state, so that whoever takes the job over owes it too; what the upstream will call for is told by
//! the token in its URL, so that any replica may be called. Each keeps what it owes in its own ledger, and asks before it delivers: a
//! replica that is gone loses its claim after a while. While the store does not answer, whoever owes delivers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::ledger;
use crate::ledger::outbox::{Message, Owed, Waiting};
use crate::protocol::End;
use crate::proxy::App;
use crate::proxy::jobs::fleet::{Fleet, Fleets};
use crate::state::redis::jobs::{Ask, Heard, Hook, LONGEST_MESSAGE, millis};

use super::{Due, Webhooks, event};

/// How long one who delivers has the message for itself: longer than an attempt takes.
const LEASE: Duration = Duration::from_secs(15);
/// For who finds it taken: so much later it may be free.
const A_LITTLE: Duration = Duration::from_millis(100);

/// How often it is asked whether another replica was called about a create of unknown outcome.
const ASKED_EVERY: Duration = Duration::from_millis(500);

/// Whose a delivery is.
pub(super) enum Claim {
    Ours,
    /// It was made, or given up.
    Done,
    /// Another's for so long.
    Taken(Duration),
}

/// What the other replicas know of a token.
pub(super) enum Known {
    /// This, at the end of this job, if the upstream has named one.
    Owed(Owed, Option<String>),
    Nothing,
    /// Not all could be asked.
    Unsure,
}

impl Webhooks {
    /// From now on these accounts' webhooks are shared.
    pub(crate) fn share(&self, fleets: Arc<Fleets>) {
        // Once a process.
        drop(self.fleets.set(fleets));
    }

    fn fleet(&self, account: &str) -> Option<&Arc<Fleet>> {
        self.fleets.get()?.named(account)
    }

    /// What is owed at this job's end.
    pub(crate) fn owed_for(&self, job: &str) -> Vec<Hook> {
        let waiting = self.waiting();
        waiting.get(job).into_iter().flatten().map(|row| hook(&row.owed)).collect()
    }

    /// Owes what a replica that is gone owed for this job.
    pub(crate) async fn take_over(&self, hooks: impl Iterator<Item = &Hook>, job: &str) {
        for hook in hooks {
            if let Err(error) = self.owe_also(owed(hook, hook.token.clone()), job).await {
                tracing::error!(%error, job, "the webhook of a job that was taken over cannot be kept");
            }
        }
    }

    /// Owes what another replica owes for this job too, unless it is owed or was told here before.
    pub(super) async fn owe_also(&self, owed: Owed, job: &str) -> Result<(), ledger::Error> {
        if let Some(id) = self.ledger.owe_once(owed.clone(), job.to_owned()).await? {
            self.wait_for(job, Waiting { id, job: Some(job.to_owned()), owed });
        }
        Ok(())
    }

    /// The others may be called with this token. Ready when they can know, or the store does not answer.
    pub(super) async fn tell_token(&self, owed: &Owed) {
        if let (Some(token), Some(fleet)) = (&owed.token, self.fleet(&owed.account)) {
            fleet.ask(Ask::Owe { token: token.clone(), hook: hook(owed) }).await;
        }
    }

    /// The create whose URL has this token was answered with this job.
    pub(super) fn tell_job(&self, owed: &Owed, job: &str) {
        if let (Some(token), Some(fleet)) = (&owed.token, self.fleet(&owed.account)) {
            let hook = Hook { job: Some(job.to_owned()), ..hook(owed) };
            fleet.say(Ask::Owe { token: token.clone(), hook });
        }
    }

    /// Nobody knows what became of a create; another replica may be called about it.
    pub(super) fn await_call(&self, owed: &Owed) {
        if let Some(fleets) = self.fleets.get().filter(|_| owed.token.is_some()) {
            fleets.await_call(owed.clone());
        }
    }

    /// What another replica owes for this token, with which the upstream may have named this job.
    pub(super) async fn owed_elsewhere(&self, token: &str, job: Option<&str>) -> Known {
        let mut unsure = false;
        let fleets = self.fleets.get().map(|fleets| fleets.all(0)).unwrap_or_default();
        for (_, fleet) in fleets {
            match fleet.ask(Ask::Token { token: token.to_owned(), job: job.map(str::to_owned) }).await {
                Some(heard) => {
                    if let Some(hook) = heard.hooks.first() {
                        return Known::Owed(owed(hook, Some(token.to_owned())), hook.job.clone());
                    }
                    unsure |= heard.unsure;
                }
                None => unsure = true,
            }
        }
        if unsure { Known::Unsure } else { Known::Nothing }
    }

    /// Should this replica not come back, another is to deliver it.
    pub(super) fn tell_due(&self, message: &Message, job: &str, end: End, hook: Hook) {
        if let Some(fleet) = self.fleet(&message.account) {
            let text = if message.body.len() > LONGEST_MESSAGE { Bytes::new() } else { message.body.clone() };
            let (message, job, end) = (message.id.clone(), job.to_owned(), end.name().to_owned());
            fleet.say(Ask::Due { message, job, end, hook, lease: millis(LEASE), body: None, text });
        }
    }

    /// Takes up what replicas that are gone have left undelivered, for ever.
    pub(crate) async fn take_up(self: Arc<Self>, fleet: Arc<Fleet>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            // Nothing can be delivered without a signature.
            while self.terms.load().keys.is_some()
                && let Some(heard) = fleet.ask(Ask::Orphan { lease: millis(LEASE) }).await
                && let Some(message) = &heard.message
            {
                if let Err(error) = self.adopt(message, &heard).await {
                    tracing::error!(%error, job = heard.job, "the webhook of a replica that is gone cannot be kept");
                    break;
                }
            }
        }
    }

    async fn adopt(&self, id: &str, heard: &Heard) -> Result<(), ledger::Error> {
        let end = End::ALL.into_iter().find(|end| Some(end.name()) == heard.end.as_deref()).unwrap_or(End::Gone);
        let Some(hook) = heard.hooks.first() else { return Ok(()) };
        let owed = owed(hook, hook.token.clone());
        // Known here already: it goes its way.
        let Some(row) = self.ledger.owe_once(owed.clone(), heard.job.clone()).await? else { return Ok(()) };
        tracing::info!(job = heard.job, "a replica is gone: its webhook is delivered from here");
        let body = heard.answer.clone().unwrap_or_else(|| event::message(&self.protocol, &heard.job, end, None));
        let Owed { account, target, .. } = owed;
        let message = Message { id: id.to_owned(), account, target: target.clone(), body, attempts: 0 };
        self.ledger.due(row, end.name(), message.clone());
        self.deliver(Due { id: row, target, wait: Duration::ZERO, message: Some(message) });
        Ok(())
    }

    /// May it be delivered from here, now?
    pub(super) async fn claim(&self, row: i64, message: &Message) -> Claim {
        let Some(fleet) = self.fleet(&message.account) else { return Claim::Ours };
        match fleet.ask_once_met(Ask::Claim { message: message.id.clone(), row, lease: millis(LEASE) }).await {
            Some(heard) if heard.done => Claim::Done,
            Some(heard) => heard.wait.map_or(Claim::Ours, |wait| Claim::Taken(Duration::from_millis(wait) + A_LITTLE)),
            // Twice is better than never, and receivers can tell.
            None => Claim::Ours,
        }
    }

    /// It was tried; again after this, or never.
    pub(super) fn tell_tried(&self, row: i64, message: &Message, again: Option<Duration>) {
        if let Some(fleet) = self.fleet(&message.account) {
            let lease = again.map_or(0, |again| millis(again + LEASE));
            fleet.say(Ask::Tried { message: message.id.clone(), row, done: again.is_none(), lease });
        }
    }

    /// Whoever comes first may deliver it, whether it was delivered or not.
    pub(super) async fn give_up_claim(&self, row: i64, message: &Message) {
        if let Some(fleet) = self.fleet(&message.account) {
            fleet.ask(Ask::Tried { message: message.id.clone(), row, done: false, lease: 0 }).await;
        }
    }
}

impl App {
    /// Waits until another replica was called about a create of unknown outcome, for as long as its slot is held.
    pub(crate) async fn await_call(self: Arc<Self>, owed: Owed) {
        let Some(token) = owed.token.clone() else { return };
        let until = Instant::now() + self.jobs.uncertain_for();
        while Instant::now() < until {
            tokio::time::sleep(ASKED_EVERY).await;
            let job = match self.webhooks.owed_elsewhere(&token, None).await {
                Known::Owed(_, Some(job)) => job,
                Known::Owed(_, None) => continue,
                // The store has lost it, or was not there when it was told.
                Known::Nothing | Known::Unsure => {
                    self.webhooks.tell_token(&owed).await;
                    continue;
                }
            };
            if let Ok(Some((row, false))) = self.webhooks.ledger.by_token(token.clone()).await
                && row.job.is_none()
                && let Err(error) = self.bind(&row, &job).await
            {
                tracing::error!(%error, job, "a restart would not know of this job's webhook");
            }
            return;
        }
    }
}

pub(super) fn hook(owed: &Owed) -> Hook {
    let Owed { token, account, client, target, completed, failed, .. } = owed.clone();
    Hook { account, client, target, completed, failed, token, job: None }
}

fn owed(hook: &Hook, token: Option<String>) -> Owed {
    let Hook { account, client, target, completed, failed, .. } = hook.clone();
    Owed { number: None, token, account, client, target, completed, failed }
}
