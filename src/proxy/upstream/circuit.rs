//! When connecting to the upstream is tried at all: the decisions of the circuit breaker. `breaker` waits and tells.

use std::time::Duration;

use tokio::time::Instant;

/// Connections in a row that came to nothing before the circuit opens. One more than the attempts that a single call has by default.
pub(crate) const OPENS_AFTER: u32 = 5;
/// The first pause before a probe; doubled with each that fails.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Only what came of connecting counts, never an answer: whoever answers, be it 500, can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Circuit(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Connections are tried.
    Closed { failures: u32 },
    /// None is tried before `until`; `probes` have failed since it opened.
    Open { until: Instant, probes: u32 },
    /// One is being tried.
    Probing { probes: u32 },
}

/// What somebody who needs a connection is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Connect.
    Go,
    /// Connect for everybody, and say what came of it.
    Probe,
    /// Ask again then.
    Until(Instant),
    /// Ask again when the probe has ended.
    Probed,
}

impl Circuit {
    pub(crate) fn new() -> Self {
        Self(State::Closed { failures: 0 })
    }

    /// Whoever is told `Probe` is the only one, until `probe_failed`, `probe_left` or `reached` is called.
    pub(crate) fn ask(&mut self, now: Instant) -> Ask {
        match self.0 {
            State::Closed { .. } => Ask::Go,
            State::Open { until, .. } if now < until => Ask::Until(until),
            State::Open { probes, .. } => {
                self.0 = State::Probing { probes };
                Ask::Probe
            }
            State::Probing { .. } => Ask::Probed,
        }
    }

    /// A connection came to nothing. True when this opens the circuit. `dice` is uniform on `[0, 1)`.
    pub(crate) fn failed(&mut self, now: Instant, dice: f64) -> bool {
        // One that was begun before the circuit opened says nothing new.
        let State::Closed { failures } = &mut self.0 else { return false };
        *failures += 1;
        if *failures < OPENS_AFTER {
            return false;
        }
        self.0 = State::Open { until: now + pause(0, dice), probes: 0 };
        true
    }

    /// The probe came to nothing.
    pub(crate) fn probe_failed(&mut self, now: Instant, dice: f64) {
        // Closed meanwhile, by an answer over an older connection: that was later news.
        let State::Probing { probes } = self.0 else { return };
        let probes = probes.saturating_add(1);
        self.0 = State::Open { until: now + pause(probes, dice), probes };
    }

    /// Whoever was to probe has left before there was an outcome: the next one may.
    pub(crate) fn probe_left(&mut self, now: Instant) {
        if let State::Probing { probes } = self.0 {
            self.0 = State::Open { until: now, probes };
        }
    }

    /// A connection was made, or an answer came. True when this closes the circuit.
    pub(crate) fn reached(&mut self) -> bool {
        let was_closed = self.is_closed();
        self.0 = State::Closed { failures: 0 };
        !was_closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.0, State::Closed { .. })
    }

    /// Nothing has failed since the last success.
    pub(crate) fn is_calm(&self) -> bool {
        self.0 == State::Closed { failures: 0 }
    }

    /// For people: the state, and the time until the next probe while it is open.
    pub(crate) fn shown(&self, now: Instant) -> (&'static str, Option<Duration>) {
        match self.0 {
            State::Closed { .. } => ("closed", None),
            State::Open { until, .. } => ("open", Some(until.saturating_duration_since(now))),
            State::Probing { .. } => ("probing", None),
        }
    }
}

/// Between half and the whole of 1 s, 2 s, 4 s … 30 s, so that many proxies do not come back in step.
fn pause(probes: u32, dice: f64) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(probes)).min(LONGEST_PAUSE);
    whole.mul_f64(dice.mul_add(0.5, 0.5))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::new();
        for n in 1..=OPENS_AFTER {
            assert_eq!(circuit.failed(now, 1.0), n == OPENS_AFTER);
        }
        circuit
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let now = Instant::now();
        let mut circuit = Circuit::new();
        for _ in 0..10 {
            (1..OPENS_AFTER).for_each(|_| assert!(!circuit.failed(now, 0.5)));
            assert_eq!(circuit.ask(now), Ask::Go);
            assert!(!circuit.reached(), "it was closed");
        }
        assert!(matches!(opened(now).ask(now), Ask::Until(_)));
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let Ask::Until(until) = circuit.ask(now) else { panic!("{circuit:?}") };
            pauses.push((until - now).as_secs());
            now = until;
            assert_eq!(circuit.ask(now), Ask::Probe);
            circuit.probe_failed(now, 1.0);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause(0, 0.0), FIRST_PAUSE / 2);
    }

    #[test]
    fn success_closes_it_and_forgets_the_pauses() {
        let now = Instant::now();
        let mut circuit = opened(now);
        assert!(circuit.reached());
        assert!(circuit.is_calm());
        assert_eq!(circuit.ask(now), Ask::Go);
    }

    #[test]
    fn what_was_begun_before_it_opened_neither_prolongs_nor_probes() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let before = circuit.clone();
        assert!(!circuit.failed(now, 1.0));
        assert_eq!(circuit, before);
        let then = now + FIRST_PAUSE;
        assert_eq!(circuit.ask(then), Ask::Probe);
        assert!(!circuit.failed(then, 1.0));
        assert_eq!(circuit.ask(then), Ask::Probed, "the probe is still out");
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask,
        Failed,
        ProbeFailed,
        ProbeLeft,
        Reached,
        Time(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Ask),
            Just(Event::Failed),
            Just(Event::ProbeFailed),
            Just(Event::ProbeLeft),
            Just(Event::Reached),
            (0_u64..40_000).prop_map(Event::Time),
        ]
    }

    proptest! {
        /// There is never a second probe, none comes before its time, none is more than the longest pause away, and it never closes
        /// without having been reached.
        #[test]
        fn one_probe_at_a_time_and_one_before_long(events in prop::collection::vec(event(), 0..200), dice in 0.0_f64..1.0) {
            let (mut circuit, mut now) = (Circuit::new(), Instant::now());
            let (mut probing, mut earliest) = (false, None::<Instant>);
            for event in events {
                let closed_before = circuit.is_closed();
                match event {
                    Event::Ask => match circuit.ask(now) {
                        Ask::Go => prop_assert!(circuit.is_closed()),
                        Ask::Probe => {
                            prop_assert!(!probing);
                            prop_assert!(earliest.is_none_or(|at| now >= at));
                            probing = true;
                        }
                        Ask::Until(at) => {
                            prop_assert!(at > now && at - now <= LONGEST_PAUSE);
                            earliest = Some(at);
                        }
                        Ask::Probed => prop_assert!(probing),
                    },
                    Event::Failed => drop(circuit.failed(now, dice)),
                    Event::ProbeFailed if probing => {
                        circuit.probe_failed(now, dice);
                        (probing, earliest) = (false, None);
                    }
                    Event::ProbeLeft if probing => {
                        circuit.probe_left(now);
                        (probing, earliest) = (false, None);
                    }
                    Event::Reached => {
                        prop_assert_eq!(circuit.reached(), !closed_before);
                        (probing, earliest) = (false, None);
                    }
                    Event::Time(millis) => now += Duration::from_millis(millis),
                    Event::ProbeFailed | Event::ProbeLeft => {}
                }
                let reached = matches!(event, Event::Reached);
                prop_assert!(closed_before || reached || !circuit.is_closed());
            }
        }
    }
}
