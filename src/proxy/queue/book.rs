//! What an account knows of its quota, its slots and its line, and what may go. Pure: every method gets `now`; whoever calls holds the lock.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{self, Amount};
use crate::proxy::quota::{Claim, Quota, Share, View, Wait};
use crate::state::ring::Ring;

use super::line::{Jobs, Line, Need, Shares, Ticket};
use super::shared::{Sender, Shared};

pub(super) struct Book {
    pub(super) quota: Quota,
    /// How many may wait.
    pub(super) max_waiting: usize,
    pub(super) jobs_limit: Option<u32>,
    pub(super) live: u32,
    /// Until when the upstream's refusal for too many jobs holds, unless a job ends before.
    pub(super) no_room_until: Option<Instant>,
    /// How long a job keeps its slot, of late; `None` while none has ended.
    pub(super) held: Option<Duration>,
    /// Until when creates go although no attempt may be left for their jobs: a caller would not wait for one.
    pub(super) hurried_until: Instant,
    /// Somebody in the line waits for nothing but the store's next answer.
    pub(super) hurried: bool,
    /// Such refusals in a row.
    pub(super) refused_for_jobs: u32,
    pub(super) clients: Clients,
    pub(super) line: Line<Waiter>,
    pub(super) wake_at: Option<Instant>,
    pub(super) ring: Option<Ring>,
    pub(super) attempts: u64,
    /// Where replicas share the account.
    pub(super) shared: Option<Box<Shared>>,
}

/// Somebody in the line.
pub(super) struct Waiter {
    pub(super) sender: Sender,
    /// After this it does not wait for another try.
    pub(super) deadline: Instant,
    /// What the store is asked for beside a place.
    pub(super) price: Amount,
}

pub(super) struct Clients(pub(super) Vec<ClientBook>);

pub(super) struct ClientBook {
    pub(super) share: Share,
    /// Which share this is: another plan makes another one.
    pub(super) made: u16,
    pub(super) jobs_limit: Option<u32>,
    pub(super) live: u32,
}

impl Clients {
    /// Takes a cell of the client's share, and says which share it is of.
    pub(super) fn take(&mut self, client: usize, now: Instant) -> u16 {
        let client = &self.0[client];
        client.share.take(now);
        client.made
    }

    /// Gives it back, if that share is still there.
    pub(super) fn refund(&mut self, client: usize, made: u16) {
        let client = &self.0[client];
        if client.made == made {
            client.share.refund();
        }
    }
}

impl ClientBook {
    pub(super) fn new(plan: Option<&config::Plan>, now: Instant) -> Self {
        Self { share: Share::new(plan, now), made: 0, jobs_limit: jobs_of(plan), live: 0 }
    }
}

pub(super) fn jobs_of(plan: Option<&config::Plan>) -> Option<u32> {
    plan.and_then(|plan| plan.concurrent_jobs).map(std::num::NonZeroU32::get)
}

impl Shares for Clients {
    fn rate(&self, client: usize, now: Instant) -> Result<(), Instant> {
        self.0[client].share.ready(now)
    }

    fn slot(&self, client: usize) -> bool {
        let client = &self.0[client];
        client.jobs_limit.is_none_or(|limit| client.live < limit)
    }
}

impl Book {
    /// May an attempt leave at `now`, or be asked for?
    pub(super) fn ready(&mut self, now: Instant) -> Result<(), Wait> {
        self.quota.ready(now)?;
        match &self.shared {
            Some(shared) => shared.ready(self.quota.log(), now),
            None => Ok(()),
        }
    }

    pub(super) fn is_urgent(&mut self, now: Instant) -> bool {
        let Some(shared) = &self.shared else { return false };
        shared.is_urgent() || (shared.wants_block(self.waiting_for_place(now), now) && self.quota.ready(now).is_ok())
    }

    /// How many of the line could go if there were places.
    pub(super) fn waiting_for_place(&self, now: Instant) -> usize {
        let open = self.shared.as_ref().is_none_or(|shared| shared.slots_open(now));
        self.line.len() - if open { 0 } else { self.line.wanting_slots() }
    }

    /// Jobs of all replicas, as far as is known.
    pub(super) fn live_in_all(&self) -> u32 {
        self.shared.as_ref().map_or(self.live, |shared| self.live.max(shared.told.live))
    }

    pub(super) fn jobs(&mut self, now: Instant) -> Jobs {
        let shared = self.shared.as_ref().is_none_or(|shared| shared.slots_open(now));
        Jobs {
            slot: shared && self.jobs_limit.is_none_or(|limit| self.live < limit && self.looks_open(now).is_none()),
            room: self.no_room_until.is_none_or(|until| until <= now),
            funds: self.shared.as_ref().is_none_or(|shared| shared.funds_open()),
        }
    }

    /// A create of such a deadline can wait for attempts to come back.
    pub(super) fn patient(&self, deadline: Instant, now: Instant) -> bool {
        self.quota.rate().is_none_or(|(_, window)| deadline >= now + window)
    }

    /// When to ask again, if a job started now would keep its slot with nobody able to see its end: the attempts that are left and come
    /// back while it runs are those that the live jobs' looks need. Its create then waits, rather than its end.
    pub(super) fn looks_open(&mut self, now: Instant) -> Option<Instant> {
        let ((limit, window), slots, held) = (self.quota.rate()?, self.jobs_limit?, self.held?);
        // What others leave for looks is not known.
        if self.shared.is_some() {
            return None;
        }
        // Long jobs outlive the window, and a plan with many slots has few attempts for each anyway.
        if now < self.hurried_until || held >= window || slots.saturating_add(1) > limit / 2 {
            return None;
        }
        // The create, the look at its job, and one at each live job.
        let needed = self.live.saturating_add(2);
        if self.quota.used(now).is_none_or(|(used, limit)| limit.saturating_sub(used) >= needed) {
            return None;
        }
        let places = self.quota.places(now)?;
        let soon = places.returns.iter().take_while(|(after, _)| *after <= held).map(|(_, count)| count);
        let enough = places.free.saturating_add(soon.sum()) >= needed;
        let next = places.returns.iter().map(|(after, _)| *after).find(|after| !after.is_zero());
        next.filter(|_| !enough).map(|after| now + after)
    }

    pub(super) fn free_for(&mut self, need: Need, client: usize, now: Instant) -> bool {
        let jobs = self.jobs(now);
        let may_start = match need {
            Need::Nothing => true,
            Need::Funds => jobs.funds,
            Need::Room => jobs.room,
            Need::Slot => jobs.room && jobs.slot && self.clients.slot(client),
        };
        may_start && self.clients.rate(client, now).is_ok() && self.ready(now).is_ok()
    }

    pub(super) fn grant(&mut self, need: Need, client: usize, now: Instant) -> Claim {
        let share = self.clients.take(client, now);
        if need == Need::Slot {
            self.live += 1;
            self.clients.0[client].live += 1;
        }
        let mut claim = self.quota.reserve(now);
        claim.share = share;
        claim
    }

    pub(super) fn next(&mut self, now: Instant) -> Option<(Ticket, Need, Claim, Waiter)> {
        if self.line.is_empty() || self.ready(now).is_err() {
            return None;
        }
        let jobs = self.jobs(now);
        let (ticket, need, waiter) = self.line.next(now, jobs, &self.clients)?;
        let claim = self.grant(need, ticket.client, now);
        Some((ticket, need, claim, waiter))
    }

    /// The opposite of `next`. Who has no time left, or has left, gets no other try.
    pub(super) fn put_back(&mut self, (ticket, need, claim, waiter): (Ticket, Need, Claim, Waiter), now: Instant) {
        self.give_back(&ticket, need, claim, now);
        if waiter.deadline > now && !waiter.sender.is_closed() {
            self.line.join(ticket, need, waiter);
        }
    }

    /// What was granted here comes back.
    pub(super) fn give_back(&mut self, ticket: &Ticket, need: Need, claim: Claim, now: Instant) {
        self.quota.release(claim, now);
        self.clients.0[ticket.client].share.refund();
        if need == Need::Slot {
            self.live = self.live.saturating_sub(1);
            let client = &mut self.clients.0[ticket.client];
            client.live = client.live.saturating_sub(1);
            self.line.slot_freed(ticket.client);
        }
    }

    /// When time alone may let somebody go.
    pub(super) fn next_wake(&mut self, now: Instant) -> Option<Instant> {
        if self.line.is_empty() {
            return None;
        }
        match self.ready(now) {
            Err(Wait::Until(at)) => return Some(at),
            Err(Wait::ForEvent(latest)) => return latest,
            Ok(()) => {}
        }
        let room = self.no_room_until.filter(|until| *until > now);
        let wants_slots = self.line.wanting_slots() > 0;
        let looks = if wants_slots { self.looks_open(now) } else { None };
        let slots = self.shared.as_ref().and_then(|shared| shared.slots_until()).filter(|at| wants_slots && *at > now);
        room.into_iter().chain(self.line.next_rate()).chain(looks).chain(slots).min()
    }

    /// A lower bound for the next departure of `client`, from rates alone.
    pub(super) fn earliest(&mut self, client: usize, now: Instant) -> Instant {
        let own = self.clients.rate(client, now).err().unwrap_or(now);
        let shared = match self.shared.as_ref().map(|shared| shared.ready(self.quota.log(), now)) {
            Some(Err(Wait::Until(at))) => at,
            _ => now,
        };
        self.quota.earliest(now).max(own).max(shared)
    }

    pub(super) fn account_view(&mut self, now: Instant) -> Option<View> {
        let view = self.quota.view(now)?;
        Some(self.shared.as_ref().map_or(view, |shared| shared.tighten(view, now)))
    }

    pub(super) fn view(&mut self, client: usize, now: Instant) -> Option<View> {
        let account = self.account_view(now);
        let own = self.clients.0[client].share.view(now);
        match (account, own) {
            (Some(account), Some(own)) if own.remaining <= account.remaining => Some(own),
            (Some(account), _) => Some(account),
            (None, own) => own,
        }
    }
}
