//! What an account and the store have to tell each other, between two calls. Pure: every method gets `now`; `broker` does the calls.
//!
//! The line decides here as it does without a store. Whoever it lets go is then asked for: a place, and for creates a slot. What the store
//! refuses goes back into the line, and nobody asks again before the instant that it told.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::proxy::quota::window::WindowLog;
use crate::proxy::quota::{Claim, View, Wait};
use crate::state::redis::wire::{Lines, SlotEntry};
use crate::state::redis::{Terms, random_name};

use self::block::Block;
use self::hearing::Clocks;
use self::purse::{NoFunds, Purse};
use self::slots::Held;
use self::telling::Reports;

use self::spending::Origin;
pub(crate) use self::spending::Place;
use super::line::{Need, Ticket};
use super::{Turn, Waiter};

/// Places in the window.
mod spending;

/// Many of them at once.
mod block;

/// Job slots.
mod slots;

/// The day's credits.
pub(crate) mod purse;

/// What calls say.
mod telling;

/// What answers change.
mod hearing;

/// The most that is asked for in one call.
const MOST_ASKED: u32 = 256;

/// Somebody whom the line let go and the store is asked for.
pub(super) struct Asking {
    pub(super) ticket: Ticket,
    pub(super) need: Need,
    pub(super) claim: Claim,
    pub(super) waiter: Waiter,
    n: u64,
}

/// What came of a call.
#[derive(Default)]
pub(super) struct Outcome {
    /// They go, with a place and perhaps a slot.
    pub(super) served: Vec<(Asking, Place, Option<u32>)>,
    /// They go back into the line.
    pub(super) back: Vec<Asking>,
    /// The day's credits do not last for them.
    pub(super) unfunded: Vec<(Asking, NoFunds)>,
    /// Slots of replicas that are gone, now ours.
    pub(super) adopted: Vec<(u32, SlotEntry)>,
    /// The log is told this.
    pub(super) news: Option<News>,
}

/// A change that an operator wants to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    Joined,
    Back,
    Stepped,
    NoSeat,
    /// What is in the store is a newer version's.
    Outdated,
    Reset(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Never a member, or no longer: sends nothing.
    Outside,
    Up,
    /// A member that has no answer.
    CutOff,
}

/// What the last answer said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) free: Option<u32>,
    pub(crate) used: u32,
    pub(crate) live: u32,
    pub(crate) members: u32,
    pub(crate) away: u32,
    pub(crate) why: Option<String>,
    pub(crate) paced: bool,
}

/// See the module.
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that the next call has to say")]
pub(crate) struct Shared {
    terms: Terms,
    lines: Lines,
    id: String,
    /// This process' part of the names of places and slots.
    life: String,
    account: String,
    clients: Vec<String>,
    mode: Mode,
    /// What we hold has to be told before anything is asked.
    must_join: bool,
    /// It is being told.
    joining: bool,
    /// Not before this: what an earlier process sent may count, and nobody knows what that was.
    join_at: Instant,
    seq: u64,
    ack: u64,
    /// When the last good call was sent.
    last_good: Instant,
    /// When to look after what others left, at the latest.
    adopt_at: Instant,
    next: u64,
    next_slot: u32,
    asking: VecDeque<Asking>,
    in_call: Vec<Asking>,
    reports: Reports,
    /// Jobs' names that were noted, those on the way, those that the store has.
    noted: u64,
    naming: u64,
    named: u64,
    /// A place was given back that others may wait for.
    hurry: bool,
    on_the_way: Reports,
    /// Sent attempts without an answer: when they were sent.
    flights: BTreeMap<u64, Instant>,
    slots: BTreeMap<u32, Held>,
    closed_until: Option<Instant>,
    slots_until: Option<Instant>,
    allowance: Option<u32>,
    clocks: Option<Clocks>,
    stepped: bool,
    /// The other members, by name: whether their jobs have to be reckoned with.
    others: BTreeMap<String, String>,
    others_changed: bool,
    pub(crate) told: Told,
    /// Where attempts are granted in blocks.
    block: Option<Block>,
    /// One was asked for in the call that is under way.
    wanted: bool,
    /// Where the plan has a budget.
    pub(super) purse: Option<Purse>,
}

impl Shared {
    pub(super) fn new(
        terms: Terms,
        id: String,
        account: String,
        clients: Vec<String>,
        others: BTreeMap<String, String>,
        log: Option<&mut WindowLog>,
        now: Instant,
    ) -> Self {
        let filled =
            log.and_then(|log| if log.free(now) == 0 { log.leaving().last().map(|(at, _)| *at) } else { None });
        Self {
            lines: Lines::new(&terms),
            block: Block::new(&terms, now),
            wanted: false,
            purse: terms.credits.map(Purse::new),
            terms,
            id,
            life: random_name(),
            account,
            clients,
            mode: Mode::Outside,
            must_join: true,
            joining: false,
            join_at: filled.unwrap_or(now),
            seq: 0,
            ack: 0,
            last_good: now,
            adopt_at: now,
            next: 0,
            next_slot: 0,
            asking: VecDeque::new(),
            in_call: Vec::new(),
            reports: Reports::default(),
            noted: 0,
            naming: 0,
            named: 0,
            hurry: false,
            on_the_way: Reports::default(),
            flights: BTreeMap::new(),
            slots: BTreeMap::new(),
            closed_until: None,
            slots_until: None,
            allowance: Some(1),
            clocks: None,
            stepped: false,
            others,
            others_changed: false,
            told: Told::default(),
        }
    }

    /// May the next in line be asked for, or go, at `now`?
    pub(super) fn ready(&self, log: Option<&mut WindowLog>, now: Instant) -> Result<(), Wait> {
        match self.mode {
            Mode::Outside => Err(Wait::ForEvent(None)),
            _ if self.at_hand(now) > 0 => Ok(()),
            Mode::Up => match self.closed_until {
                Some(until) if now < until => Err(Wait::Until(until)),
                _ if self.block.is_some() => Err(Wait::ForEvent(None)),
                _ if self.allowance.is_some_and(|most| self.asked() >= most) => Err(Wait::ForEvent(None)),
                _ => Ok(()),
            },
            Mode::CutOff => self.alone(log, now),
        }
    }

    /// The same without the store: after the hold, this replica's share.
    fn alone(&self, log: Option<&mut WindowLog>, now: Instant) -> Result<(), Wait> {
        let hold = self.last_good + self.terms.hold();
        if now < hold {
            return Err(Wait::Until(hold));
        }
        if now >= self.last_good + self.terms.cut_off() {
            return Err(Wait::ForEvent(None));
        }
        let (Some(share), Some(limit), Some(log)) = (self.terms.share(), self.terms.limit, log) else { return Ok(()) };
        if share == 0 {
            return Err(Wait::ForEvent(None));
        }
        if limit - log.free(now).min(limit) < share {
            return Ok(());
        }
        Err(log.next_free(now).map_or(Wait::ForEvent(None), Wait::Until))
    }

    fn asked(&self) -> u32 {
        u32::try_from(self.asking.len() + self.in_call.len()).unwrap_or(u32::MAX)
    }

    /// A call is under way or about to be, and what it brings is not known.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        let asks_for_block = self.block.as_ref().is_some_and(|block| block.left(now) == 0) && !self.is_closed(now);
        self.asked() > 0 || (asks_for_block && self.mode == Mode::Up)
    }

    /// Turns are asked for, rather than given at once.
    pub(super) fn asks(&self) -> bool {
        self.mode == Mode::Up
    }

    /// May a call be paid? While the store cannot be asked nobody knows what others spend.
    pub(super) fn funds_open(&self) -> bool {
        self.purse.is_none() || self.mode == Mode::Up
    }

    /// What was taken of a day's credits has become more or less; true if others should hear of it soon.
    pub(super) fn spent_changed(&mut self, day: i64, by: i64) -> bool {
        let less = self.purse.as_mut().is_some_and(|purse| purse.changed(day, by));
        self.hurry |= less;
        less && self.mode == Mode::Up
    }

    /// Longest that a call takes to be answered.
    pub(super) fn patience(&self) -> Duration {
        self.terms.timeout()
    }

    /// How often the store hears of us.
    pub(super) fn beat(&self) -> Duration {
        self.terms.beat()
    }

    pub(super) fn ask(&mut self, ticket: Ticket, need: Need, claim: Claim, waiter: Waiter, now: Instant) {
        self.next += 1;
        if let Some(block) = &mut self.block {
            block.take(now);
        }
        self.asking.push_back(Asking { ticket, need, claim, waiter, n: self.next });
    }

    /// A call is worth its while now.
    pub(super) fn is_urgent(&self) -> bool {
        self.mode == Mode::Up && (self.hurry || !self.asking.is_empty() || self.reports.are_urgent())
    }

    /// This replica's name, and this process'.
    pub(super) fn member(&self) -> (String, String) {
        (self.id.clone(), self.life.clone())
    }

    fn name(&self, n: u64) -> String {
        format!("{}:{n}", self.life)
    }

    /// The other members, where they are not those that were asked for last.
    pub(super) fn changed_others(&mut self) -> Option<BTreeMap<String, String>> {
        std::mem::take(&mut self.others_changed).then(|| self.others.clone())
    }

    /// What an answer's headers say of all replicas together.
    pub(super) fn tighten(&self, view: View, now: Instant) -> View {
        let (closed, at_hand) = (self.closed_until.filter(|until| *until > now), self.at_hand(now));
        let free = self.told.free.map(|free| free.saturating_add(at_hand));
        match (closed.filter(|_| at_hand == 0), free) {
            (Some(until), _) => View { remaining: 0, reset_in: until - now, ..view },
            (None, Some(free)) if free < view.remaining => View { remaining: free, ..view },
            _ => view,
        }
    }

    /// In one word, for the operator.
    pub(crate) fn state(&self, now: Instant) -> &'static str {
        match self.mode {
            Mode::Outside if self.told.why.as_deref() == Some("full") => "no_seat",
            Mode::Outside if self.told.why.as_deref() == Some("newer") => "outdated",
            Mode::Outside => "joining",
            Mode::Up => "up",
            Mode::CutOff if now < self.last_good + self.terms.hold() => "holding",
            Mode::CutOff if now < self.last_good + self.terms.cut_off() => "share",
            Mode::CutOff => "stopped",
        }
    }

    /// Since when the store has not answered.
    pub(crate) fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_good)
    }

    /// A slot whose job is not known counts for so long from now on.
    pub(super) fn follow(&mut self, max_age: Duration) {
        self.terms.max_age = max_age;
        self.lines = Lines::new(&self.terms);
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }
}

/// Whom the store is asked for is told through this.
pub(super) type Sender = oneshot::Sender<Result<Turn, NoFunds>>;

#[cfg(test)]
mod tests;
