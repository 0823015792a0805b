//! The deliverer: one task that owns the order of deliveries. Every receiver has a queue and a few attempts under way of its own, so one
//! that hangs delays nobody else; every row is under way once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;

use crate::ledger::{self, outbox::Message, outbox::Next};

use super::fleet::Claim;
use super::send::{Attempt, Dial};
use super::target::Target;
use super::{Due, Progress, Webhooks, schedule};

/// Attempts at one receiver at a time.
const PER_RECEIVER: usize = 4;
/// Before another attempt, where none came about.
const PAUSE: Duration = Duration::from_secs(30);

/// What is under way, and what waits. Owned by one task: no locks.
struct Deliverer {
    hooks: Arc<Webhooks>,
    dial: Arc<dyn Dial>,
    /// Every row that is in one of the others.
    known: HashSet<i64>,
    /// Rows whose time has not come.
    later: BinaryHeap<Reverse<(Instant, i64)>>,
    /// What `later` is about.
    resting: HashMap<i64, Due>,
    receivers: HashMap<String, Receiver>,
    attempts: JoinSet<Made>,
    /// Rows that were taken.
    taken: u64,
    /// What each of them is about, should it panic.
    tasks: HashMap<task::Id, (i64, String)>,
}

#[derive(Default)]
struct Receiver {
    under_way: usize,
    queue: VecDeque<Due>,
}

/// An attempt that was made.
struct Made {
    due: Due,
    receiver: String,
    outcome: Outcome,
}

enum Outcome {
    /// How often it was tried before, what came of it now, and when again.
    Tried(u32, Attempt, Option<Duration>),
    /// The row is not due any more.
    Moot,
    /// Another replica has delivered it, or given it up.
    Elsewhere(u32),
    /// Another replica has it for so long.
    Taken(Duration),
    /// The ledger does not tell what to send, or an attempt panicked.
    Unknown,
}

/// How long until the next attempt, after one that followed so many; `None`: there is none.
fn wait_after(before: u32, attempt: &Attempt) -> Option<Duration> {
    match attempt {
        Attempt::Failed(_) => schedule::wait(before.saturating_add(1), fastrand::f64()),
        Attempt::Delivered | Attempt::Hopeless(_) => None,
    }
}

/// Delivers until aborted. What is under way then is delivered again by the next process, with the same id.
pub(crate) async fn run(hooks: Arc<Webhooks>, dial: Arc<dyn Dial>, mut queue: mpsc::UnboundedReceiver<Due>) {
    let mut deliverer = Deliverer {
        hooks,
        dial,
        known: HashSet::new(),
        later: BinaryHeap::new(),
        resting: HashMap::new(),
        receivers: HashMap::new(),
        attempts: JoinSet::new(),
        taken: 0,
        tasks: HashMap::new(),
    };
    loop {
        let next = deliverer.later.peek().map(|Reverse((at, _))| *at);
        let rest = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            due = queue.recv() => match due {
                Some(due) => deliverer.take(due),
                None => return,
            },
            () = rest => deliverer.wake(Instant::now()),
            Some(made) = deliverer.attempts.join_next_with_id() => match made {
                Ok((task, made)) => {
                    deliverer.tasks.remove(&task);
                    deliverer.made(made);
                }
                Err(panic) => deliverer.panicked(&panic),
            },
        }
        let pending = i64::try_from(deliverer.known.len()).unwrap_or(i64::MAX);
        deliverer.hooks.metrics.pending.set(pending);
        // A receiver is known while it has something to do.
        let progress = Progress { taken: deliverer.taken, idle: deliverer.receivers.is_empty() };
        deliverer.hooks.progress.send_replace(progress);
    }
}

impl Deliverer {
    fn take(&mut self, due: Due) {
        self.taken += 1;
        if !self.known.insert(due.id) {
            // A replay of what rests: its time has come. Under way already: that is enough.
            if due.wait.is_zero()
                && let Some(due) = self.resting.remove(&due.id)
            {
                self.enqueue(due);
            }
            return;
        }
        if due.wait.is_zero() { self.enqueue(due) } else { self.rest(due) }
    }

    fn rest(&mut self, due: Due) {
        self.later.push(Reverse((Instant::now() + due.wait, due.id)));
        self.resting.insert(due.id, due);
    }

    fn wake(&mut self, now: Instant) {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, id))) = self.later.pop() else { return };
            if let Some(due) = self.resting.remove(&id) {
                self.enqueue(due);
            }
        }
    }

    fn enqueue(&mut self, due: Due) {
        let name = Target::parse(&due.target).map(|target| target.receiver()).unwrap_or_default();
        self.receivers.entry(name.clone()).or_default().queue.push_back(due);
        self.start(&name);
    }

    /// Starts what this receiver has room for; forgets it when it has nothing.
    fn start(&mut self, name: &str) {
        let Some(receiver) = self.receivers.get_mut(name) else { return };
        while receiver.under_way < PER_RECEIVER
            && let Some(due) = receiver.queue.pop_front()
        {
            receiver.under_way += 1;
            let (hooks, dial, receiver) = (Arc::clone(&self.hooks), Arc::clone(&self.dial), name.to_owned());
            let about = (due.id, due.target.clone());
            let task = self.attempts.spawn(async move {
                let outcome = match hooks.message_of(&due).await {
                    Ok(Some(message)) => match hooks.claim(due.id, &message).await {
                        Claim::Ours => {
                            let attempt = hooks.attempt(&message, &*dial).await;
                            let wait = wait_after(message.attempts, &attempt);
                            hooks.tell_tried(due.id, &message, wait);
                            Outcome::Tried(message.attempts, attempt, wait)
                        }
                        Claim::Done => Outcome::Elsewhere(message.attempts),
                        Claim::Taken(wait) => Outcome::Taken(wait),
                    },
                    Ok(None) => Outcome::Moot,
                    Err(_) => Outcome::Unknown,
                };
                Made { due, receiver, outcome }
            });
            self.tasks.insert(task.id(), about);
        }
        if receiver.under_way == 0 {
            self.receivers.remove(name);
        }
    }

    fn made(&mut self, made: Made) {
        let Made { due, receiver, outcome } = made;
        if let Some(receiver) = self.receivers.get_mut(&receiver) {
            receiver.under_way = receiver.under_way.saturating_sub(1);
        }
        self.known.remove(&due.id);
        match outcome {
            Outcome::Tried(before, attempt, wait) => self.settle(due, before.saturating_add(1), attempt, wait),
            Outcome::Moot => {}
            Outcome::Elsewhere(attempts) => {
                tracing::debug!(webhook = due.id, "webhook delivered by another replica");
                self.hooks.ledger.attempted(due.id, attempts, &Next::Delivered, None);
            }
            Outcome::Taken(wait) => self.rest_again(Due { wait, ..due }),
            Outcome::Unknown => self.rest_again(Due { wait: PAUSE, ..due }),
        }
        self.start(&receiver);
    }

    /// A fault of ours takes neither the row nor its receiver's place with it.
    fn panicked(&mut self, panic: &JoinError) {
        tracing::error!(%panic, "an attempt to deliver a webhook failed on us");
        let Some((id, target)) = self.tasks.remove(&panic.id()) else { return };
        let receiver = Target::parse(&target).map(|target| target.receiver()).unwrap_or_default();
        self.made(Made {
            due: Due { id, target, wait: Duration::ZERO, message: None },
            receiver,
            outcome: Outcome::Unknown,
        });
    }

    fn settle(&mut self, due: Due, attempts: u32, attempt: Attempt, wait: Option<Duration>) {
        let hooks = Arc::clone(&self.hooks);
        let (outcome, trouble) = match (attempt, wait) {
            (Attempt::Delivered, _) => (&hooks.metrics.delivered, None),
            (Attempt::Failed(why) | Attempt::Hopeless(why), None) => (&hooks.metrics.dead, Some(why)),
            (Attempt::Failed(why) | Attempt::Hopeless(why), Some(_)) => (&hooks.metrics.failed, Some(why)),
        };
        outcome.inc();
        let next = match (&trouble, wait) {
            (None, _) => Next::Delivered,
            (Some(_), None) => Next::Dead,
            (Some(_), Some(wait)) => {
                let at = hooks.now_ms().saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                Next::At(i64::try_from(at).unwrap_or(i64::MAX))
            }
        };
        // Targets may carry a credential in their query: logs get the host only.
        let receiver = Target::parse(&due.target).map(|target| target.receiver());
        match &next {
            Next::Delivered => tracing::debug!(webhook = due.id, attempts, "webhook delivered"),
            Next::At(_) => tracing::info!(webhook = due.id, receiver, attempts, trouble, "webhook not delivered yet"),
            Next::Dead => tracing::warn!(
                webhook = due.id,
                receiver,
                attempts,
                trouble,
                "webhook given up: `sluicegate webhooks list --dead` shows it, `sluicegate webhooks replay` tries again"
            ),
        }
        hooks.ledger.attempted(due.id, attempts, &next, trouble);
        if let Some(wait) = wait {
            self.rest_again(Due { wait, message: None, ..due });
        }
    }

    fn rest_again(&mut self, due: Due) {
        self.known.insert(due.id);
        self.rest(due);
    }
}

impl Webhooks {
    /// What to send; `None` where the row is not due.
    async fn message_of(&self, due: &Due) -> Result<Option<Message>, ledger::Error> {
        match (self.ledger.message(due.id).await, &due.message) {
            (Err(error), Some(message)) => {
                tracing::warn!(%error, webhook = due.id, "a webhook is delivered although the ledger fails");
                Ok(Some(message.clone()))
            }
            (message, _) => message,
        }
    }
}
