//! What an account and the store have to tell each other, between two calls. Pure: every method gets `now`; `broker` does the calls.
//!
//! The line decides here as it does without a store. Whoever it lets go is then asked for: a place, and for creates a slot. What the store
//! refuses goes back into the line, and nobody asks again before the instant that it told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::proxy::quota::window::WindowLog;
use crate::proxy::quota::{Claim, View, Wait};
use crate::state::redis::wire::{AskFor, Lines, Op, Paid, Reply, Request, SlotEntry, micros};
use crate::state::redis::{Terms, random_name};

use self::purse::{NoFunds, Purse};
use super::line::{Need, Ticket};
use super::{Turn, Waiter};

/// The day's credits.
pub(crate) mod purse;

/// The most that is asked for in one call.
const MOST_ASKED: u32 = 256;

/// A place that the store has granted, or one of this replica's own share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// `None`: of the share.
    n: Option<u64>,
    /// The day and the millionths of a credit that came with it, until somebody has taken them.
    pub(super) funded: Option<(i64, u64)>,
    /// The attempt must be sent by then: the place is not kept for longer.
    pub(crate) good_until: Instant,
}

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

/// A job slot of ours, as the store knows it or will.
#[derive(Debug, Clone)]
struct Held {
    entry: SlotEntry,
    /// Another replica has it by now, or had the job before: it is not ours to free.
    foreign: bool,
    /// What another replica has paid for it is to be refunded.
    refund: bool,
}

/// Reports that are on their way or wait for it.
#[derive(Debug, Default)]
struct Reports {
    /// By place: when it comes free.
    ends: BTreeMap<u64, Instant>,
    freed: Vec<(String, u32, u8)>,
    /// Slots to be told, by number.
    slots: BTreeSet<u32>,
    closed: Option<Instant>,
    paced: bool,
}

impl Reports {
    /// Others wait for these. That an attempt was answered can be told any time in the window to come.
    fn are_urgent(&self) -> bool {
        !self.freed.is_empty() || !self.slots.is_empty() || self.closed.is_some() || self.paced
    }

    /// Those of a call that failed, before these: what is newer stays.
    fn put_back(&mut self, earlier: Self) {
        for (n, at) in earlier.ends {
            self.ends.entry(n).or_insert(at);
        }
        self.freed.splice(0..0, earlier.freed);
        self.slots.extend(earlier.slots);
        self.closed = self.closed.max(earlier.closed);
        self.paced |= earlier.paced;
    }
}

/// The server's clock and ours, at the last answer.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    server: Duration,
    sent: Instant,
    got: Instant,
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
            Mode::Up => match self.closed_until {
                Some(until) if now < until => Err(Wait::Until(until)),
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
    pub(super) fn is_busy(&self) -> bool {
        self.asked() > 0
    }

    /// A place of our own share, which is asked of nobody.
    pub(super) fn own_place(&self, now: Instant) -> Place {
        Place { n: None, funded: None, good_until: now + self.terms.grant }
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

    /// What was paid for this job is to be refunded, where another replica did: ours is in our own book.
    pub(super) fn refund_slot_of(&mut self, job: &str) {
        for held in self.slots.values_mut().filter(|held| held.entry.job == job && !held.foreign) {
            held.refund = held.entry.paid.as_ref().is_some_and(|paid| paid.by != self.id);
        }
    }

    /// May a job start? While the store cannot be asked nobody knows how many live.
    pub(super) fn slots_open(&self, now: Instant) -> bool {
        self.mode == Mode::Up && self.slots_until.is_none_or(|until| until <= now)
    }

    /// When to ask for a slot again.
    pub(super) fn slots_until(&self) -> Option<Instant> {
        self.slots_until
    }

    /// Longest that a call takes to be answered.
    pub(super) fn patience(&self) -> Duration {
        self.terms.timeout()
    }

    /// How often the store hears of us.
    pub(super) fn beat(&self) -> Duration {
        self.terms.beat()
    }

    pub(super) fn ask(&mut self, ticket: Ticket, need: Need, claim: Claim, waiter: Waiter) {
        self.next += 1;
        self.asking.push_back(Asking { ticket, need, claim, waiter, n: self.next });
    }

    /// A call is worth its while now.
    pub(super) fn is_urgent(&self) -> bool {
        self.mode == Mode::Up && (self.hurry || !self.asking.is_empty() || self.reports.are_urgent())
    }

    /// The head of an attempt is being written; without a place it spends our share.
    pub(super) fn sent(&mut self, place: Option<&Place>, now: Instant) {
        match place.and_then(|place| place.n) {
            Some(n) => {
                self.flights.insert(n, now);
            }
            None => self.must_join = true,
        }
    }

    pub(super) fn unsent(&mut self, place: Option<&Place>) {
        if let Some(n) = place.and_then(|place| place.n) {
            self.flights.remove(&n);
        }
    }

    pub(super) fn answered(&mut self, place: Option<&Place>, now: Instant) {
        if let Some(n) = place.and_then(|place| place.n)
            && let Some(sent) = self.flights.remove(&n)
        {
            let counted_by = now.min(sent + self.terms.jitter);
            self.reports.ends.insert(n, counted_by + self.terms.window);
        }
    }

    /// Nothing was sent.
    pub(super) fn given_back(&mut self, place: Option<&Place>, now: Instant) {
        if let (Some((day, amount)), Some(purse)) = (place.and_then(|place| place.funded), &mut self.purse) {
            purse.changed(day, -i64::try_from(amount).unwrap_or(i64::MAX));
        }
        if let Some(n) = place.and_then(|place| place.n) {
            self.reports.ends.insert(n, now);
            self.hurry = true;
        }
    }

    /// The upstream has refused: nobody of the fleet asks it until then.
    pub(super) fn close(&mut self, until: Instant, paced: bool) {
        self.reports.closed = self.reports.closed.max(Some(until));
        self.reports.paced |= paced;
    }

    /// A slot that was not asked for: an earlier process', or of a job that was started past us.
    pub(super) fn hold_slot(&mut self, client: usize, job: &str, model: &str) -> u32 {
        let n = self.new_slot(client);
        self.bind(n, job, model);
        n
    }

    fn new_slot(&mut self, client: usize) -> u32 {
        self.next += 1;
        let entry = SlotEntry {
            slot: self.name(self.next),
            fence: 1,
            job: String::new(),
            model: String::new(),
            client: self.clients[client].clone(),
            account: self.account.clone(),
            paid: None,
        };
        self.keep_slot(entry)
    }

    fn keep_slot(&mut self, entry: SlotEntry) -> u32 {
        self.next_slot += 1;
        self.slots.insert(self.next_slot, Held { entry, foreign: false, refund: false });
        self.next_slot
    }

    /// The slot is this job's.
    pub(super) fn bind(&mut self, slot: u32, job: &str, model: &str) {
        let Some(held) = self.slots.get_mut(&slot) else { return };
        if held.entry.job == job && !job.is_empty() {
            return;
        }
        job.clone_into(&mut held.entry.job);
        model.clone_into(&mut held.entry.model);
        if !held.foreign {
            self.reports.slots.insert(slot);
            self.noted += 1;
        }
    }

    /// How many jobs' names were noted, and how many of these the store has.
    pub(super) fn names(&self) -> (u64, u64) {
        (self.noted, self.named)
    }

    pub(super) fn free_slot(&mut self, slot: u32) {
        self.reports.slots.remove(&slot);
        if let Some(held) = self.slots.remove(&slot).filter(|held| !held.foreign) {
            self.reports.freed.push((held.entry.slot, held.entry.fence, u8::from(held.refund)));
            self.slots_until = None;
        }
    }

    /// This replica's name, and this process'.
    pub(super) fn member(&self) -> (String, String) {
        (self.id.clone(), self.life.clone())
    }

    /// Whether the slot that we hold for this job is ours for the store too; `None` while that is not known.
    pub(super) fn has_slot(&self, job: &str) -> Option<bool> {
        let (number, held) = self.slots.iter().find(|(_, held)| held.entry.job == job)?;
        let unsaid = self.reports.slots.contains(number) || self.on_the_way.slots.contains(number);
        let known = self.mode == Mode::Up && !self.must_join && !self.joining && !unsaid;
        if held.foreign { Some(false) } else { known.then_some(true) }
    }

    /// The client of this name, or the first.
    pub(super) fn client(&self, name: &str) -> usize {
        self.clients.iter().position(|client| client == name).unwrap_or(0)
    }

    fn name(&self, n: u64) -> String {
        format!("{}:{n}", self.life)
    }

    /// The next call; `None` while nothing may be said. `more`: others wait in the line. `today` is the day by our own calendar.
    pub(super) fn prepare(
        &mut self,
        log: Option<&mut WindowLog>,
        more: bool,
        today: i64,
        now: Instant,
    ) -> Option<Request> {
        if self.must_join && now < self.join_at {
            return None;
        }
        self.seq += 1;
        let op = if self.must_join { Op::Join } else { Op::Call };
        let mut request = Request { stepped: self.stepped, ..self.request(op) };
        self.naming = self.noted;
        request.purse = self.purse.as_mut().map(|purse| purse.tell(today, self.must_join));
        if self.must_join {
            // What is sent from here on without a place is not part of what is told now.
            (self.must_join, self.joining) = (false, true);
            self.fill_join(&mut request, log, now);
        } else {
            self.fill_call(&mut request, more, now);
        }
        Some(request)
    }

    /// All that we hold: what was to be reported is in it.
    fn fill_join(&mut self, request: &mut Request, log: Option<&mut WindowLog>, now: Instant) {
        let held = std::mem::take(&mut self.reports);
        request.freed.clone_from(&held.freed);
        self.on_the_way = Reports { freed: held.freed, ..Reports::default() };
        self.reports = Reports { closed: held.closed, paced: held.paced, ..Reports::default() };
        self.flights.clear();
        if let Some(log) = log {
            log.free(now);
            request.uploads = log.leaving().map(|(at, count)| (micros(*at - now), *count)).collect();
            request.uploads.push((micros(self.terms.full()), log.under_way()));
        }
        request.slots = self.slots.values().filter(|held| !held.foreign).map(|held| held.entry.clone()).collect();
        request.others.clone_from(&self.others);
    }

    fn fill_call(&mut self, request: &mut Request, more: bool, now: Instant) {
        let counted = |sent: &Instant| *sent + self.terms.jitter <= now;
        let late: Vec<u64> = self.flights.iter().filter(|(_, sent)| counted(sent)).map(|(n, _)| *n).collect();
        for n in late {
            if let Some(sent) = self.flights.remove(&n) {
                self.reports.ends.insert(n, sent + self.terms.jitter + self.terms.window);
            }
        }
        self.hurry = false;
        self.on_the_way = std::mem::take(&mut self.reports);
        let reports = &self.on_the_way;
        let left = |at: &Instant| micros(at.saturating_duration_since(now));
        request.ends = reports.ends.iter().map(|(n, at)| (self.name(*n), left(at))).collect();
        request.freed.clone_from(&reports.freed);
        request.slots = reports.slots.iter().filter_map(|n| self.slots.get(n)).map(|held| held.entry.clone()).collect();
        request.closed = reports.closed.as_ref().map(left);
        request.paced = reports.paced;
        if self.mode == Mode::Up {
            let most = self.asking.len().min(MOST_ASKED as usize);
            self.in_call = self.asking.drain(..most).collect();
            request.more = more || !self.asking.is_empty();
        }
        request.asks = self.in_call.iter().map(|asking| self.ask_for(asking)).collect();
        // Who asks for nothing looks after what others left; and who asks all the time, as often as it has to call.
        if self.in_call.is_empty() || now >= self.adopt_at {
            self.adopt_at = now + self.terms.beat();
            request.adopt = Some(self.slots.values().filter(|held| !held.foreign).count());
        }
    }

    fn ask_for(&self, asking: &Asking) -> AskFor {
        let name = self.name(asking.n);
        // The place's name does for the slot too.
        let slot = if asking.need == Need::Slot { name.clone() } else { String::new() };
        let price = asking.waiter.price.micro();
        AskFor(name, slot, self.clients[asking.ticket.client].clone(), self.account.clone(), price)
    }

    /// The call that was sent at `sent` has failed: what it was to do may have been done.
    pub(super) fn failed(&mut self, now: Instant) -> Outcome {
        if self.mode == Mode::Up {
            self.mode = Mode::CutOff;
        }
        self.must_join |= std::mem::take(&mut self.joining);
        let back = self.take_back(now);
        let unsaid = std::mem::take(&mut self.on_the_way);
        self.reports.put_back(unsaid);
        Outcome { back, ..Outcome::default() }
    }

    /// Whoever was asked for goes back, and what may have been granted is given back.
    fn take_back(&mut self, now: Instant) -> Vec<Asking> {
        let mut back = std::mem::take(&mut self.in_call);
        for asking in &back {
            self.reports.ends.insert(asking.n, now);
            if asking.need == Need::Slot {
                let slot = self.name(asking.n);
                self.reports.freed.push((slot, 1, 0));
            }
        }
        back.extend(self.asking.drain(..));
        back
    }

    /// The answer to the call that was sent at `sent`.
    pub(super) fn heard(&mut self, reply: &Reply, sent: Instant, now: Instant) -> Outcome {
        if let Some(refused) = &reply.refused {
            return self.turned_away(refused, now);
        }
        self.joining = false;
        let stepped = self.has_stepped(reply, sent, now);
        self.stepped = stepped;
        self.on_the_way = Reports::default();
        (self.ack, self.last_good, self.named) = (self.seq, sent, self.naming);
        for held in self.slots.values_mut().filter(|held| reply.lost.contains(&held.entry.slot)) {
            held.foreign = true;
        }
        let was = std::mem::replace(&mut self.mode, Mode::Up);
        let reset = reply.why.as_ref().filter(|why| self.told.why.as_ref() != Some(why)).cloned();
        self.note(reply, now);
        let mut outcome = Outcome::default();
        if reply.joined {
            (self.allowance, self.closed_until) = (Some(1), None);
        }
        if stepped {
            // Granted by a clock that cannot be trusted.
            outcome.back = self.take_back(now);
            self.take_over(reply, &mut outcome);
            (self.allowance, self.closed_until) = (Some(1), None);
            outcome.news = Some(News::Stepped);
            return outcome;
        }
        self.share_out(reply, sent, now, &mut outcome);
        outcome.news = match (was, reset) {
            (_, Some(why)) if matches!(&*why, "new" | "clock" | "rollback" | "failover") => Some(News::Reset(why)),
            (Mode::Outside, _) => Some(News::Joined),
            (Mode::CutOff, _) => Some(News::Back),
            (Mode::Up, _) => None,
        };
        outcome
    }

    fn turned_away(&mut self, refused: &str, now: Instant) -> Outcome {
        let is_new = self.told.why.as_deref() != Some(refused);
        let news = match refused {
            "full" if is_new => Some(News::NoSeat),
            "newer" if is_new => Some(News::Outdated),
            _ => None,
        };
        self.told.why = Some(refused.to_owned());
        // Not known to the store any more: as good as no answer, until it is told what we hold. Without a seat there is no share.
        self.mode = if refused == "unknown" && self.mode != Mode::Outside { Mode::CutOff } else { Mode::Outside };
        (self.must_join, self.joining) = (true, false);
        let back = self.take_back(now);
        let unsaid = std::mem::take(&mut self.on_the_way);
        self.reports.put_back(unsaid);
        Outcome { back, news, ..Outcome::default() }
    }

    /// Between two answers the server's clock went as ours did, give or take J.
    fn has_stepped(&mut self, reply: &Reply, sent: Instant, got: Instant) -> bool {
        let Some(server) = reply.server_time() else { return true };
        let before = self.clocks.replace(Clocks { server, sent, got });
        let Some(before) = before else { return false };
        let longest = got - before.sent + self.terms.jitter;
        let shortest = sent.saturating_duration_since(before.got).saturating_sub(self.terms.jitter);
        server.checked_sub(before.server).is_none_or(|passed| passed > longest || passed < shortest)
    }

    fn note(&mut self, reply: &Reply, now: Instant) {
        if let (Some(purse), Some(reply)) = (&mut self.purse, &reply.purse) {
            purse.heard(reply, now);
        }
        if (!reply.others.is_empty() || reply.members == 1) && self.others != reply.others {
            self.others.clone_from(&reply.others);
            self.others_changed = true;
        }
        self.told = Told {
            free: reply.free,
            used: reply.used,
            live: reply.live,
            members: reply.members,
            away: reply.away,
            why: reply.why.clone(),
            paced: reply.paced,
        };
    }

    fn take_over(&mut self, reply: &Reply, outcome: &mut Outcome) {
        for entry in &reply.adopted {
            let number = self.keep_slot(entry.clone());
            outcome.adopted.push((number, entry.clone()));
        }
    }

    fn share_out(&mut self, reply: &Reply, sent: Instant, now: Instant, outcome: &mut Outcome) {
        let wanted_slots = self.in_call.iter().any(|asking| asking.need == Need::Slot);
        for (index, asking) in std::mem::take(&mut self.in_call).into_iter().enumerate() {
            if let (Some(2), Some(purse)) = (reply.granted.get(index), &self.purse) {
                let no = purse.short_of(asking.waiter.price, now);
                outcome.unfunded.push((asking, no));
                continue;
            }
            if reply.granted.get(index) != Some(&1) {
                outcome.back.push(asking);
                continue;
            }
            let price = asking.waiter.price.micro();
            let purse = self.purse.as_mut().filter(|_| price > 0);
            let funded = purse.map(|purse| (purse.granted(price), price));
            let slot = (asking.need == Need::Slot).then(|| {
                let n = self.new_slot(asking.ticket.client);
                let name = self.name(asking.n);
                if let Some(held) = self.slots.get_mut(&n) {
                    held.entry.slot = name;
                    held.entry.paid = funded.map(|(day, amount)| Paid { amount, day, by: self.id.clone() });
                }
                n
            });
            let place = Place { n: Some(asking.n), funded, good_until: sent + self.terms.grant };
            outcome.served.push((asking, place, slot));
        }
        self.take_over(reply, outcome);
        self.allowance = match (reply.free, reply.wait) {
            (None, None) => None,
            (Some(free), None) => Some(free.clamp(1, MOST_ASKED)),
            (_, Some(_)) => Some(1),
        };
        self.closed_until = reply.wait.map(|wait| now + Duration::from_micros(wait));
        if wanted_slots {
            self.slots_until = reply.no_slot.then(|| now + self.terms.slot_poll());
        }
        self.must_join |= reply.odd;
    }

    /// The other members, where they are not those that were asked for last.
    pub(super) fn changed_others(&mut self) -> Option<BTreeMap<String, String>> {
        std::mem::take(&mut self.others_changed).then(|| self.others.clone())
    }

    /// What an answer's headers say of all replicas together.
    pub(super) fn tighten(&self, view: View, now: Instant) -> View {
        let closed = self.closed_until.filter(|until| *until > now);
        match (closed, self.told.free) {
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

    /// The last call: nothing is sent any more. `None` where the store does not know us.
    pub(super) fn leave(&mut self) -> Option<Request> {
        if self.mode == Mode::Outside {
            return None;
        }
        self.mode = Mode::Outside;
        self.seq += 1;
        Some(self.request(Op::Leave))
    }

    /// Says who calls, and nothing else yet.
    fn request(&self, op: Op) -> Request {
        Request {
            op,
            id: self.id.clone(),
            life: self.life.clone(),
            seq: self.seq,
            ack: self.ack,
            terms: self.lines.clone(),
            stepped: false,
            ends: Vec::new(),
            freed: Vec::new(),
            slots: Vec::new(),
            closed: None,
            paced: false,
            uploads: Vec::new(),
            others: BTreeMap::new(),
            asks: Vec::new(),
            more: false,
            adopt: None,
            purse: None,
        }
    }
}

/// Whom the store is asked for is told through this.
pub(super) type Sender = oneshot::Sender<Result<Turn, NoFunds>>;

#[cfg(test)]
mod tests;
