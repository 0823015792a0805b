//! Whether to try again: a pure function of what came of an attempt.

use std::time::Duration;

use http::StatusCode;

use crate::config::{self, RetryCreates};

/// What came of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A response head.
    Answer(StatusCode),
    /// Nothing was sent.
    Unsent,
    /// It was sent, and nothing came back.
    Silent,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Pass on what there is.
    Stop,
    /// Try again after this long.
    After(Duration),
    /// Try again when the quota allows it: the upstream said 429, and the queue knows until when.
    Turn,
}

/// The circumstances of a decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tried {
    /// 1-based.
    pub(crate) attempt: u32,
    pub(crate) outcome: Outcome,
    /// The call may be repeated whatever came of it, and its body is still there.
    pub(crate) repeatable: bool,
    pub(crate) replayable: bool,
    pub(crate) retry_after: Option<Duration>,
    /// Until the call's deadline.
    pub(crate) left: Duration,
}

impl config::Retry {
    /// `dice` is uniform on `[0, 1)` (full jitter); `budget` is asked last, and only for what it pays.
    pub(crate) fn next(&self, tried: Tried, dice: f64, budget: impl FnOnce() -> bool) -> Next {
        let too_long = tried.retry_after.is_some_and(|wait| wait > tried.left);
        if tried.attempt >= self.max_attempts.get() || too_long || !tried.replayable || !self.may_repeat(tried) {
            return Next::Stop;
        }
        if tried.outcome == Outcome::Answer(StatusCode::TOO_MANY_REQUESTS) {
            return Next::Turn;
        }
        let doubled = self.initial_backoff.saturating_mul(2_u32.saturating_pow(tried.attempt - 1));
        let wait = doubled.min(self.max_backoff).mul_f64(dice).max(tried.retry_after.unwrap_or_default());
        if wait > tried.left || !budget() { Next::Stop } else { Next::After(wait) }
    }

    fn may_repeat(&self, tried: Tried) -> bool {
        let listed = |status| self.statuses.contains(&status);
        let refused = |status| matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if tried.repeatable {
            return match tried.outcome {
                Outcome::Answer(status) => listed(status),
                Outcome::Unsent | Outcome::Silent => true,
            };
        }
        match (self.creates, tried.outcome) {
            (_, Outcome::Silent) | (RetryCreates::Never, _) => false,
            (_, Outcome::Unsent) => true,
            (RetryCreates::Documented, Outcome::Answer(status)) => listed(status),
            (RetryCreates::Safe, Outcome::Answer(status)) => listed(status) && refused(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn policy(creates: RetryCreates) -> config::Retry {
        config::Retry {
            max_attempts: NonZeroU32::new(4).expect("not zero"),
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(30),
            statuses: [408, 429, 500, 502, 503, 504].map(|code| StatusCode::from_u16(code).expect("a status")).to_vec(),
            creates,
            budget: 0.2,
            budget_floor: 10,
        }
    }

    fn tried(outcome: Outcome, repeatable: bool) -> Tried {
        let left = Duration::from_secs(100);
        Tried { attempt: 1, outcome, repeatable, replayable: true, retry_after: None, left }
    }

    fn status(code: u16) -> Outcome {
        Outcome::Answer(StatusCode::from_u16(code).expect("a status"))
    }

    fn again(creates: RetryCreates, tried: Tried) -> bool {
        policy(creates).next(tried, 0.5, || true) != Next::Stop
    }

    #[test]
    fn what_is_safe_to_repeat_is_repeated_on_every_listed_status_and_network_error() {
        for code in [408, 429, 500, 502, 503, 504] {
            assert!(again(RetryCreates::Never, tried(status(code), true)), "{code}");
        }
        assert!(again(RetryCreates::Never, tried(Outcome::Silent, true)));
        assert!(again(RetryCreates::Never, tried(Outcome::Unsent, true)));
        for code in [200, 400, 401, 402, 404, 409, 422, 501] {
            assert!(!again(RetryCreates::Documented, tried(status(code), true)), "{code}");
        }
    }

    #[test]
    fn a_create_that_may_have_run_in_silence_is_never_sent_again() {
        for creates in [RetryCreates::Documented, RetryCreates::Safe, RetryCreates::Never] {
            assert!(!again(creates, tried(Outcome::Silent, false)));
        }
    }

    #[test]
    fn the_setting_decides_about_creates() {
        let table = [
            (RetryCreates::Documented, [true, true, true, true]),
            (RetryCreates::Safe, [true, true, false, true]),
            (RetryCreates::Never, [false, false, false, false]),
        ];
        for (creates, expected) in table {
            let outcomes = [status(429), status(503), status(500), Outcome::Unsent];
            assert_eq!(outcomes.map(|outcome| again(creates, tried(outcome, false))), expected, "{creates:?}");
        }
    }

    #[test]
    fn attempts_deadline_and_body_end_the_call() {
        let last = Tried { attempt: 4, ..tried(status(503), true) };
        let long = Tried { retry_after: Some(Duration::from_secs(101)), ..tried(status(429), true) };
        let gone = Tried { replayable: false, ..tried(status(503), true) };
        for stop in [last, long, gone] {
            assert!(!again(RetryCreates::Documented, stop));
        }
        let broke = policy(RetryCreates::Documented).next(tried(status(503), true), 0.5, || false);
        assert_eq!(broke, Next::Stop, "the budget is spent");
        let quota = policy(RetryCreates::Documented).next(tried(status(429), true), 0.5, || false);
        assert_eq!(quota, Next::Turn, "waiting for quota costs no budget");
    }

    proptest! {
        #[test]
        fn backoff_is_jittered_capped_and_never_below_retry_after(
            attempt in 1_u32..4,
            dice in 0.0_f64..1.0,
            floor in prop::option::of(0_u64..90),
        ) {
            let retry_after = floor.map(Duration::from_secs);
            let tried = Tried { attempt, retry_after, ..tried(status(503), true) };
            let Next::After(wait) = policy(RetryCreates::Documented).next(tried, dice, || true) else {
                return Err(TestCaseError::fail("it is tried again"));
            };
            let floor = retry_after.unwrap_or_default();
            prop_assert!(wait >= floor);
            prop_assert!(wait <= floor.max(Duration::from_secs(1 << (attempt - 1))));
        }
    }
}
