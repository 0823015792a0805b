//! What the next call says: reports of what was sent and freed, and what is asked for.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::proxy::quota::window::WindowLog;
use crate::state::redis::wire::{AskFor, Op, Request, micros};

use super::super::line::Need;
use super::{Asking, MOST_ASKED, Mode, Shared};

/// Reports that are on their way or wait for it.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// By place: when it comes free.
    pub(super) ends: BTreeMap<u64, Instant>,
    pub(super) freed: Vec<(String, u32, u8)>,
    /// Slots to be told, by number.
    pub(super) slots: BTreeSet<u32>,
    pub(super) closed: Option<Instant>,
    pub(super) paced: bool,
}

impl Reports {
    /// Others wait for these. That an attempt was answered can be told any time in the window to come.
    pub(super) fn are_urgent(&self) -> bool {
        !self.freed.is_empty() || !self.slots.is_empty() || self.closed.is_some() || self.paced
    }

    /// Those of a call that failed, before these: what is newer stays.
    pub(super) fn put_back(&mut self, earlier: Self) {
        for (n, at) in earlier.ends {
            self.ends.entry(n).or_insert(at);
        }
        self.freed.splice(0..0, earlier.freed);
        self.slots.extend(earlier.slots);
        self.closed = self.closed.max(earlier.closed);
        self.paced |= earlier.paced;
    }
}

impl Shared {
    /// The next call; `None` while nothing may be said. `waiting`: so many wait in the line for a place. `today` is the day by our own calendar.
    pub(in crate::proxy::queue) fn prepare(
        &mut self,
        log: Option<&mut WindowLog>,
        waiting: usize,
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
            self.fill_join(&mut request, log, waiting, now);
        } else {
            self.fill_call(&mut request, log, waiting, now);
        }
        Some(request)
    }

    /// All that we hold: what was to be reported is in it.
    fn fill_join(&mut self, request: &mut Request, log: Option<&mut WindowLog>, waiting: usize, now: Instant) {
        let held = std::mem::take(&mut self.reports);
        request.freed.clone_from(&held.freed);
        self.on_the_way = Reports { freed: held.freed, ..Reports::default() };
        self.reports = Reports { closed: held.closed, paced: held.paced, ..Reports::default() };
        self.flights.clear();
        if let Some(block) = &mut self.block {
            block.forgotten();
            self.tell_attempts(request, log, waiting, now);
        } else if let Some(log) = log {
            log.free(now);
            request.uploads = log.leaving().map(|(at, count)| (micros(*at - now), *count)).collect();
            request.uploads.push((micros(self.terms.full()), log.under_way()));
        }
        request.slots = self.slots.values().filter(|held| !held.foreign).map(|held| held.entry.clone()).collect();
        request.others.clone_from(&self.others);
    }

    /// Where they are granted in blocks.
    fn tell_attempts(&mut self, request: &mut Request, log: Option<&mut WindowLog>, waiting: usize, now: Instant) {
        let even = self.is_even();
        if let (Some(block), Some(log)) = (&mut self.block, log) {
            let told = block.tell(log, waiting, even, now);
            (request.open, request.spent) = (Some(told.open), told.spent);
        }
    }

    fn fill_call(&mut self, request: &mut Request, log: Option<&mut WindowLog>, waiting: usize, now: Instant) {
        self.tell_attempts(request, log, waiting, now);
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
            request.more = waiting > 0 || !self.asking.is_empty();
            if !self.is_closed(now) {
                let wanted = self.block.as_ref().map(|block| block.want(waiting, self.is_even(), now));
                request.want = wanted.filter(|wanted| *wanted > 0);
            }
        }
        self.wanted = request.want.is_some();
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

    /// The last call: nothing is sent any more. `None` where the store does not know us.
    pub(in crate::proxy::queue) fn leave(&mut self) -> Option<Request> {
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
            open: None,
            spent: Vec::new(),
            want: None,
            more: false,
            adopt: None,
            purse: None,
        }
    }
}
