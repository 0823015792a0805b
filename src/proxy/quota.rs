//! How many attempts may leave, decided from what was sent and what the upstream answered.
//!
//! Pure state: every method gets `now`; nothing here waits, locks or reads a clock. One `Quota` is an account's, one `Share` a
//! client's part inside it.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;

use self::feedback::Feedback;
use self::pace::Pace;
use self::window::WindowLog;

pub(crate) use self::window::Stamp;

/// The exact log that guards.
pub(crate) mod window;

/// The GCRA bucket that paces.
pub(crate) mod pace;

/// The upstream's own headers.
pub(crate) mod feedback;

/// Shortest time that the gate stays closed after a 429, whatever the upstream says.
const SHORTEST_CLOSURE: Duration = Duration::from_millis(10);
/// How long the gate closes when a 429 names no time and the plan has no window.
const CLOSURE_UNTOLD: Duration = Duration::from_secs(60);
/// A refusal comes at once: a probe that is silent for longer is being carried out, and another may go.
const PROBE_REFUSED_WITHIN: Duration = Duration::from_secs(5);

/// Why an attempt may not leave yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not before this instant.
    Until(Instant),
    /// Until something happens: a probe after a 429 is answered, a granted attempt is sent or given back; at the latest this instant.
    ForEvent(Option<Instant>),
}

/// What a 429 meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many requests: wait for the window.
    Window,
    /// Too many jobs: wait for one to end.
    Jobs,
}

/// Limit, free places and the next instant at which there is one more, as an answer's headers tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// L.
    pub(crate) limit: u32,
    /// W.
    pub(crate) window: Duration,
    /// Attempts that could leave now.
    pub(crate) remaining: u32,
    /// Until `remaining` grows; zero when nothing is used.
    pub(crate) reset_in: Duration,
}

/// How a window is being used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Use {
    /// L.
    pub(crate) limit: f64,
    /// W in seconds.
    pub(crate) window: f64,
    /// Attempts that the window counts.
    pub(crate) used: f64,
    /// The age of the oldest of them, in seconds.
    pub(crate) since: f64,
}

/// Free places now and to come, for a forecast. Times are from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// W: how long an attempt keeps its place.
    pub(crate) window: Duration,
    pub(crate) free: u32,
    /// When used ones come free, and how many.
    pub(crate) returns: Vec<(Duration, u32)>,
    /// Least time between two attempts: zero unless they are paced.
    pub(crate) gap: Duration,
    /// How long a 429 keeps everyone waiting.
    pub(crate) closed: Duration,
}

/// An attempt's claim: `probe` marks the one that may pass a gate closed by a 429.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Claim {
    pub(crate) probe: bool,
    /// Which log has its place, as a plan may get or lose its rate meanwhile; 0: none.
    log: u16,
    /// Which share of its client has its cell.
    pub(crate) share: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed(Instant),
    /// A probe is out; until this instant it is waited for.
    Probing(Instant),
}

/// The upstream's books where they are tighter than ours.
#[derive(Debug, Clone, Copy)]
struct Ceiling {
    left: u32,
    until: Instant,
}

/// An account's quota.
pub(crate) struct Quota {
    rate: Option<Rate>,
    gate: Gate,
    ceiling: Option<Ceiling>,
    /// Attempts by others on the same key, as the last answer showed them.
    /// Attempts of others, and until when the answer that showed them says anything.
    drift: Option<(u32, Instant)>,
    pacing: config::Pacing,
    /// Logs so far, and the stamps that they gave.
    logs: u16,
    stamps: u64,
}

struct Rate {
    plan: config::Requests,
    id: u16,
    log: WindowLog,
    auto: bool,
    pace: Option<Pace>,
}

impl Quota {
    pub(crate) fn new(plan: &config::Plan, now: Instant) -> Self {
        let rate = plan.requests.map(|requests| Rate {
            plan: requests,
            id: 1,
            log: WindowLog::new(requests.limit.get(), requests.window, requests.jitter, now),
            auto: plan.pacing == config::Pacing::Auto,
            pace: (plan.pacing == config::Pacing::Paced)
                .then(|| Pace::new(requests.limit, requests.window, requests.jitter, now)),
        });
        Self { rate, gate: Gate::Open, ceiling: None, drift: None, pacing: plan.pacing, logs: 1, stamps: 0 }
    }

    /// From now on another plan. Nothing that was sent is forgotten; where it is not known, because there was no rate or a shorter window,
    /// the window counts as full.
    pub(crate) fn replan(&mut self, plan: &config::Plan, now: Instant) {
        let paced_before = self.pacing == config::Pacing::Auto && self.paced();
        let paced = match plan.pacing {
            config::Pacing::Paced => true,
            config::Pacing::Auto => paced_before,
            config::Pacing::Burst => false,
        };
        self.pacing = plan.pacing;
        let Some(requests) = plan.requests else {
            self.stamps = self.rate.take().map_or(self.stamps, |rate| rate.log.next_stamp());
            return;
        };
        let (limit, window, jitter) = (requests.limit, requests.window, requests.jitter);
        let auto = plan.pacing == config::Pacing::Auto;
        let fresh_pace = || {
            let mut pace = Pace::new(limit, window, jitter, now);
            pace.exhaust(now + pace::period(limit, window, jitter));
            pace
        };
        if let Some(rate) = &mut self.rate {
            if rate.plan != requests {
                rate.log.replan(limit.get(), window, jitter, now);
                rate.pace = None;
            }
            rate.pace = rate.pace.take().filter(|_| paced).or_else(|| paced.then(fresh_pace));
            (rate.plan, rate.auto) = (requests, auto);
            return;
        }
        self.logs = self.logs.wrapping_add(1).max(1);
        let mut log = WindowLog::after(self.stamps, limit.get(), window, jitter, now);
        log.fill(now + window + jitter);
        self.rate = Some(Rate { plan: requests, id: self.logs, log, auto, pace: paced.then(fresh_pace) });
    }

    /// Counts the window as full: what was sent with this key is not known.
    pub(crate) fn fill(&mut self, now: Instant) {
        if let Some(rate) = &mut self.rate {
            rate.log.fill(now + rate.plan.window + rate.plan.jitter);
        }
    }

    /// May an attempt leave at `now`?
    pub(crate) fn ready(&mut self, now: Instant) -> Result<(), Wait> {
        match self.gate {
            Gate::Closed(until) if now < until => return Err(Wait::Until(until)),
            Gate::Probing(until) if now < until => return Err(Wait::ForEvent(Some(until))),
            Gate::Open | Gate::Closed(_) | Gate::Probing(_) => {}
        }
        if let Some(ceiling) = self.ceiling(now)
            && ceiling.left == 0
        {
            return Err(Wait::Until(ceiling.until));
        }
        let Some(rate) = &mut self.rate else { return Ok(()) };
        if rate.log.free(now) == 0 {
            return Err(rate.log.next_free(now).map_or(Wait::ForEvent(None), Wait::Until));
        }
        match &rate.pace {
            Some(pace) if pace.free(now).0 == 0 => Err(Wait::Until(pace.free(now).1)),
            _ => Ok(()),
        }
    }

    /// A proven lower bound for the next departure, for callers who cannot wait: grants that may yet come back unsent count as free.
    pub(crate) fn earliest(&mut self, now: Instant) -> Instant {
        match self.ready(now) {
            Err(Wait::Until(at)) if self.rate.as_ref().is_none_or(|rate| rate.log.proven()) => at,
            _ => now,
        }
    }

    /// Takes a place for one attempt. The caller has seen `ready` at this `now`.
    pub(crate) fn reserve(&mut self, now: Instant) -> Claim {
        let probe = self.gate != Gate::Open;
        if probe {
            self.gate = Gate::Probing(now + PROBE_REFUSED_WITHIN);
        }
        if let Some(ceiling) = &mut self.ceiling {
            ceiling.left = ceiling.left.saturating_sub(1);
        }
        let mut log = 0;
        if let Some(rate) = &mut self.rate {
            log = rate.id;
            rate.log.reserve();
            if let Some(pace) = &rate.pace {
                // `ready` has just seen a free cell; should rounding disagree, the log still guards.
                let _ = pace.take(now);
            }
        }
        Claim { probe, log, share: 0 }
    }

    /// Gives back what `reserve` took: nothing was sent.
    pub(crate) fn release(&mut self, claim: Claim, now: Instant) {
        if let Some(ceiling) = &mut self.ceiling {
            ceiling.left += 1;
        }
        if let Some(rate) = self.rate.as_mut().filter(|rate| rate.id == claim.log) {
            rate.log.release();
            rate.refund();
        }
        self.lost(claim, now);
    }

    /// The head of a reserved attempt is being written.
    pub(crate) fn sent(&mut self, claim: &mut Claim, now: Instant) -> Option<Stamp> {
        let rate = self.rate.as_mut()?;
        if claim.log != rate.id {
            // Granted under a plan without this log: it takes its place now.
            rate.log.reserve();
            claim.log = rate.id;
        }
        Some(rate.log.sent(now))
    }

    /// An attempt counted as sent provably never left: its claim is what it was before.
    pub(crate) fn unsent(&mut self, claim: &mut Claim, stamp: Option<Stamp>) {
        if let (Some(rate), Some(stamp)) = (&mut self.rate, stamp) {
            rate.log.unsent(stamp);
            rate.log.reserve();
            claim.log = rate.id;
        }
    }

    /// A sent attempt will never be answered. It keeps its place; a probe passes its role on.
    pub(crate) fn lost(&mut self, claim: Claim, now: Instant) {
        if claim.probe && matches!(self.gate, Gate::Probing(_)) {
            self.gate = Gate::Closed(now);
        }
    }

    /// A response head arrived. True when this answer switched the account from bursts to pacing.
    pub(crate) fn answered(
        &mut self,
        claim: Claim,
        stamp: Option<Stamp>,
        feedback: Feedback,
        refused: Option<Refused>,
        now: Instant,
    ) -> bool {
        if let (Some(rate), Some(stamp)) = (&mut self.rate, stamp) {
            rate.log.answered(stamp, now);
        }
        if refused == Some(Refused::Window) {
            return self.close(feedback, now);
        }
        if claim.probe && matches!(self.gate, Gate::Probing(_)) {
            self.gate = Gate::Open;
        }
        self.listen(feedback, now);
        false
    }

    /// A 429 for the window: nobody leaves for as long as the upstream asks; after that one probe.
    fn close(&mut self, feedback: Feedback, now: Instant) -> bool {
        let window = self.rate.as_ref().map_or(CLOSURE_UNTOLD, |rate| rate.plan.window);
        let reset_in = self.rate.as_ref().map_or(feedback.reset_in, |rate| rate.believed(feedback));
        let wait = feedback.retry_after.or(reset_in).unwrap_or(window).max(SHORTEST_CLOSURE);
        let mut until = now + wait;
        if let Gate::Closed(before) = self.gate {
            until = until.max(before);
        }
        self.gate = Gate::Closed(until);
        let Some(rate) = &mut self.rate else { return false };
        let switch = rate.auto && rate.pace.is_none();
        if switch {
            rate.pace = Some(Pace::new(rate.plan.limit, rate.plan.window, rate.plan.jitter, now));
        }
        if let Some(pace) = &mut rate.pace {
            pace.exhaust(until);
        }
        switch
    }

    /// The upstream's remaining places bound ours where they are fewer; they never raise the plan.
    fn listen(&mut self, feedback: Feedback, now: Instant) {
        let (Some(rate), Some(remaining)) = (&mut self.rate, feedback.remaining) else {
            return;
        };
        let own = rate.log.free(now);
        let until = now + rate.believed(feedback).unwrap_or(rate.plan.window);
        self.drift = Some((own.saturating_sub(remaining), until));
        let left = remaining.saturating_sub(rate.log.under_way());
        self.ceiling = (left < own).then_some(Ceiling { left, until });
    }

    fn ceiling(&mut self, now: Instant) -> Option<Ceiling> {
        self.ceiling = self.ceiling.filter(|ceiling| now < ceiling.until);
        self.ceiling
    }

    /// What an answer's headers say; `None` where the plan has no rate.
    pub(crate) fn view(&mut self, now: Instant) -> Option<View> {
        let ceiling = self.ceiling(now);
        let closed = match self.gate {
            Gate::Open => None,
            Gate::Closed(until) => Some(until).filter(|until| now < *until),
            Gate::Probing(_) => Some(now),
        };
        let rate = self.rate.as_mut()?;
        let mut remaining = rate.log.free(now);
        let mut next = rate.log.next_free(now).unwrap_or(now);
        let mut tighten = |left: u32, at: Instant| {
            if left < remaining {
                (remaining, next) = (left, at);
            }
        };
        if let Some(pace) = &rate.pace {
            let (left, at) = pace.free(now);
            tighten(left, at);
        }
        if let Some(ceiling) = ceiling {
            tighten(ceiling.left, ceiling.until);
        }
        if let Some(until) = closed {
            tighten(0, until);
        }
        Some(View {
            limit: rate.plan.limit.get(),
            window: rate.plan.window,
            remaining,
            reset_in: next.saturating_duration_since(now),
        })
    }

    /// What a forecast builds on; `None` where the plan has no rate.
    pub(crate) fn places(&mut self, now: Instant) -> Option<Places> {
        let ceiling = self.ceiling(now);
        let closed = match self.gate {
            Gate::Closed(until) => until.saturating_duration_since(now),
            Gate::Open | Gate::Probing(_) => Duration::ZERO,
        };
        let rate = self.rate.as_mut()?;
        let mut free = rate.log.free(now);
        let returns = rate.log.returns(now).into_iter();
        let mut returns: Vec<_> = returns.map(|(at, count)| (at.saturating_duration_since(now), count)).collect();
        if let Some(ceiling) = ceiling.filter(|ceiling| ceiling.left < free) {
            returns.push((ceiling.until.saturating_duration_since(now), free - ceiling.left));
            free = ceiling.left;
        }
        let gap = if rate.pace.is_some() { rate.plan.window / rate.plan.limit.get() } else { Duration::ZERO };
        Some(Places { window: rate.plan.window, free, returns, gap, closed })
    }

    /// True where attempts are evenly spaced, by setting or since a 429.
    pub(crate) fn paced(&self) -> bool {
        self.rate.as_ref().is_some_and(|rate| rate.pace.is_some())
    }

    /// Attempts by others on the same key, as the last answer showed them.
    pub(crate) fn drift(&self, now: Instant) -> u32 {
        self.drift.filter(|(_, until)| now < *until).map_or(0, |(drift, _)| drift)
    }

    /// Until when a 429 keeps everyone waiting.
    pub(crate) fn closed_until(&self) -> Option<Instant> {
        match self.gate {
            Gate::Closed(until) => Some(until),
            Gate::Open | Gate::Probing(_) => None,
        }
    }

    /// The log, for restoring what an earlier process sent.
    pub(crate) fn log(&mut self) -> Option<&mut WindowLog> {
        self.rate.as_mut().map(|rate| &mut rate.log)
    }

    /// L and W.
    pub(crate) fn rate(&self) -> Option<(u32, Duration)> {
        self.rate.as_ref().map(|rate| (rate.plan.limit.get(), rate.plan.window))
    }

    /// Attempts the upstream may be counting, and L; `None` without a rate.
    pub(crate) fn used(&mut self, now: Instant) -> Option<(u32, u32)> {
        let rate = self.rate.as_mut()?;
        let limit = rate.plan.limit.get();
        Some((limit - rate.log.free(now).min(limit), limit))
    }

    /// At what pace attempts are used; `None` without a rate.
    pub(crate) fn usage(&mut self, now: Instant) -> Option<Use> {
        let (used, limit) = self.used(now)?;
        let rate = self.rate.as_mut()?;
        let window = rate.plan.window;
        let oldest_leaves = rate.log.next_return(now).map_or(window, |at| at.saturating_duration_since(now));
        let since = window.saturating_sub(oldest_leaves).as_secs_f64();
        Some(Use { limit: f64::from(limit), window: window.as_secs_f64(), used: f64::from(used), since })
    }
}

impl Rate {
    /// Until the upstream's window ends. After a window and its jitter all that we sent has left any window of this length: a later end
    /// is the mistake of a clock or of another plan.
    fn believed(&self, feedback: Feedback) -> Option<Duration> {
        feedback.reset_in.map(|reset| reset.min(self.plan.window + self.plan.jitter))
    }

    fn refund(&self) {
        if let Some(pace) = &self.pace {
            pace.refund();
        }
    }
}

/// A client's part of an account's quota: GCRA alone, for it only divides what the account's log guards.
#[derive(Default)]
pub(crate) struct Share(Option<(config::Requests, Pace)>);

impl Share {
    /// Whether a share of this plan would be another one.
    pub(crate) fn differs(&self, plan: Option<&config::Plan>) -> bool {
        self.0.as_ref().map(|(requests, _)| *requests) != plan.and_then(|plan| plan.requests)
    }

    /// Its next cell comes one period from now: what was taken of the share before it is not counted here.
    pub(crate) fn exhausted(mut self, now: Instant) -> Self {
        if let Some((requests, pace)) = &mut self.0 {
            pace.exhaust(now + pace::period(requests.limit, requests.window, Duration::ZERO));
        }
        self
    }

    pub(crate) fn new(plan: Option<&config::Plan>, now: Instant) -> Self {
        Self(
            plan.and_then(|plan| plan.requests)
                .map(|requests| (requests, Pace::new(requests.limit, requests.window, Duration::ZERO, now))),
        )
    }

    /// May this client's attempt leave at `now`?
    pub(crate) fn ready(&self, now: Instant) -> Result<(), Instant> {
        match &self.0 {
            Some((_, pace)) if pace.free(now).0 == 0 => Err(pace.free(now).1),
            _ => Ok(()),
        }
    }

    /// Takes a cell. The caller has seen `ready` at this `now`.
    pub(crate) fn take(&self, now: Instant) {
        if let Some((_, pace)) = &self.0 {
            let _ = pace.take(now);
        }
    }

    /// Gives the cell back: nothing was sent.
    pub(crate) fn refund(&self) {
        if let Some((_, pace)) = &self.0 {
            pace.refund();
        }
    }

    /// What an answer's headers say; `None` where the client has no rate of its own.
    pub(crate) fn view(&self, now: Instant) -> Option<View> {
        let (requests, pace) = self.0.as_ref()?;
        let (remaining, next) = pace.free(now);
        Some(View {
            limit: requests.limit.get(),
            window: requests.window,
            remaining,
            reset_in: next.saturating_duration_since(now),
        })
    }
}

#[cfg(test)]
mod tests;
