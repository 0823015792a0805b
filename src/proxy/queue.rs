//! Waiting for one's turn: a bounded, fair queue with deadlines in front of an account's quota and job slots.
//!
//! `Account::turn` hands out a `Permit` for exactly one attempt and, for creates, a `Slot`. Both are given back by drop.
//! The decisions are `quota`'s, `line`'s and `book`'s; this file holds the lock, the timer and the wake-ups.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::config::{self, Amount};
use crate::state::redis::answers::Answers;
use crate::state::ring::Ring;

use super::quota::{Claim, Quota, Share};

use self::book::{Book, ClientBook, Clients, Waiter, jobs_of};
use self::line::{Line, Need, Ticket};
use self::permit::Stage;
use self::shared::Place;

pub(crate) use self::broker::{Adopted, Around, SharedView};
pub(crate) use self::line::Class;
pub(crate) use self::permit::{Permit, Slot};
pub(crate) use self::shared::purse::NoFunds;

/// The order of turns.
pub(crate) mod line;

/// What may go.
mod book;

/// What a turn is made of.
mod permit;

/// What others see.
mod seen;

/// What replicas share, as one of them knows it.
mod shared;

/// The calls that keep it so.
mod broker;

/// Credits that replicas share.
mod funds;

/// One upstream key: its quota, its job slots and everyone who waits for them.
pub(crate) struct Account {
    /// The name in logs, metrics and the state directory.
    pub(crate) name: String,
    /// One short lock for the whole account: a turn needs quota, slot and place in line together. Never held over an await.
    book: Mutex<Book>,
    /// Tells the timer that the next wake-up has moved forward.
    timer: Notify,
    /// Tells the broker that the store has to hear of something; nobody listens where nothing is shared.
    broker: Notify,
    /// How many jobs' names the store has.
    told: watch::Sender<u64>,
    /// Where replicas share the account: the idempotency keys of its callers.
    answers: OnceLock<Arc<Answers>>,
}

/// What a client may have of an account, and its weight; `None` where it has left the configuration and keeps what it had.
pub(crate) type Part = Option<(Option<Arc<config::Plan>>, u32)>;

/// What a call asks of the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    /// Index of the client.
    pub(crate) client: usize,
    pub(crate) class: Class,
    /// The call starts a job and holds no slot yet.
    pub(crate) slot: bool,
    /// Its place in the order of arrival, where it has one already: then it is not refused because too many wait.
    pub(crate) again: Option<u64>,
    /// What it takes of the day's credits, where replicas share them.
    pub(crate) price: Amount,
    pub(crate) deadline: Instant,
}

/// Permission for one attempt, and for the job that it may start.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) permit: Permit,
    pub(crate) slot: Option<Slot>,
    /// Where the call stood, for its next attempt.
    pub(crate) seq: u64,
}

/// Why there is no turn. `retry_in` is a proven lower bound, for the caller's `Retry-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// The queue is full.
    Full { waiting: usize, retry_in: Duration },
    /// The minute quota alone proves that the deadline cannot be met.
    TooLate { retry_in: Duration },
    /// The call does not want to wait, and every job slot is taken.
    NoSlot { live: u32, limit: u32 },
    /// The deadline passed in the queue.
    Deadline { retry_in: Duration },
    /// The day's credits, shared by all replicas, do not last for it.
    NoFunds(NoFunds),
}

impl Account {
    /// An account of this plan whose clients have these plans and weights, with what an earlier process left.
    pub(crate) fn new(
        name: String,
        plan: &config::Plan,
        clients: &[Part],
        max_waiting: usize,
        ring: Option<Ring>,
        now: Instant,
    ) -> Arc<Self> {
        let mut quota = Quota::new(plan, now);
        let mut ring = ring;
        if let (Some(log), Some(ring)) = (quota.log(), &mut ring) {
            ring.restore(log, now);
        }
        let weights: Vec<u32> = clients.iter().map(|part| part.as_ref().map_or(1, |(_, weight)| *weight)).collect();
        let plan_of = |part: &Part| part.as_ref().and_then(|(plan, _)| plan.clone());
        let clients = clients.iter().map(|part| ClientBook::new(plan_of(part).as_deref(), now));
        Arc::new(Self {
            name,
            book: Mutex::new(Book {
                quota,
                max_waiting,
                jobs_limit: plan.concurrent_jobs.map(std::num::NonZeroU32::get),
                live: 0,
                no_room_until: None,
                held: None,
                hurried_until: now,
                hurried: false,
                refused_for_jobs: 0,
                clients: Clients(clients.collect()),
                line: Line::new(&weights),
                wake_at: None,
                ring,
                attempts: 0,
                shared: None,
            }),
            timer: Notify::new(),
            broker: Notify::new(),
            told: watch::Sender::new(0),
            answers: OnceLock::new(),
        })
    }

    /// From now on another plan and other clients, with everything that was sent, lives and waits as it is. `key_moves`: the account has
    /// another key, whose file in the state directory is this one.
    pub(crate) fn replan(
        self: &Arc<Self>,
        plan: &config::Plan,
        clients: &[Part],
        max_waiting: usize,
        key_moves: Option<&Path>,
        now: Instant,
    ) {
        let mut book = self.book();
        let begins = book.quota.rate().is_none() && plan.requests.is_some();
        book.quota.replan(plan, now);
        book.jobs_limit = jobs_of(Some(plan));
        book.max_waiting = max_waiting;
        if let (Some(ring), Some(requests)) = (&mut book.ring, &plan.requests) {
            ring.replan(requests);
            if begins {
                ring.fill();
            }
        }
        if let (Some(ring), Some(path)) = (&mut book.ring, key_moves) {
            ring.follow(path);
        }
        drop(book);
        self.know(clients, now);
    }

    /// From now on these clients. Whoever waits and now may go, goes.
    pub(crate) fn know(self: &Arc<Self>, clients: &[Part], now: Instant) {
        let mut book = self.book();
        for (client, part) in clients.iter().enumerate() {
            let plan = part.as_ref().and_then(|(plan, _)| plan.as_deref());
            match book.clients.0.get_mut(client) {
                None => book.clients.0.push(ClientBook::new(plan, now)),
                Some(known) if part.is_some() => {
                    if known.share.differs(plan) {
                        known.share = Share::new(plan, now).exhausted(now);
                        known.made = known.made.wrapping_add(1);
                    }
                    known.jobs_limit = jobs_of(plan);
                }
                Some(_) => {}
            }
        }
        let weights: Vec<_> = clients.iter().map(|part| part.as_ref().map(|(_, weight)| *weight)).collect();
        book.line.reweigh(&weights);
        drop(book);
        self.pump();
    }

    /// Keeps what is sent in this file from now on: the account had no rate when it began.
    pub(crate) fn keep_in(&self, mut ring: Ring, now: Instant) {
        let mut guard = self.book();
        let book = &mut *guard;
        if let (Some(log), None) = (book.quota.log(), &book.ring) {
            ring.restore(log, now);
            ring.fill();
            book.ring = Some(ring);
        }
    }

    /// Whether anything of it lives or waits.
    pub(crate) fn is_busy(&self) -> bool {
        let book = self.book();
        book.live > 0 || !book.line.is_empty()
    }

    /// Whether sent attempts are kept in a file.
    pub(crate) fn is_kept(&self) -> bool {
        self.book().ring.is_some()
    }

    /// Counts the window as full: what was sent with its key before is not known.
    pub(crate) fn fill(&self, now: Instant) {
        let mut book = self.book();
        book.quota.fill(now);
        book.ring.iter_mut().for_each(Ring::fill);
    }

    /// Waits for a turn until the deadline. Dropping the future leaves the line and spends nothing.
    pub(crate) async fn turn(self: &Arc<Self>, ask: Ask) -> Result<Turn, NoTurn> {
        let (receiver, ticket, until) = match self.enter(ask)? {
            Entered::Served(turn) => return Ok(turn),
            Entered::Waits(receiver, ticket, until) => (receiver, ticket, until),
        };
        let hurried = until > ask.deadline;
        let _leave = Leave { account: self, ticket };
        // An error means that the deadline passed: the sender lives in the line until it is used.
        if let Ok(Ok(turn)) = tokio::time::timeout_at(until, receiver).await {
            return turn.map_err(NoTurn::NoFunds);
        }
        let now = Instant::now();
        let mut book = self.book();
        let retry_in = book.earliest(ask.client, now).saturating_duration_since(now);
        let live = book.live_in_all();
        Err(match book.jobs_limit {
            // It had no patience, and was only waiting for the store's answer.
            Some(limit) if hurried && ask.slot && live >= limit => NoTurn::NoSlot { live, limit },
            _ if hurried && !retry_in.is_zero() => NoTurn::TooLate { retry_in },
            _ => NoTurn::Deadline { retry_in },
        })
    }

    /// A place in the order of arrival, taken beforehand.
    pub(crate) fn place(&self) -> u64 {
        self.book().line.number()
    }

    fn enter(self: &Arc<Self>, ask: Ask) -> Result<Entered, NoTurn> {
        let now = Instant::now();
        let mut guard = self.book();
        let book = &mut *guard;
        let seq = ask.again.unwrap_or_else(|| book.line.number());
        let ticket = Ticket { client: ask.client, class: ask.class, seq };
        let need = match (ask.slot, ask.class, ask.again) {
            (true, ..) => Need::Slot,
            (false, Class::Create, Some(_)) => Need::Room,
            _ if ask.price > Amount::ZERO => Need::Funds,
            _ => Need::Nothing,
        };
        if need == Need::Slot && !book.patient(ask.deadline, now) {
            book.hurried_until = book.hurried_until.max(ask.deadline).max(now + Duration::from_nanos(1));
        }
        let free = book.line.is_empty() && book.free_for(need, ask.client, now);
        // A store has to be asked: who would be refused at once waits for its answer, and for that to the call before.
        let shared = book.shared.as_ref().filter(|shared| shared.asks());
        let asks = shared.map(|shared| (shared.patience(), shared.is_busy(now)));
        if free && book.shared.as_ref().is_none_or(|shared| shared.needs_no_call(need, ask.price, now)) {
            let claim = book.grant(need, ask.client, now);
            let own =
                book.shared.as_mut().and_then(|shared| shared.take(need, ask.price, now)).map(|place| (place, None));
            let urgent = book.is_urgent(now);
            drop(guard);
            if urgent {
                self.broker.notify_one();
            }
            return Ok(Entered::Served(self.make_turn(ticket, need, claim, own)));
        }
        let until = match asks {
            Some((patience, busy)) if free || busy => ask.deadline.max(now + patience),
            _ => ask.deadline,
        };
        let earliest = book.earliest(ask.client, now);
        if earliest > ask.deadline.max(now) {
            return Err(NoTurn::TooLate { retry_in: earliest - now });
        }
        if until <= now {
            let live = book.live_in_all();
            return Err(match book.jobs_limit {
                Some(limit) if need == Need::Slot && live >= limit => NoTurn::NoSlot { live, limit },
                _ => NoTurn::Deadline { retry_in: earliest - now },
            });
        }
        if book.line.len() >= book.max_waiting && ask.again.is_none() {
            return Err(NoTurn::Full { waiting: book.line.len(), retry_in: earliest - now });
        }
        book.hurried |= until > ask.deadline;
        let (sender, receiver) = oneshot::channel();
        book.line.join(ticket, need, Waiter { sender, deadline: ask.deadline, price: ask.price });
        drop(guard);
        self.pump();
        Ok(Entered::Waits(receiver, ticket, until))
    }

    /// Gives turns for as long as somebody can go, then sets the timer.
    fn pump(self: &Arc<Self>) {
        loop {
            let now = Instant::now();
            let mut book = self.book();
            let Some((ticket, need, claim, waiter)) = book.next(now) else {
                let wake_at = book.next_wake(now);
                let earlier = wake_at.is_some_and(|at| book.wake_at.is_none_or(|set| at < set));
                book.wake_at = wake_at;
                let urgent = book.is_urgent(now);
                drop(book);
                if earlier {
                    self.timer.notify_one();
                }
                if urgent {
                    self.broker.notify_one();
                }
                return;
            };
            let mut own = None;
            if let Some(shared) = &mut book.shared {
                let Some(place) = shared.take(need, waiter.price, now) else {
                    shared.ask(ticket, need, claim, waiter, now);
                    continue;
                };
                own = Some((place, None));
            }
            drop(book);
            // A waiter that has just given up drops the turn, and so gives back what it holds.
            drop(waiter.sender.send(Ok(self.make_turn(ticket, need, claim, own))));
        }
    }

    /// A turn that spends nothing: the plan does not count this call.
    pub(crate) fn unmetered(self: &Arc<Self>, client: usize) -> Turn {
        let permit = Permit {
            account: Arc::clone(self),
            client: index(client),
            claim: Claim::default(),
            stage: Stage::Unmetered,
            place: None,
            starts_job: false,
        };
        Turn { permit, slot: None, seq: 0 }
    }

    /// `granted`: what the store gave for it.
    fn make_turn(
        self: &Arc<Self>,
        ticket: Ticket,
        need: Need,
        claim: Claim,
        granted: Option<(Place, Option<u32>)>,
    ) -> Turn {
        let starts_job = ticket.class == Class::Create;
        // Boxed, and the slot's number without a word for its absence: every request's future would be larger by them.
        let (place, slot) = granted.map_or((None, None), |(place, slot)| (Some(Box::new(place)), slot));
        let shared = slot.and_then(NonZeroU32::new);
        let (account, client, stage) = (Arc::clone(self), index(ticket.client), Stage::Reserved);
        let permit = Permit { account, client, claim, stage, place, starts_job };
        let slot = (need == Need::Slot).then(|| Slot { account: Arc::clone(self), client, shared });
        Turn { permit, slot, seq: ticket.seq }
    }

    /// Wakes the line when time alone lets somebody go. Runs for as long as the account lives.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            let at = self.book().wake_at;
            tokio::select! {
                biased;
                () = sleep_until(at) => {
                    self.book().wake_at = None;
                    self.pump();
                }
                () = self.timer.notified() => {}
            }
        }
    }

    /// Counts a job that this process did not start through the queue: restored, or seen for the first time in a status answer. `job` is
    /// empty for a create of unknown outcome.
    pub(crate) fn adopt(self: &Arc<Self>, client: usize, job: &str, model: &str) -> Slot {
        let mut book = self.book();
        book.live += 1;
        book.clients.0[client].live += 1;
        let shared = book.shared.as_mut().and_then(|shared| NonZeroU32::new(shared.hold_slot(client, job, model)));
        let urgent = book.is_urgent(Instant::now());
        drop(book);
        if urgent {
            self.broker.notify_one();
        }
        Slot { account: Arc::clone(self), client: index(client), shared }
    }

    /// Whether the slot of this job, which is counted here, is ours for the store too; `None` while that is not known.
    pub(crate) fn has_slot(&self, job: &str) -> Option<bool> {
        self.book().shared.as_ref()?.has_slot(job)
    }

    /// How long a job keeps its slot, of late.
    pub(crate) fn jobs_take(&self, held: Duration) {
        self.book().held = Some(held);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic under this lock leaves counters that are still the safe side of true.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change and lets those go whom it lets go.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Book)) {
        let mut book = self.book();
        change(&mut book);
        let waiting = !book.line.is_empty();
        let urgent = book.shared.is_some() && book.is_urgent(Instant::now());
        drop(book);
        if waiting {
            self.pump();
        } else if urgent {
            self.broker.notify_one();
        }
    }
}

/// Clients are few.
fn index(client: usize) -> u32 {
    u32::try_from(client).unwrap_or(u32::MAX)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

enum Entered {
    Served(Turn),
    /// Until then.
    Waits(oneshot::Receiver<Result<Turn, NoFunds>>, Ticket, Instant),
}

/// Leaves the line on drop: the deadline passed, or the caller hung up.
struct Leave<'a> {
    account: &'a Account,
    ticket: Ticket,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let waiter = self.account.book().line.leave(self.ticket);
        drop(waiter);
    }
}
