//! The exact window log: how many attempts the upstream may be counting right now.
//!
//! An attempt occupies a place from the write of its head until one window after its response head. When the head is late, the
//! place is given back one window after `sent + jitter`: by then the upstream has counted it (the jitter allowance is that promise).
//! So in any window, as the upstream may count it, there are never more than `limit` attempts. The log never waits and reads no clock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Above this many attempts a window, places that are about to come free are counted in slices.
pub(crate) const EXACT_UP_TO: u32 = 10_000;
/// Slices a window. Rounding up to the end of a slice costs at most 1/256 of the throughput.
const SLICES: u32 = 256;

/// Names one sent attempt in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

#[derive(Debug)]
struct Flight {
    sent: Instant,
    open: bool,
}

/// See the module. Invariant: `reserved + open + leaving_count <= limit`, unless `fill` or `restore` said otherwise.
#[derive(Debug)]
pub(crate) struct WindowLog {
    limit: u32,
    window: Duration,
    jitter: Duration,
    slice: Duration,
    origin: Instant,
    /// Granted, not yet written.
    reserved: u32,
    /// Written, in order of sending; at most `jitter` long, for later ones have moved to `leaving`.
    in_flight: VecDeque<Flight>,
    /// The stamp of the front of `in_flight`.
    front: u64,
    open: u32,
    /// When places come free, ascending.
    leaving: VecDeque<(Instant, u32)>,
    leaving_count: u32,
}

impl WindowLog {
    /// An empty log for `limit` attempts in any `window`.
    pub(crate) fn new(limit: u32, window: Duration, jitter: Duration, now: Instant) -> Self {
        let slice = if limit > EXACT_UP_TO { window / SLICES } else { Duration::ZERO };
        Self {
            limit,
            window,
            jitter,
            slice,
            origin: now,
            reserved: 0,
            in_flight: VecDeque::new(),
            front: 0,
            open: 0,
            leaving: VecDeque::new(),
            leaving_count: 0,
        }
    }

    /// An empty log that knows none of the stamps that `earlier` gave.
    pub(crate) fn after(earlier: u64, limit: u32, window: Duration, jitter: Duration, now: Instant) -> Self {
        Self { front: earlier, ..Self::new(limit, window, jitter, now) }
    }

    /// The number of the next stamp.
    pub(crate) fn next_stamp(&self) -> u64 {
        self.front + self.in_flight.len() as u64
    }

    /// From now on for another plan. What is in the log leaves it no earlier than under either plan, and what a shorter window has
    /// forgotten already counts as a full window for as long as the longer one would remember it.
    pub(crate) fn replan(&mut self, limit: u32, window: Duration, jitter: Duration, now: Instant) {
        self.advance(now);
        let longer = window.saturating_sub(self.window) + jitter.saturating_sub(self.jitter);
        let changed = (window, jitter) != (self.window, self.jitter);
        let held = self.window.max(window) + self.jitter.max(jitter);
        (self.limit, self.window, self.jitter) = (limit, window, jitter);
        self.slice = if limit > EXACT_UP_TO { window / SLICES } else { Duration::ZERO };
        if !changed {
            return;
        }
        for (at, _) in &mut self.leaving {
            *at += longer;
        }
        self.front = self.next_stamp();
        for flight in std::mem::take(&mut self.in_flight).into_iter().filter(|flight| flight.open) {
            self.leave(flight.sent + held);
        }
        self.open = 0;
        if !longer.is_zero() {
            let forgotten = self.free(now);
            self.occupy(now + longer, forgotten);
        }
    }

    /// Places free at `now`.
    pub(crate) fn free(&mut self, now: Instant) -> u32 {
        self.advance(now);
        self.limit.saturating_sub(self.reserved + self.open + self.leaving_count)
    }

    /// A lower bound for the instant at which `free` next grows by itself; `None` when time alone changes nothing.
    pub(crate) fn next_free(&mut self, now: Instant) -> Option<Instant> {
        self.advance(now);
        let over = (self.reserved + self.open + self.leaving_count).saturating_sub(self.limit);
        if over > 0 {
            // More than the plan is occupied (restored or filled): the first places to leave free nothing.
            let mut left = over;
            for &(at, count) in &self.leaving {
                if count > left {
                    return Some(at);
                }
                left -= count;
            }
        }
        match self.leaving.front() {
            Some(&(at, _)) => Some(at),
            None => (self.open > 0).then(|| now + self.window),
        }
    }

    /// When the oldest occupied place comes free; `None` where none is known to.
    pub(crate) fn next_return(&mut self, now: Instant) -> Option<Instant> {
        self.advance(now);
        self.leaving.front().map(|(at, _)| *at)
    }

    /// When places come free and how many, as far as is known now: what is under way counts as answered at once. `free` and these are L.
    pub(crate) fn returns(&mut self, now: Instant) -> Vec<(Instant, u32)> {
        self.advance(now);
        let under_way = self.reserved + self.open;
        let mut over = (under_way + self.leaving_count).saturating_sub(self.limit);
        let all = self.leaving.iter().copied().chain((under_way > 0).then_some((now + self.window, under_way)));
        let mut returns = Vec::new();
        for (at, count) in all {
            // More than the plan may be occupied: the first to leave free nothing.
            let none = over.min(count);
            over -= none;
            if count > none {
                returns.push((at, count - none));
            }
        }
        returns
    }

    /// When places of answered attempts come free and how many, ascending.
    pub(crate) fn leaving(&self) -> impl DoubleEndedIterator<Item = &(Instant, u32)> {
        self.leaving.iter()
    }

    /// True when every occupied place was really sent, so that no grant given back can free one early.
    pub(crate) fn proven(&self) -> bool {
        self.reserved == 0
    }

    /// Attempts granted or written that an answer of the upstream, come just now, may not have counted.
    pub(crate) fn under_way(&self) -> u32 {
        self.open + self.reserved
    }

    /// Takes a place for an attempt that will be sent soon. The caller has seen `free() > 0`.
    pub(crate) fn reserve(&mut self) {
        self.reserved += 1;
    }

    /// Gives back a reserved place: nothing was sent.
    pub(crate) fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// The head of a reserved attempt is being written.
    pub(crate) fn sent(&mut self, now: Instant) -> Stamp {
        self.reserved = self.reserved.saturating_sub(1);
        self.in_flight.push_back(Flight { sent: now, open: true });
        self.open += 1;
        Stamp(self.front + self.in_flight.len() as u64 - 1)
    }

    /// The response head of `stamp` has arrived: the upstream counted the attempt before `now`.
    pub(crate) fn answered(&mut self, stamp: Stamp, now: Instant) {
        self.advance(now);
        if self.close(stamp) {
            self.leave(now + self.window);
        }
    }

    /// The attempt provably never reached the upstream: its place is free at once.
    pub(crate) fn unsent(&mut self, stamp: Stamp) {
        self.close(stamp);
    }

    /// Counts the whole window as used until `until`: after a reboot, a clock step or a torn state file.
    pub(crate) fn fill(&mut self, until: Instant) {
        self.occupy(until, self.limit);
    }

    /// Counts `count` places as used until `until`: attempts of an earlier process.
    pub(crate) fn occupy(&mut self, until: Instant, count: u32) {
        for _ in 0..count {
            self.leave(until);
        }
    }

    /// Ends the flight; false if it had ended before.
    fn close(&mut self, stamp: Stamp) -> bool {
        let Some(index) = stamp.0.checked_sub(self.front) else {
            return false;
        };
        let Some(flight) = usize::try_from(index).ok().and_then(|i| self.in_flight.get_mut(i)) else {
            return false;
        };
        if !std::mem::replace(&mut flight.open, false) {
            return false;
        }
        self.open -= 1;
        self.trim();
        true
    }

    fn trim(&mut self) {
        while self.in_flight.front().is_some_and(|flight| !flight.open) {
            self.in_flight.pop_front();
            self.front += 1;
        }
    }

    fn advance(&mut self, now: Instant) {
        while let Some(flight) = self.in_flight.front() {
            if flight.open && flight.sent + self.jitter > now {
                break;
            }
            if flight.open {
                let counted_by = flight.sent + self.jitter;
                self.open -= 1;
                self.leave(counted_by + self.window);
            }
            self.in_flight.pop_front();
            self.front += 1;
        }
        while let Some(&(at, count)) = self.leaving.front() {
            if at > now {
                break;
            }
            self.leaving.pop_front();
            self.leaving_count -= count;
        }
    }

    /// Notes that a place comes free at `at`, rounded up to the end of its slice. Arrivals are almost in order.
    fn leave(&mut self, at: Instant) {
        let at = self.round_up(at);
        self.leaving_count += 1;
        let mut index = self.leaving.len();
        while index > 0 && self.leaving[index - 1].0 > at {
            index -= 1;
        }
        if index > 0 && self.leaving[index - 1].0 == at {
            self.leaving[index - 1].1 += 1;
        } else {
            self.leaving.insert(index, (at, 1));
        }
    }

    fn round_up(&self, at: Instant) -> Instant {
        if self.slice.is_zero() {
            return at;
        }
        let slice = self.slice.as_nanos();
        let since = at.saturating_duration_since(self.origin).as_nanos();
        let rounded = since.div_ceil(slice) * slice;
        self.origin + Duration::from_nanos(u64::try_from(rounded).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const W: Duration = Duration::from_secs(60);
    const J: Duration = Duration::from_millis(1500);

    /// What a random client of the log does next.
    #[derive(Debug, Clone)]
    enum Step {
        Wait(u64),
        Send { counted_after: u64, answered_after: u64 },
        SendThenNothing { counted_after: u64 },
        ReserveThenDrop,
        SendThenUnsent,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u64..9_000).prop_map(Step::Wait),
            (0_u64..1_500, 0_u64..4_000).prop_map(|(c, a)| Step::Send { counted_after: c.min(a), answered_after: a }),
            (0_u64..1_500).prop_map(|c| Step::SendThenNothing { counted_after: c }),
            Just(Step::ReserveThenDrop),
            Just(Step::SendThenUnsent),
        ]
    }

    /// Runs the steps as fast as the log admits them and returns when the upstream counted each attempt.
    fn run(limit: u32, steps: &[Step]) -> (Vec<Instant>, WindowLog, Instant) {
        let origin = Instant::now();
        let mut log = WindowLog::new(limit, W, J, origin);
        let mut now = origin;
        let mut counted = Vec::new();
        let mut answers: Vec<(Instant, Stamp)> = Vec::new();
        for step in steps {
            if let Step::Wait(ms) = step {
                now += Duration::from_millis(*ms);
            }
            loop {
                answers.sort_by_key(|(at, _)| *at);
                while answers.first().is_some_and(|(at, _)| *at <= now) {
                    let (at, stamp) = answers.remove(0);
                    log.answered(stamp, at);
                }
                if matches!(step, Step::Wait(_)) || log.free(now) > 0 {
                    break;
                }
                let next = log.next_free(now).expect("a full log has a next place");
                let answer = answers.first().map_or(next, |(at, _)| *at);
                now = next.min(answer).max(now + Duration::from_nanos(1));
            }
            match *step {
                Step::Wait(_) => {}
                Step::Send { counted_after, answered_after } => {
                    log.reserve();
                    let stamp = log.sent(now);
                    counted.push(now + Duration::from_millis(counted_after).min(J));
                    answers.push((now + Duration::from_millis(answered_after), stamp));
                }
                Step::SendThenNothing { counted_after } => {
                    log.reserve();
                    log.sent(now);
                    counted.push(now + Duration::from_millis(counted_after));
                }
                Step::ReserveThenDrop => {
                    log.reserve();
                    log.release();
                }
                Step::SendThenUnsent => {
                    log.reserve();
                    let stamp = log.sent(now);
                    log.unsent(stamp);
                }
            }
        }
        (counted, log, now)
    }

    fn most_in_any_window(mut counted: Vec<Instant>) -> usize {
        counted.sort();
        let mut most = 0;
        let mut from = 0;
        for to in 0..counted.len() {
            while counted[to] - counted[from] >= W {
                from += 1;
            }
            most = most.max(to - from + 1);
        }
        most
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_limit(
            limit in prop_oneof![1_u32..12, Just(60_u32)],
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let (counted, mut log, now) = run(limit, &steps);
            prop_assert!(most_in_any_window(counted) <= limit as usize);
            prop_assert_eq!(log.free(now + W + J + Duration::from_secs(5)), limit, "every place comes back");
        }
    }

    #[test]
    fn a_place_comes_back_one_window_after_the_answer() {
        let now = Instant::now();
        let mut log = WindowLog::new(1, W, J, now);
        log.reserve();
        let stamp = log.sent(now);
        log.answered(stamp, now + Duration::from_millis(300));
        assert_eq!(log.free(now + W + Duration::from_millis(299)), 0);
        assert_eq!(log.free(now + W + Duration::from_millis(300)), 1);
    }

    #[test]
    fn a_late_answer_holds_its_place_no_longer_than_the_jitter_allowance() {
        let now = Instant::now();
        let mut log = WindowLog::new(1, W, J, now);
        log.reserve();
        let stamp = log.sent(now);
        assert_eq!(log.free(now + W + J - Duration::from_nanos(1)), 0);
        assert_eq!(log.free(now + W + J), 1);
        log.answered(stamp, now + W + W);
        assert_eq!(log.free(now + W + W), 1, "an answer after the allowance changes nothing");
    }

    #[test]
    fn large_limits_are_counted_in_slices_on_the_safe_side() {
        let now = Instant::now();
        let mut log = WindowLog::new(60_000, W, J, now);
        for n in 0..60_000_u64 {
            let at = now + Duration::from_micros(n * 10);
            log.reserve();
            let stamp = log.sent(at);
            log.answered(stamp, at);
        }
        assert!(log.leaving.len() <= 4, "{} entries", log.leaving.len());
        assert_eq!(log.free(now + W - Duration::from_nanos(1)), 0);
        assert_eq!(log.free(now + W + W), 60_000);
    }

    proptest! {
        /// Whatever the plans and whenever they change: no window holds more than the larger of two plans, nor more than the new one
        /// allows once its own window has passed.
        #[test]
        fn another_plan_forgets_nothing(
            before in 1_u32..20, after in 1_u32..20, windows in (1_u64..90, 1_u64..90), jitters in (1_u64..3_000, 1_u64..3_000),
            steps in prop::collection::vec((0_u64..4_000, 0_u64..3_000, prop::bool::ANY), 1..120), at in 0_usize..120,
        ) {
            let origin = Instant::now();
            let (w1, w2) = (Duration::from_secs(windows.0), Duration::from_secs(windows.1));
            let (j1, j2) = (Duration::from_millis(jitters.0), Duration::from_millis(jitters.1));
            let mut log = WindowLog::new(before, w1, j1, origin);
            let (mut now, mut jitter, mut counted, mut changed_at) = (origin, j1, Vec::new(), None);
            for (index, (pause, late, answered)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                if index == at {
                    log.replan(after, w2, j2, now);
                    (jitter, changed_at) = (j2, Some(now));
                }
                if log.free(now) == 0 {
                    continue;
                }
                log.reserve();
                let stamp = log.sent(now);
                let counts = now + Duration::from_millis(late).min(jitter);
                counted.push(counts);
                if answered {
                    log.answered(stamp, counts);
                }
            }
            counted.sort();
            let most_in = |window: Duration, from: Instant| {
                let later = counted.iter().filter(|at| **at >= from);
                later.map(|end| counted.iter().filter(|at| **at <= *end && *end - **at < window).count()).max().unwrap_or(0)
            };
            let Some(changed_at) = changed_at else {
                prop_assert!(most_in(w1, origin) <= before as usize);
                return Ok(());
            };
            // From the change on, the new plan holds for every window that ends after it, as far as the old one left room.
            prop_assert!(most_in(w2.min(w1), changed_at) <= before.max(after) as usize);
            prop_assert!(most_in(w2, changed_at + w2.max(w1) + j2.max(j1)) <= after as usize);
            if after >= before {
                prop_assert!(most_in(w2, changed_at + j1) <= after as usize || w2 > w1);
            }
            prop_assert_eq!(log.free(now + (w1 + w2 + j1 + j2) * 2), if at < 120 && changed_at >= origin { after } else { before });
        }
    }

    #[test]
    fn a_longer_window_counts_what_the_shorter_one_forgot_as_a_full_one() {
        let now = Instant::now();
        let mut log = WindowLog::new(5, W, J, now);
        log.replan(5, W * 2, J, now);
        assert_eq!((log.free(now), log.free(now + W)), (0, 5));
        log.replan(3, W, J, now + W);
        assert_eq!(log.free(now + W), 3, "a shorter one starts with what is known");
    }

    #[test]
    fn a_smaller_limit_holds_at_once_and_a_stamp_of_before_is_no_longer_known() {
        let now = Instant::now();
        let mut log = WindowLog::new(4, W, J, now);
        for _ in 0..3 {
            log.reserve();
            let stamp = log.sent(now);
            log.answered(stamp, now);
        }
        log.replan(2, W, J, now);
        assert_eq!((log.free(now), log.next_free(now)), (0, Some(now + W)));
        let mut log = WindowLog::new(2, W, J, now);
        log.reserve();
        let before = log.sent(now);
        log.replan(2, W, J * 2, now);
        log.reserve();
        let _ = log.sent(now);
        log.unsent(before);
        assert_eq!(log.free(now), 0, "it frees nothing any more");
    }

    #[test]
    fn a_full_window_is_free_again_at_its_end() {
        let now = Instant::now();
        let mut log = WindowLog::new(5, W, J, now);
        log.fill(now + W + J);
        assert_eq!(log.free(now + W), 0);
        assert_eq!(log.next_free(now), Some(now + W + J));
        assert_eq!(log.free(now + W + J), 5);
    }
}
