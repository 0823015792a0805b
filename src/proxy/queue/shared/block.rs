//! A block of attempts: granted by the store at once, for plans too large to ask for each.
//!
//! A replica sends them by its own clock, within what a grant is good for, without a call. With every call it tells the whole of what it has: how
//! many it may still send or has under way, and when those that were answered leave the window. So a call that is late, lost or comes twice
//! changes nothing. What nobody is likely to need goes back with the next call. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::quota::window::WindowLog;
use crate::state::redis::Terms;
use crate::state::redis::wire::micros;

/// At fewer than this in `Block::ahead`, none is asked for before somebody waits for it.
const WORTH_ASKING_AHEAD: u32 = 8;

/// What a call says of attempts.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Those that may still be sent, and those without an answer.
    pub(super) open: u32,
    /// Of slices that have changed: their name, how long they still count, and the attempts in them.
    pub(super) spent: Vec<(u64, u64, u32)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Block {
    /// The most in one.
    most: u32,
    /// What is likely to be sent for so long is asked for ahead.
    ahead: Duration,
    left: u32,
    /// They are to be taken by then.
    until: Instant,
    /// What was taken must be sent by then.
    good_until: Instant,
    taken: u32,
    /// Since then.
    since: Instant,
    /// In the `ahead` before it, in thousandths.
    before: u64,
    /// Slices are named by their ends, in microseconds since then.
    origin: Instant,
    /// Slices as the store knows them, and as they are being told.
    known: BTreeMap<u64, u32>,
    telling: BTreeMap<u64, u32>,
    /// The plan is used up: what lies here unused others lack.
    scarce: bool,
    /// Granted to this replica and never sent.
    lapsed: u64,
}

impl Block {
    pub(super) fn new(terms: &Terms, now: Instant) -> Option<Self> {
        terms.block.map(|most| Self {
            most,
            ahead: (terms.window / 25).max(Duration::from_micros(1)),
            left: 0,
            until: now,
            good_until: now,
            taken: 0,
            since: now,
            before: 0,
            origin: now,
            known: BTreeMap::new(),
            telling: BTreeMap::new(),
            scarce: false,
            lapsed: 0,
        })
    }

    /// Attempts that may be sent without a call.
    pub(super) fn left(&self, now: Instant) -> u32 {
        if now < self.until { self.left } else { 0 }
    }

    /// Those that were granted and never sent.
    pub(super) fn lapsed(&self) -> u64 {
        self.lapsed
    }

    /// Takes one, of which `left` has been seen, and says by when it must be sent.
    pub(super) fn take(&mut self, now: Instant) -> Instant {
        self.left = self.left.saturating_sub(1);
        if now.saturating_duration_since(self.since) >= self.ahead {
            self.count(now);
        }
        self.taken = self.taken.saturating_add(1);
        self.good_until
    }

    /// So many were taken and not sent.
    pub(super) fn put_back(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(count);
        self.taken = self.taken.saturating_sub(count);
    }

    /// All that are left go back with the next call.
    pub(super) fn give_up(&mut self) {
        self.lapsed += u64::from(std::mem::take(&mut self.left));
    }

    /// How many to ask for while so many wait; `even`: they must not be sent later than they are granted.
    pub(super) fn want(&self, waiting: usize, even: bool, now: Instant) -> u32 {
        self.desired(waiting, even, now).saturating_sub(self.left(now))
    }

    /// A call for more is worth its while; `turn`: its turn has come, after others.
    pub(super) fn is_low(&self, waiting: usize, even: bool, turn: bool, now: Instant) -> bool {
        let desired = self.desired(waiting, even, now);
        let low = match (turn, self.scarce) {
            (true, _) => desired.saturating_sub(1),
            (false, true) => 0,
            (false, false) => desired / 4,
        };
        desired > 0 && self.left(now) <= low
    }

    fn desired(&self, waiting: usize, even: bool, now: Instant) -> u32 {
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let ahead = if even { 0 } else { u32::try_from(self.pace(now) / 1_000).unwrap_or(u32::MAX) };
        let ahead = if ahead < WORTH_ASKING_AHEAD { 0 } else { ahead };
        waiting.saturating_add(ahead).min(self.most)
    }

    /// Attempts in the last `ahead`, in thousandths; what is older fades.
    fn pace(&self, now: Instant) -> u64 {
        let (passed, ahead) = (micros(now.saturating_duration_since(self.since)), micros(self.ahead));
        let taken = u64::from(self.taken) * 1_000;
        if passed < ahead {
            taken + self.before.saturating_mul(ahead - passed) / ahead
        } else {
            taken.saturating_mul(ahead) / passed
        }
    }

    fn count(&mut self, now: Instant) {
        (self.before, self.taken, self.since) = (self.pace(now), 0, now);
    }

    /// For a call. What has lapsed, and what nobody is likely to need, is told no more.
    pub(super) fn tell(&mut self, log: &mut WindowLog, waiting: usize, even: bool, now: Instant) -> Told {
        self.count(now);
        let kept = self.left(now).min(self.desired(waiting, even, now));
        self.lapsed += u64::from(self.left - kept);
        self.left = kept;
        log.free(now);
        self.telling.clear();
        let mut spent = BTreeMap::new();
        for (at, count) in log.leaving() {
            let name = micros(at.saturating_duration_since(self.origin));
            let told = self.telling.entry(name).or_default();
            *told += count;
            if self.known.get(&name) != Some(told) {
                spent.insert(name, (micros(*at - now), *told));
            }
        }
        let open = self.left + log.under_way();
        Told { open, spent: spent.into_iter().map(|(name, (left, count))| (name, left, count)).collect() }
    }

    /// The store knows nothing of us.
    pub(super) fn forgotten(&mut self) {
        self.known.clear();
    }

    /// The last call was answered: so many more are ours, and all that it told of may be sent until `good_until`.
    pub(super) fn heard(&mut self, granted: u32, until: Instant, good_until: Instant) {
        self.known = std::mem::take(&mut self.telling);
        self.left = self.left.saturating_add(granted);
        (self.until, self.good_until) = (until, good_until);
    }

    /// The answer to a call that asked for one: whether there was not as much, and whether others find as much as is worth a call.
    pub(super) fn left_little(&mut self, refused: bool, plenty: bool) {
        self.scarce = refused || (self.scarce && !plenty);
    }
}
