//! When to look at a job upstream: a decision with a price.
//!
//! Two things can be short. A look spends an attempt that a create may need; an end that nobody has seen keeps a slot that a create may
//! need. So a look has a price in seconds that an end goes unseen. It follows from the pace at which the window is being used up: at the
//! plan's own pace attempts and slots are equally short, above it attempts are, below it slots or nothing. The look is then put where the
//! model's learned run times make the sum of both least.

use std::time::Duration;

use crate::proxy::quota::Use;

use super::learn::RunTimes;

/// Looks at a model of which nothing is known grow by this factor.
pub(crate) const GROWTH: f64 = 1.5;
/// Run times are round numbers more often than not: a look right at one would come just too early.
const A_LITTLE_LATER: f64 = 1.04;
/// Longest interval between two looks of which nothing better is known.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);
/// The others of a model whose oldest job is the probe wait this long for its news.
pub(crate) const WITHOUT_NEWS: Duration = Duration::from_secs(30);
/// A job older than all that was learned is looked at again when it is older by a part of its age between these.
const STEP_OF_AGE: (f64, f64) = (0.02, 0.2);
/// Below this share of jobs, what was learned says nothing about jobs so old.
const TAIL: f64 = 0.01;
/// Jobs to come that are served by what one look finds out.
const SERVED: f64 = 30.0;
/// What a look costs where attempts are used at the plan's pace, in units of W/L, the time in which one comes back.
const AT_PAR: f64 = 7.0;
/// It costs no less and no more than so many.
const BOUNDS: (f64, f64) = (0.25, 10.0);
/// So much of a window has passed at the plan's pace before any that was seen: a burst that has just begun tells little.
const PRIOR: f64 = 0.1;
/// What a look costs where the plan has no rate, in seconds.
const WITHOUT_RATE: f64 = 0.2;

/// What a look costs, in seconds that an end goes unseen; `None` for a plan without a rate.
pub(crate) fn price(usage: Option<Use>) -> f64 {
    let Some(Use { limit, window, used, since }) = usage else { return WITHOUT_RATE };
    let pace = (used / limit + PRIOR) / (since / window + PRIOR);
    window / limit * (AT_PAR * pace * pace).clamp(BOUNDS.0, BOUNDS.1)
}

/// An interval that has grown so many times.
pub(crate) fn grown(poll: Duration, times: u32) -> Duration {
    poll.mul_f64(GROWTH.powi(i32::try_from(times.min(30)).unwrap_or(30))).min(LONGEST)
}

/// What is known of one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Seen {
    /// Its age when it was last seen running.
    pub(crate) running_at: Duration,
    /// Looks so far.
    pub(crate) looks: u32,
    /// The first interval for its model, by configuration.
    pub(crate) poll: Duration,
    /// Of all jobs of a model of which nothing is known, one is the probe.
    pub(crate) probe: bool,
    /// Other live jobs of the model.
    pub(crate) others: u32,
}

/// The age at which the job is to be looked at next, where a look costs as much as so many seconds that its end goes unseen.
pub(crate) fn next_look(times: &RunTimes, seen: Seen, price: f64) -> Duration {
    let over = seen.running_at;
    if times.is_empty() {
        if !seen.probe {
            return over + WITHOUT_NEWS;
        }
        let mut step = grown(seen.poll, seen.looks);
        if seen.others > 0 {
            // Any run time is as likely as one twice as long, and the others wait for the news: then these steps cost least.
            let cheap = (2.0 * price * over.as_secs_f64() / f64::from(seen.others)).sqrt();
            step = step.min(Duration::from_secs_f64(cheap).max(seen.poll));
        }
        return over + step.mul_f64(A_LITTLE_LATER);
    }
    if times.beyond(over) < TAIL {
        // The end may come at any time: steps of √(2·price) cost least. The oldest job goes ahead.
        let step = (2.0 * price).sqrt() * if seen.probe { 1.0 } else { 2.0 };
        let age = over.as_secs_f64();
        let step = Duration::from_secs_f64(step.clamp(STEP_OF_AGE.0 * age, STEP_OF_AGE.1 * age));
        return over + step.clamp(seen.poll / 4, LONGEST.max(seen.poll));
    }
    let Some(best) = times.best_look(over, price) else { return over + seen.poll };
    if seen.probe && times.doubtful() {
        // A look in the middle may come too early, but what it tells saves later jobs from being seen late.
        if times.late(over, best) * SERVED > price / 2.0
            && let Some(middle) = times.quantile(over, 0.5)
        {
            return middle;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    fn free_plan(used: f64, since: f64) -> f64 {
        price(Some(Use { limit: 60.0, window: 60.0, used, since }))
    }

    /// At the plan's own pace.
    fn at_par() -> f64 {
        free_plan(30.0, 30.0)
    }

    fn fresh(probe: bool) -> Seen {
        Seen { running_at: Duration::ZERO, looks: 0, poll: secs(1.0), probe, others: 4 }
    }

    #[test]
    fn a_look_is_as_dear_as_the_window_is_used_fast() {
        assert!((at_par() - 7.0).abs() < 1e-9 && (free_plan(60.0, 60.0) - 7.0).abs() < 1e-9);
        assert!((free_plan(0.0, 0.0) - 7.0).abs() < 1e-9, "nothing is known yet");
        assert!((free_plan(40.0, 10.0) - 10.0).abs() < 1e-9, "short jobs: attempts are what everything waits for");
        assert!(free_plan(55.0, 60.0) < 6.0, "free places that nobody takes");
        assert!(free_plan(3.0, 40.0) < 0.5, "a caller by itself");
        let pro = price(Some(Use { limit: 300.0, window: 60.0, used: 60.0, since: 30.0 }));
        assert!(pro < 0.4 && pro > 0.05, "{pro}");
        assert!((free_plan(0.0, 60.0) - 0.25).abs() < 1e-9, "nothing is free");
    }

    #[test]
    fn jobs_of_an_unknown_model_share_one_probe() {
        let times = RunTimes::default();
        let price = at_par();
        assert_eq!(next_look(&times, fresh(true), price), secs(1.04));
        assert_eq!(next_look(&times, fresh(false), price), WITHOUT_NEWS);
        let third = Seen { running_at: secs(2.5), looks: 2, ..fresh(true) };
        assert_eq!(next_look(&times, third, price), secs(2.5 + 2.25 * 1.04));
        let alone = Seen { running_at: secs(60.0), looks: 99, others: 0, ..third };
        assert_eq!(next_look(&times, alone, price), secs(60.0 + 10.4));
        let awaited = Seen { running_at: secs(30.0), looks: 7, others: 19, ..third };
        assert_eq!(next_look(&times, awaited, 0.1), secs(30.0 + 1.04), "twenty jobs wait for what a cheap look tells");
    }

    #[test]
    fn a_wide_first_interval_is_halved() {
        let mut times = RunTimes::default();
        times.learn(secs(2.5), secs(4.75));
        let at = next_look(&times, fresh(true), at_par());
        assert!(at > secs(3.0) && at < secs(4.0), "{at:?}");
    }

    #[test]
    fn a_job_older_than_all_known_ones_is_looked_at_ever_more_rarely() {
        let mut times = RunTimes::default();
        (0..20).for_each(|_| times.learn(secs(2.4), secs(2.5)));
        let seen = Seen { running_at: secs(4.0), looks: 3, ..fresh(true) };
        assert_eq!(next_look(&times, seen, at_par()), secs(4.8));
        let old = Seen { running_at: secs(400.0), ..seen };
        assert_eq!(next_look(&times, old, at_par()), secs(408.0));
    }
}
