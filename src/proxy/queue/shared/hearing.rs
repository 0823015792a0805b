//! What an answer, or its absence, changes.

use std::time::Duration;

use tokio::time::Instant;

use crate::state::redis::wire::{Paid, Reply};

use super::super::line::Need;
use super::{Asking, MOST_ASKED, Mode, News, Origin, Outcome, Place, Reports, Shared, Told};

/// The server's clock and ours, at the last answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) server: Duration,
    pub(super) sent: Instant,
    pub(super) got: Instant,
}

/// Two clocks may be apart by so much more after a moment, and a thousandth of the time.
const DRIFT: Duration = Duration::from_millis(20);

impl Shared {
    /// The call that was sent at `sent` has failed: what it was to do may have been done.
    pub(in crate::proxy::queue) fn failed(&mut self, now: Instant) -> Outcome {
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
            if self.block.is_none() {
                self.reports.ends.insert(asking.n, now);
            }
            if asking.need == Need::Slot {
                let slot = self.name(asking.n);
                self.reports.freed.push((slot, 1, 0));
            }
        }
        back.extend(self.asking.drain(..));
        if let Some(block) = &mut self.block {
            block.put_back(back.len());
        }
        back
    }

    /// The answer to the call that was sent at `sent`.
    pub(in crate::proxy::queue) fn heard(&mut self, reply: &Reply, sent: Instant, now: Instant) -> Outcome {
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
            self.give_up();
            self.take_over(reply, &mut outcome);
            (self.allowance, self.closed_until) = (Some(1), None);
            outcome.news = Some(News::Stepped);
            return outcome;
        }
        self.hear_of_block(reply, sent, now);
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

    /// Between two answers the server's clock went as ours did: no further ahead than clocks drift apart, for that would free places early, and
    /// less far by J at most.
    fn has_stepped(&mut self, reply: &Reply, sent: Instant, got: Instant) -> bool {
        let Some(server) = reply.server_time() else { return true };
        let before = self.clocks.replace(Clocks { server, sent, got });
        let Some(before) = before else { return false };
        let between = got - before.sent;
        let longest = between + (DRIFT + between / 1000).min(self.terms.jitter);
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

    /// What was granted at once, and what is left of earlier blocks, for the store has counted that again.
    fn hear_of_block(&mut self, reply: &Reply, sent: Instant, now: Instant) {
        let (terms, even) = (&self.terms, self.is_even());
        let until = if even { now + terms.jitter.max(terms.patience()) } else { sent + terms.grant };
        if let Some(block) = &mut self.block {
            block.heard(reply.block, until.min(sent + terms.grant), sent + terms.grant);
            if self.wanted {
                block.left_little(reply.wait.is_some(), reply.free >= terms.chunk());
            }
        }
    }

    /// Nothing more is sent of what was granted beforehand.
    pub(in crate::proxy::queue) fn give_up(&mut self) {
        if let Some(block) = &mut self.block {
            block.give_up();
        }
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
                if let Some(block) = &mut self.block {
                    block.put_back(1);
                }
                outcome.unfunded.push((asking, no));
                continue;
            }
            if reply.granted.get(index) != Some(&1) {
                if let Some(block) = &mut self.block {
                    block.put_back(1);
                }
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
            let origin = if self.block.is_some() { Origin::Block } else { Origin::Asked(asking.n) };
            let place = Place { origin, funded, good_until: sent + self.terms.grant };
            outcome.served.push((asking, place, slot));
        }
        self.take_over(reply, outcome);
        self.allowance = match (reply.free, reply.wait) {
            _ if self.block.is_some() => None,
            (None, None) => None,
            (Some(free), None) => Some(free.clamp(1, MOST_ASKED)),
            (_, Some(_)) => Some(1),
        };
        // Who asks for no block hears nothing of the one that it waits for.
        if self.block.is_none() || self.wanted || reply.wait.is_some() {
            self.closed_until = reply.wait.map(|wait| now + Duration::from_micros(wait));
        }
        if wanted_slots {
            self.slots_until = reply.no_slot.then(|| now + self.terms.slot_poll());
        }
        self.must_join |= reply.odd;
    }
}
