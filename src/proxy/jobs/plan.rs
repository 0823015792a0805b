//! When to look at a job upstream: a decision with a price.
//!
//! Two things can be short. A look spends an attempt that a create may need; an end that nobody has seen keeps a slot that a create may
//! need. Both prices are in seconds of work delayed, so that they can be compared: with attempts short, one more of them delays the rest
//! by W/L; with slots short, a second of one of S slots delays the rest by 1/S. How short attempts are is told by what creates and
//! looks would ask of a whole window at the pace of late. The look is then put where the model's learned run times make the sum least.

use std::time::Duration;

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
/// Up to this share of a window asked for, attempts are not short at all. What is asked for cannot much exceed 1 for long: who waits for
/// attempts does not create.
const AMPLE: f64 = 0.6;
/// Looks that a job takes at least, on average, as far as the forecast goes.
const LOOKS_A_JOB: f64 = 1.1;
/// The share of a look's price that is charged even where attempts are plentiful: nothing is free.
const LEAST_LOOK: f64 = 0.05;
/// The share of the price of an unseen end that counts even where attempts are what everything waits for: work ends some day, and then
/// slots are all that counts.
const LEAST_UNSEEN: f64 = 0.5;

/// The state of an account, as far as looks depend on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Circumstances {
    /// L and W in seconds; `None` where the plan has no rate.
    pub(crate) rate: Option<(f64, f64)>,
    /// S; `None` where the plan has no limit of jobs.
    pub(crate) slots: Option<f64>,
    /// Creates begun a second, of late.
    pub(crate) creates_per_sec: f64,
    /// Creates that wait.
    pub(crate) waiting: f64,
    /// How long a job keeps its slot, on average and of late, in seconds.
    pub(crate) held_secs: f64,
    /// Calls wait for the minute quota at this moment.
    pub(crate) quota_short: bool,
}

/// What a look and a second of an unseen end cost, both in seconds of work delayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prices {
    pub(crate) look: f64,
    pub(crate) unseen: f64,
    /// What such a second is worth when it is saved for all jobs to come, whatever is short at this moment.
    pub(crate) unseen_at_least: f64,
}

impl Circumstances {
    /// The prices at this moment.
    pub(crate) fn prices(&self) -> Prices {
        let short = self.attempts_short();
        let look = self.rate.map_or(0.01, |(limit, window)| window / limit * short.max(LEAST_LOOK));
        let unseen = self.slots.map_or(0.05, |slots| (1.0 - short).max(LEAST_UNSEEN) / slots);
        Prices { look, unseen, unseen_at_least: self.slots.map_or(0.05, |slots| 0.25 / slots) }
    }

    /// 0: a window has attempts to spare. 1: attempts are what everything waits for.
    fn attempts_short(&self) -> f64 {
        let Some((limit, window)) = self.rate else { return 0.0 };
        let most = self.slots.map_or(f64::INFINITY, |slots| slots * window / self.held_secs.max(1e-3));
        let creates = (self.creates_per_sec * window).max(self.waiting).min(most);
        let asked = creates * (1.0 + LOOKS_A_JOB) / limit;
        let short = ((asked - AMPLE) / (1.0 - AMPLE)).clamp(0.0, 1.0);
        if self.quota_short { short.max(0.5) } else { short }
    }
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
}

/// The age at which the job is to be looked at next.
pub(crate) fn next_look(times: &RunTimes, seen: Seen, prices: Prices) -> Duration {
    let over = seen.running_at;
    if times.is_empty() {
        let grown = grown(seen.poll, seen.looks).mul_f64(A_LITTLE_LATER);
        return over + if seen.probe { grown } else { WITHOUT_NEWS };
    }
    if times.beyond(over) < TAIL {
        // The end may come at any time: steps of √(2·look/unseen) cost least. The oldest job goes ahead.
        let step = (2.0 * prices.look / prices.unseen).sqrt() * if seen.probe { 1.0 } else { 2.0 };
        let age = over.as_secs_f64();
        let step = Duration::from_secs_f64(step.clamp(STEP_OF_AGE.0 * age, STEP_OF_AGE.1 * age));
        return over + step.clamp(seen.poll / 4, LONGEST.max(seen.poll));
    }
    let Some(best) = times.best_look(over, prices.look, prices.unseen) else { return over + seen.poll };
    if seen.probe && times.doubtful() {
        // A look in the middle may come too early, but what it tells saves later jobs from being seen late.
        let late = times.late(over, best) * prices.unseen.max(prices.unseen_at_least);
        if late * SERVED > prices.look / 2.0
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

    fn free_plan(creates_per_sec: f64, held_secs: f64) -> Circumstances {
        Circumstances {
            rate: Some((60.0, 60.0)),
            slots: Some(5.0),
            creates_per_sec,
            waiting: 0.0,
            held_secs,
            quota_short: false,
        }
    }

    fn fresh(probe: bool) -> Seen {
        Seen { running_at: Duration::ZERO, looks: 0, poll: secs(1.0), probe }
    }

    #[test]
    fn short_jobs_make_attempts_dear_and_long_ones_slots() {
        let short = free_plan(2.0, 2.5).prices();
        let long = free_plan(5.0 / 30.0, 30.0).prices();
        assert!(short.look > 0.9 && short.unseen < 0.11, "{short:?}");
        assert!(long.look < 0.06 && long.unseen > 0.15, "{long:?}");
        let both = free_plan(0.5, 10.0).prices();
        assert!(both.look > 0.3 && both.unseen > 0.05, "{both:?}");
    }

    #[test]
    fn jobs_of_an_unknown_model_share_one_probe() {
        let times = RunTimes::default();
        let prices = free_plan(1.0, 2.5).prices();
        assert_eq!(next_look(&times, fresh(true), prices), secs(1.04));
        assert_eq!(next_look(&times, fresh(false), prices), WITHOUT_NEWS);
        let third = Seen { running_at: secs(2.5), looks: 2, ..fresh(true) };
        assert_eq!(next_look(&times, third, prices), secs(2.5 + 2.25 * 1.04));
        let late = Seen { looks: 99, ..third };
        assert_eq!(next_look(&times, late, prices), secs(2.5 + 10.4));
    }

    #[test]
    fn a_wide_first_interval_is_halved() {
        let mut times = RunTimes::default();
        times.learn(secs(2.5), secs(4.75));
        let at = next_look(&times, fresh(true), free_plan(2.0, 2.5).prices());
        assert!(at > secs(3.0) && at < secs(4.0), "{at:?}");
    }

    #[test]
    fn a_job_older_than_all_known_ones_is_looked_at_ever_more_rarely() {
        let mut times = RunTimes::default();
        (0..20).for_each(|_| times.learn(secs(2.4), secs(2.5)));
        let seen = Seen { running_at: secs(4.0), looks: 3, ..fresh(true) };
        assert_eq!(next_look(&times, seen, free_plan(1.0, 2.5).prices()), secs(4.8));
        let old = Seen { running_at: secs(400.0), ..seen };
        assert_eq!(next_look(&times, old, free_plan(1.0, 2.5).prices()), secs(408.0));
    }
}
