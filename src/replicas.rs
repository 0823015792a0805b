//! One process among several that share accounts through a store: what is started for that, and its end.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::StartError;
use crate::config::{self, Config};
use crate::ledger::outbox::Owed;
use crate::proxy::App;
use crate::proxy::jobs::fleet::{Fleet, Fleets};
use crate::proxy::queue;
use crate::state::State;
use crate::state::redis::answers::Answers;
use crate::state::redis::jobs::JobsLink;
use crate::state::redis::{Link, Terms};

/// How long the store has to hear that this replica is leaving.
const LAST_CALL: Duration = Duration::from_secs(2);

/// The calls to the store, which go on until this replica leaves. Nothing where nothing is shared.
#[derive(Default)]
pub(crate) struct Replicas {
    leaving: CancellationToken,
    answers: Vec<Arc<Answers>>,
    brokers: JoinSet<()>,
}

/// Has `queue` ask the store from its first turn on, where there is one.
pub(crate) fn share(
    config: &Config,
    state: Option<&State>,
    account: &config::Account,
    queue: &queue::Account,
) -> io::Result<()> {
    let (config::State::Redis(_, redis), Some(state)) = (&config.state, state) else { return Ok(()) };
    let config::Plan { requests, concurrent_jobs, credits_per_day, .. } = &*account.plan;
    if requests.is_none() && concurrent_jobs.is_none() && credits_per_day.is_none() {
        return Ok(());
    }
    let clients = match &*config.clients {
        [] => vec!["local".to_owned()],
        clients => clients.iter().map(|client| client.name.clone()).collect(),
    };
    let terms = Terms::new(&account.plan, redis.replicas.get(), &config.jobs, config.credits.utc_offset_secs);
    queue.share(terms, state.replica()?, clients, others(&state.members(&account.key)));
    Ok(())
}

/// Whom an earlier process shared the account with; nobody where that is not known.
fn others(file: &Path) -> BTreeMap<String, String> {
    std::fs::read(file).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// Looks after the jobs of replicas that are gone.
async fn take_over(app: Arc<App>, mut adopted: mpsc::UnboundedReceiver<queue::Adopted>) {
    while let Some(queue::Adopted { slot, entry }) = adopted.recv().await {
        let named = app.accounts.iter().position(|account| account.name == entry.account);
        let owner = named.filter(|account| slot.is_of(&app.accounts[*account].queue));
        let first = app.accounts.iter().position(|account| slot.is_of(&account.queue));
        let account = owner.or(first).unwrap_or_default();
        let left = app.jobs.left_of(account, &entry.job).await;
        // Before its end can be seen here.
        app.webhooks.take_over(left.iter().flat_map(|left| &left.hooks), &entry.job).await;
        app.jobs.adopt(account, &entry, slot, left.as_ref());
    }
}

/// Waits for what other replicas hear of creates whose outcome nobody knows here.
async fn await_calls(app: Arc<App>, mut unsure: mpsc::UnboundedReceiver<Owed>) {
    let mut awaited = JoinSet::new();
    loop {
        tokio::select! {
            Some(owed) = unsure.recv() => drop(awaited.spawn(Arc::clone(&app).await_call(owed))),
            Some(_) = awaited.join_next() => {}
            else => return,
        }
    }
}

impl Replicas {
    /// Starts the calls on the current runtime, and in `background` what takes over jobs of replicas that are gone.
    pub(crate) fn start(
        config: &Config,
        state: Option<&State>,
        app: &Arc<App>,
        background: &mut JoinSet<()>,
    ) -> Result<Self, StartError> {
        let mut replicas = Self::default();
        let (config::State::Redis(_, redis), Some(state)) = (&config.state, state) else { return Ok(replicas) };
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut fleets = vec![None; app.accounts.len()];
        for (_, queue) in app.queues() {
            let accounts = app.accounts.iter().zip(&config.accounts);
            let Some((_, account)) = accounts.into_iter().find(|(known, _)| Arc::ptr_eq(&known.queue, &queue)) else {
                continue;
            };
            let Some(terms) = queue.terms() else { continue };
            let unusable = |error| StartError::Config(format!("state.redis cannot be used: {error}"));
            let link = Link::new(redis, &account.key, &terms).map_err(unusable)?;
            if let Some(member) = queue.member() {
                let answers = Answers::new(redis, &account.key, terms.clone(), member).map_err(unusable)?;
                let names = app.accounts.iter().filter(|other| Arc::ptr_eq(&other.queue, &queue));
                let names = names.map(|account| account.name.clone()).collect();
                background.spawn(Arc::clone(&answers).keep_told(names, Arc::clone(&app.ledger)));
                queue.share_answers(Arc::clone(&answers));
                replicas.answers.push(answers);
            }
            let me = state.replica()?;
            let about = JobsLink::new(redis, &account.key, &terms, me.clone()).map_err(unusable)?;
            let fleet = Arc::new(Fleet::new(me, terms.timeout(), terms.beat()));
            let mut first = None;
            for (number, known) in app.accounts.iter().enumerate() {
                if Arc::ptr_eq(&known.queue, &queue) {
                    first = first.or(Some(number));
                    fleets[number] = Some(Arc::clone(&fleet));
                }
            }
            background.spawn(Arc::clone(&app.webhooks).take_up(Arc::clone(&fleet), terms.lease));
            let (jobs, metrics) = (Arc::clone(&app.jobs), app.metrics.shared.clone());
            let talk = jobs.keep_in_fleet((first.unwrap_or_default(), fleet), about, metrics, replicas.leaving.clone());
            replicas.brokers.spawn(talk);
            let around = queue::Around {
                adopted: sender.clone(),
                metrics: app.metrics.shared.clone(),
                members: state.members(&account.key),
                credits: Arc::clone(&app.credits),
            };
            replicas.brokers.spawn(queue.keep_shared(link, around, replicas.leaving.clone()));
        }
        let accounts = app.accounts.iter().map(|account| account.name.clone()).zip(fleets).collect();
        // Weak: the webhooks know the fleets.
        let hooks = Arc::downgrade(&app.webhooks);
        let owed = move |job: &str| hooks.upgrade().map(|hooks| hooks.owed_for(job)).unwrap_or_default();
        let (unsure, calls) = mpsc::unbounded_channel();
        let fleets = Arc::new(Fleets::new(accounts, Box::new(owed), unsure));
        app.webhooks.share(Arc::clone(&fleets));
        app.jobs.share(fleets);
        background.spawn(await_calls(Arc::clone(app), calls));
        background.spawn(take_over(Arc::clone(app), receiver));
        Ok(replicas)
    }

    /// Takes leave of the store, as far as it answers.
    pub(crate) async fn leave(&mut self) {
        self.leaving.cancel();
        let left = async {
            for answers in &self.answers {
                answers.told().await;
            }
            while self.brokers.join_next().await.is_some() {}
        };
        if tokio::time::timeout(LAST_CALL, left).await.is_err() {
            tracing::warn!(
                "the shared store did not hear that this replica leaves: its share is kept for it for a while"
            );
        }
        self.brokers.abort_all();
    }
}
