//! Whose turn it is: weighted round robin between clients, then class order inside a client. Pure; every step costs O(log n).
//!
//! A client stands in exactly one `Place`. Those with something that could go are in the ring; the others are parked with the reason
//! that would bring them back, so that a thousand blocked clients cost a turn nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use tokio::time::Instant;

/// Turns of others that nobody waits more than: between classes of one client, and in a row by one client.
pub(crate) const MOST_TURNS: u32 = 8;

/// What a call is, in the order in which one client's calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Class {
    /// Ends a job.
    Cancel,
    /// Asks for a job's status.
    Poll,
    /// Starts a job.
    Create,
    /// LLM calls, files, templates, anything else.
    Other,
}

impl Class {
    pub(crate) const ALL: [Self; 4] = [Self::Cancel, Self::Poll, Self::Create, Self::Other];

    /// The word in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Poll => "poll",
            Self::Create => "create",
            Self::Other => "other",
        }
    }
}

/// What a waiter needs besides the minute quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    /// Credits of the day, where replicas share them.
    Funds,
    /// It holds a slot, but the upstream said that there are too many jobs: wait for one to end.
    Room,
    /// A job slot.
    Slot,
}

/// What stands in the way of jobs at this moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jobs {
    /// The account has a free slot.
    pub(crate) slot: bool,
    /// The upstream has not refused for too many jobs.
    pub(crate) room: bool,
    /// Credits can be asked for.
    pub(crate) funds: bool,
}

/// Names a waiter: client, class, and place in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) client: usize,
    pub(crate) class: Class,
    pub(crate) seq: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Idle,
    Ring,
    /// Until the client's own rate allows.
    Rate(Instant),
    /// Until the account has a slot or room.
    Slot,
    /// Until one of the client's own jobs ends.
    OwnSlot,
}

struct Lane<T> {
    waiting: [BTreeMap<u64, (Need, T)>; 4],
    passed: [u32; 4],
    weight: u32,
    credit: u32,
    place: Place,
    /// It has an entry in `for_slot`, perhaps of an earlier wait: it keeps that place.
    noted: bool,
}

/// Waiters of one account.
pub(crate) struct Line<T> {
    lanes: Vec<Lane<T>>,
    ring: VecDeque<usize>,
    for_slot: VecDeque<usize>,
    for_rate: BinaryHeap<Reverse<(Instant, usize)>>,
    len: usize,
    for_slots: usize,
    next_seq: u64,
}

/// What the line asks about a client before it gives a turn.
pub(crate) trait Shares {
    /// Its own rate allows an attempt at `now`, or from when.
    fn rate(&self, client: usize, now: Instant) -> Result<(), Instant>;
    /// Its own job limit allows one more.
    fn slot(&self, client: usize) -> bool;
}

impl<T> Line<T> {
    /// A line for clients with these weights (at least 1; large ones are scaled down to `MOST_TURNS` in a row).
    pub(crate) fn new(weights: &[u32]) -> Self {
        let largest = weights.iter().copied().max().unwrap_or(1);
        let lanes = weights.iter().map(|weight| Lane::new(scaled(*weight, largest)));
        Self {
            lanes: lanes.collect(),
            ring: VecDeque::new(),
            for_slot: VecDeque::new(),
            for_rate: BinaryHeap::new(),
            len: 0,
            for_slots: 0,
            next_seq: 0,
        }
    }

    /// Other weights, by client: `None` keeps a client's own; those beyond the last known client are new ones'. Whoever waits for a limit
    /// is asked anew, as that may have changed too.
    pub(crate) fn reweigh(&mut self, weights: &[Option<u32>]) {
        let largest = weights.iter().flatten().copied().max().unwrap_or(1);
        for (client, weight) in weights.iter().enumerate() {
            let weight = weight.map(|weight| scaled(weight, largest));
            match self.lanes.get_mut(client) {
                Some(lane) => {
                    lane.weight = weight.unwrap_or(lane.weight);
                    lane.credit = lane.credit.min(lane.weight);
                }
                None => self.lanes.push(Lane::new(weight.unwrap_or(1))),
            }
        }
        for client in 0..self.lanes.len() {
            if matches!(self.lanes[client].place, Place::Rate(_) | Place::Slot | Place::OwnSlot) {
                self.revive(client);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Waiters of a client.
    pub(crate) fn len_of(&self, client: usize) -> usize {
        self.lanes[client].waiting.iter().map(BTreeMap::len).sum()
    }

    /// Waiters that need a job slot.
    pub(crate) fn wanting_slots(&self) -> usize {
        self.for_slots
    }

    /// The next place in the order of arrival.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// Puts a waiter into the line, by its number: an earlier number goes before later ones of its class.
    pub(crate) fn join(&mut self, ticket: Ticket, need: Need, waiter: T) {
        self.count(need, true);
        let lane = &mut self.lanes[ticket.client];
        lane.waiting[ticket.class as usize].insert(ticket.seq, (need, waiter));
        let parked_for_jobs = matches!(lane.place, Place::Slot | Place::OwnSlot);
        if lane.place == Place::Idle || (parked_for_jobs && need != Need::Slot) {
            self.revive(ticket.client);
        }
    }

    /// Takes a waiter out: it gave up. `None` if it had its turn.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let (need, waiter) = self.lanes[ticket.client].waiting[ticket.class as usize].remove(&ticket.seq)?;
        self.count(need, false);
        Some(waiter)
    }

    /// Takes all out of whom this is true.
    pub(crate) fn drop_all(&mut self, is_over: impl Fn(&T) -> bool) {
        let mut gone = Vec::new();
        for lane in &mut self.lanes {
            for waiting in &mut lane.waiting {
                waiting.retain(|_, (need, waiter)| {
                    let over = is_over(waiter);
                    gone.extend(over.then_some(*need));
                    !over
                });
            }
        }
        for need in gone {
            self.count(need, false);
        }
    }

    fn count(&mut self, need: Need, joins: bool) {
        for (number, counts) in [(&mut self.len, true), (&mut self.for_slots, need == Need::Slot)] {
            match (counts, joins) {
                (true, true) => *number += 1,
                (true, false) => *number -= 1,
                (false, _) => {}
            }
        }
    }

    /// One of this client's jobs ended: it may have a slot of its own again.
    pub(crate) fn slot_freed(&mut self, client: usize) {
        if self.lanes[client].place == Place::OwnSlot {
            self.revive(client);
        }
    }

    /// The earliest instant at which a client that is parked for its own rate comes back.
    pub(crate) fn next_rate(&mut self) -> Option<Instant> {
        while let Some(&Reverse((at, client))) = self.for_rate.peek() {
            if self.lanes[client].place == Place::Rate(at) {
                return Some(at);
            }
            self.for_rate.pop();
        }
        None
    }

    /// Gives the next turn, if anybody can use one at `now`.
    pub(crate) fn next(&mut self, now: Instant, jobs: Jobs, shares: &impl Shares) -> Option<(Ticket, Need, T)> {
        loop {
            let revived = self.unpark(now, jobs);
            while let Some(&client) = self.ring.front() {
                let own_slot = shares.slot(client);
                let lane = &mut self.lanes[client];
                if lane.waiting.iter().all(BTreeMap::is_empty) {
                    self.park(client, Place::Idle);
                } else if let Err(at) = shares.rate(client, now) {
                    self.park(client, Place::Rate(at));
                } else if let Some(class) = lane.pick(jobs, own_slot) {
                    return self.serve(client, class);
                } else if own_slot || !jobs.room {
                    self.park(client, Place::Slot);
                } else {
                    self.park(client, Place::OwnSlot);
                }
            }
            if !revived {
                return None;
            }
        }
    }

    fn serve(&mut self, client: usize, class: Class) -> Option<(Ticket, Need, T)> {
        let lane = &mut self.lanes[client];
        let (seq, (need, waiter)) = lane.waiting[class as usize].pop_first()?;
        lane.credit = lane.credit.saturating_sub(1);
        if lane.credit == 0 {
            lane.credit = lane.weight;
            self.ring.rotate_left(1);
        }
        self.count(need, false);
        Some((Ticket { client, class, seq }, need, waiter))
    }

    /// Brings back those whose rate allows again and one that waited for a slot; true if it brought that one back.
    fn unpark(&mut self, now: Instant, jobs: Jobs) -> bool {
        while self.next_rate().is_some_and(|at| at <= now) {
            if let Some(Reverse((_, client))) = self.for_rate.pop() {
                self.revive(client);
            }
        }
        if !jobs.room {
            return false;
        }
        while let Some(&client) = self.for_slot.front() {
            let waits = self.lanes[client].place == Place::Slot;
            // Without a slot, `room` still serves those that hold theirs already.
            if waits && !jobs.slot && !self.lanes[client].can_go(jobs, true).contains(&true) {
                return false;
            }
            self.for_slot.pop_front();
            self.lanes[client].noted = false;
            if waits {
                // In front, for it has waited longest.
                self.lanes[client].place = Place::Ring;
                self.ring.push_front(client);
                return true;
            }
        }
        false
    }

    fn revive(&mut self, client: usize) {
        self.lanes[client].place = Place::Ring;
        self.ring.push_back(client);
    }

    fn park(&mut self, client: usize, place: Place) {
        self.ring.pop_front();
        self.lanes[client].place = place;
        match place {
            Place::Slot => {
                if !std::mem::replace(&mut self.lanes[client].noted, true) {
                    self.for_slot.push_back(client);
                }
            }
            Place::Rate(at) => self.for_rate.push(Reverse((at, client))),
            Place::Idle | Place::OwnSlot | Place::Ring => {}
        }
    }
}

/// Turns in a row of a client with this weight, where `largest` is the largest.
fn scaled(weight: u32, largest: u32) -> u32 {
    let turns = u64::from(weight) * u64::from(MOST_TURNS) / u64::from(largest.max(MOST_TURNS));
    u32::try_from(turns).unwrap_or(MOST_TURNS).max(1)
}

impl<T> Lane<T> {
    fn new(weight: u32) -> Self {
        Self { waiting: Default::default(), passed: [0; 4], weight, credit: weight, place: Place::Idle, noted: false }
    }

    /// The class whose first waiter goes next; classes in order, but none is passed over more than `MOST_TURNS` times.
    fn pick(&mut self, jobs: Jobs, own_slot: bool) -> Option<Class> {
        let ready = self.can_go(jobs, own_slot);
        let is_ready = |class: &Class| ready[*class as usize];
        let overdue = Class::ALL.into_iter().filter(is_ready).find(|class| self.passed[*class as usize] >= MOST_TURNS);
        let chosen = overdue.or_else(|| Class::ALL.into_iter().find(is_ready))?;
        for class in Class::ALL.into_iter().filter(is_ready) {
            let passed = &mut self.passed[class as usize];
            *passed = if class == chosen { 0 } else { *passed + 1 };
        }
        Some(chosen)
    }

    fn can_go(&self, jobs: Jobs, own_slot: bool) -> [bool; 4] {
        Class::ALL.map(|class| {
            self.waiting[class as usize].first_key_value().is_some_and(|(_, (need, _))| match need {
                Need::Nothing => true,
                Need::Funds => jobs.funds,
                Need::Room => jobs.room,
                Need::Slot => jobs.room && jobs.slot && own_slot,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const ALL_FREE: Jobs = Jobs { slot: true, room: true, funds: true };

    struct Unlimited;
    impl Shares for Unlimited {
        fn rate(&self, _: usize, _: Instant) -> Result<(), Instant> {
            Ok(())
        }
        fn slot(&self, _: usize) -> bool {
            true
        }
    }

    fn join(line: &mut Line<u64>, client: usize, class: Class) -> Ticket {
        let seq = line.number();
        let ticket = Ticket { client, class, seq };
        let need = if class == Class::Create { Need::Slot } else { Need::Nothing };
        line.join(ticket, need, seq);
        ticket
    }

    fn join_many(line: &mut Line<u64>, client: usize, class: Class, count: u32) {
        for _ in 0..count {
            join(line, client, class);
        }
    }

    fn order(line: &mut Line<u64>, jobs: Jobs) -> Vec<(usize, Class)> {
        let now = Instant::now();
        std::iter::from_fn(|| line.next(now, jobs, &Unlimited))
            .map(|(ticket, _, _)| (ticket.client, ticket.class))
            .collect()
    }

    #[test]
    fn clients_alternate_whatever_the_length_of_their_lines() {
        let mut line = Line::new(&[1, 1]);
        join_many(&mut line, 0, Class::Create, 1000);
        join_many(&mut line, 1, Class::Other, 3);
        let served: Vec<usize> = order(&mut line, ALL_FREE).iter().take(6).map(|(client, _)| *client).collect();
        assert_eq!(served, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn weights_give_turns_in_proportion_and_at_most_eight_in_a_row() {
        let mut line = Line::new(&[2, 1]);
        for client in [0, 1] {
            join_many(&mut line, client, Class::Poll, 30);
        }
        let first = order(&mut line, ALL_FREE).iter().take(15).filter(|(client, _)| *client == 0).count();
        assert_eq!(first, 10);

        let mut line = Line::new(&[1000, 1]);
        join_many(&mut line, 0, Class::Poll, 100);
        join(&mut line, 1, Class::Poll);
        let served = order(&mut line, ALL_FREE);
        assert_eq!(served.iter().position(|(client, _)| *client == 1), Some(8));
    }

    #[test]
    fn classes_go_in_order_but_none_starves() {
        let mut line = Line::new(&[1]);
        join(&mut line, 0, Class::Other);
        join_many(&mut line, 0, Class::Poll, 20);
        join(&mut line, 0, Class::Cancel);
        let served = order(&mut line, ALL_FREE);
        assert_eq!(served[0].1, Class::Cancel);
        assert_eq!(served.iter().position(|(_, class)| *class == Class::Other), Some(8));
    }

    #[test]
    fn creates_without_a_slot_do_not_hold_up_polls() {
        let mut line = Line::new(&[1]);
        join(&mut line, 0, Class::Create);
        let none = Jobs { slot: false, room: true, funds: true };
        assert_eq!(order(&mut line, none), []);
        join(&mut line, 0, Class::Poll);
        assert_eq!(order(&mut line, none), [(0, Class::Poll)]);
        assert_eq!(line.wanting_slots(), 1);
        assert_eq!(order(&mut line, ALL_FREE), [(0, Class::Create)]);
    }

    #[test]
    fn a_retry_with_a_slot_is_not_parked_behind_its_client_s_own_limit() {
        struct NoneOfItsOwn;
        impl Shares for NoneOfItsOwn {
            fn rate(&self, _: usize, _: Instant) -> Result<(), Instant> {
                Ok(())
            }
            fn slot(&self, _: usize) -> bool {
                false
            }
        }
        let mut line = Line::new(&[1]);
        let now = Instant::now();
        let (first, second) = (line.number(), line.number());
        let ticket = |seq| Ticket { client: 0, class: Class::Create, seq };
        line.join(ticket(second), Need::Slot, second);
        assert!(line.next(now, ALL_FREE, &NoneOfItsOwn).is_none(), "the first holds the client's only slot");
        line.join(ticket(first), Need::Room, first);
        let next = line.next(now, ALL_FREE, &NoneOfItsOwn);
        assert_eq!(next.map(|(ticket, ..)| ticket.seq), Some(first));
    }

    #[test]
    fn a_retry_keeps_its_place_in_the_order_of_arrival() {
        let mut line = Line::new(&[1]);
        let first = join(&mut line, 0, Class::Create);
        join(&mut line, 0, Class::Create);
        let now = Instant::now();
        assert_eq!(line.next(now, ALL_FREE, &Unlimited).map(|(ticket, ..)| ticket), Some(first));
        line.join(first, Need::Room, first.seq);
        assert!(
            line.next(now, Jobs { slot: true, room: false, funds: true }, &Unlimited).is_none(),
            "no room, so nobody goes"
        );
        let next = line.next(now, Jobs { slot: false, room: true, funds: true }, &Unlimited);
        assert_eq!(next.map(|(ticket, ..)| ticket), Some(first));
    }

    #[test]
    fn a_client_at_its_own_rate_comes_back_in_time() {
        struct Until(Instant, Instant);
        impl Shares for Until {
            fn rate(&self, client: usize, _: Instant) -> Result<(), Instant> {
                if client == 0 && self.0 < self.1 { Err(self.1) } else { Ok(()) }
            }
            fn slot(&self, _: usize) -> bool {
                true
            }
        }
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut line = Line::new(&[1, 1]);
        join(&mut line, 0, Class::Poll);
        join(&mut line, 1, Class::Poll);
        assert_eq!(line.next(now, ALL_FREE, &Until(now, later)).map(|(t, ..)| t.client), Some(1));
        assert!(line.next(now, ALL_FREE, &Until(now, later)).is_none());
        assert_eq!(line.next_rate(), Some(later));
        assert_eq!(line.next(later, ALL_FREE, &Until(later, later)).map(|(t, ..)| t.client), Some(0));
    }

    proptest! {
        /// Whatever joins and leaves, every waiter gets exactly one turn, and its length is counted right.
        #[test]
        fn nobody_is_lost(steps in prop::collection::vec((0_usize..5, 0_usize..4, 0_u8..4), 1..300)) {
            let mut line = Line::new(&[1, 2, 3, 8, 20]);
            let (mut waiting, mut served) = (Vec::new(), 0);
            let now = Instant::now();
            for (client, class, act) in &steps {
                match act {
                    0 => if let Some(ticket) = waiting.pop() { prop_assert!(line.leave(ticket).is_some()); },
                    1 => {
                        let jobs = Jobs { slot: client % 2 == 0, room: class % 2 == 0, funds: true };
                        if let Some((ticket, ..)) = line.next(now, jobs, &Unlimited) {
                            waiting.retain(|waiter| *waiter != ticket);
                            served += 1;
                        }
                    }
                    _ => waiting.push(join(&mut line, *client, Class::ALL[*class])),
                }
                prop_assert_eq!(line.len(), waiting.len());
            }
            let left = order(&mut line, ALL_FREE).len();
            prop_assert_eq!(left, waiting.len());
            prop_assert!(line.is_empty());
            prop_assert!(served + left <= steps.len());
        }
    }

    #[test]
    fn who_waited_for_a_limit_is_asked_anew_when_it_may_have_changed() {
        struct Of(Option<Instant>, bool);
        impl Shares for Of {
            fn rate(&self, _: usize, now: Instant) -> Result<(), Instant> {
                self.0.filter(|at| *at > now).map_or(Ok(()), Err)
            }
            fn slot(&self, _: usize) -> bool {
                self.1
            }
        }
        let now = Instant::now();
        let ticket = |client, class, seq| Ticket { client, class, seq };
        let mut line = Line::new(&[1]);
        line.join(ticket(0, Class::Other, 1), Need::Nothing, ());
        assert!(line.next(now, ALL_FREE, &Of(Some(now + Duration::from_secs(9)), true)).is_none());
        line.reweigh(&[Some(1), Some(3)]);
        assert!(line.next(now, ALL_FREE, &Of(None, true)).is_some(), "its rate was raised");
        line.join(ticket(1, Class::Create, 2), Need::Slot, ());
        assert!(line.next(now, ALL_FREE, &Of(None, false)).is_none());
        line.reweigh(&[None, Some(3)]);
        assert!(line.next(now, ALL_FREE, &Of(None, true)).is_some(), "its jobs were");
        assert!(line.is_empty());
    }
}
