//! When so many jobs, created from now on, would be done, and what holds them up: a pure simulation of the plan.
//!
//! It is greedy: a create goes as soon as there is an attempt, a slot and the credits for it, a look as soon as a job has ended, looks
//! first. Every run time is the mean one. A job takes its create, one look at its end and, every tenth, a look that comes too early: 2.1
//! attempts. Live jobs keep their slots until they are seen to end; creates that wait go first. Times are from now.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::proxy::quota::Places;

/// The question on the admin port and its answer.
pub(crate) mod answer;

/// One job in so many takes a second look.
const LOOKED_AT_TWICE: u32 = 10;
/// A limit that holds up less than one part in so many holds nothing up.
const NOTICEABLE: u32 = 100;
const DAY: Duration = Duration::from_secs(86_400);

/// What a forecast follows from.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// Jobs to come.
    pub(crate) jobs: u32,
    /// How long each runs.
    pub(crate) run_time: Duration,
    /// Free attempts; `None` where the plan has no rate.
    pub(crate) places: Option<Places>,
    /// Free slots, negative if more jobs live than the plan allows; `None` where it has no limit.
    pub(crate) slots: Option<i64>,
    /// When each live job is expected to end.
    pub(crate) live: Vec<Duration>,
    /// Creates that are served before ours, taken for jobs of the same run time.
    pub(crate) ahead: u32,
    /// `None` where nothing is paid or nothing limits it.
    pub(crate) budget: Option<Budget>,
}

/// For how many jobs there are credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Until it renews.
    pub(crate) today: u64,
    /// On each day after that.
    pub(crate) per_day: u64,
    pub(crate) renews_in: Duration,
}

/// When our jobs are seen to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

/// What the jobs wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bottleneck {
    /// The plan's attempts in a window.
    Requests,
    /// Its jobs alive at once.
    Jobs,
    /// The day's budget.
    Credits,
    /// Nothing but the jobs themselves.
    RunTime,
}

/// Attempts that so many jobs take.
pub(crate) fn attempts(jobs: u32) -> u32 {
    2 * jobs + jobs / LOOKED_AT_TWICE
}

/// The limit without which the jobs would be done soonest; `RunTime` if none of them makes a difference.
pub(crate) fn bottleneck(given: &Given) -> Bottleneck {
    let last = |given: &Given| done(given).map_or(Duration::MAX, |done| done.last);
    let now = last(given);
    let lifted = [
        (Bottleneck::Requests, Given { places: None, ..given.clone() }),
        (Bottleneck::Jobs, Given { slots: None, ..given.clone() }),
        (Bottleneck::Credits, Given { budget: None, ..given.clone() }),
    ];
    // Who has fewer limits may keep to the old schedule: where greed does worse without a limit, nothing is saved.
    let saved = lifted.iter().map(|(limit, given)| (now.saturating_sub(last(given)), *limit));
    let (most, limit) = saved.max_by_key(|(saved, _)| *saved).unwrap_or((Duration::ZERO, Bottleneck::RunTime));
    if most > now / NOTICEABLE { limit } else { Bottleneck::RunTime }
}

/// Plays it through, in O(n log n); `None` if the jobs are never done, as no day's budget holds one of them.
pub(crate) fn done(given: &Given) -> Option<Done> {
    let mut play = Play::new(given);
    let (mut first, mut left) = (None, given.jobs);
    loop {
        let look = play.looks.peek().map(|Reverse(look)| play.departure(look.due));
        let create = play.next_create().map(|at| play.departure(at));
        let at = look.into_iter().chain(create).min()?;
        let done = if look == Some(at) {
            play.look()
        } else {
            play.create(at);
            false
        };
        play.leaves(at);
        if done {
            let first = *first.get_or_insert(at);
            left = left.saturating_sub(1);
            if left == 0 {
                return Some(Done { first, last: at });
            }
        }
    }
}

/// The look at a job that ends at `due`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Look {
    due: Duration,
    /// There is another one before it that tells nothing.
    twice: bool,
    ours: bool,
}

struct Play<'a> {
    given: &'a Given,
    /// When places come free, and how many.
    places: BinaryHeap<Reverse<(Duration, u32)>>,
    looks: BinaryHeap<Reverse<Look>>,
    slots: Option<i64>,
    created: u32,
    /// When the last attempt left.
    last: Option<Duration>,
}

impl<'a> Play<'a> {
    fn new(given: &'a Given) -> Self {
        let places = given.places.iter().flat_map(|places| {
            let free = (places.free > 0).then_some((Duration::ZERO, places.free));
            free.into_iter().chain(places.returns.iter().copied().filter(|(_, count)| *count > 0)).map(Reverse)
        });
        let live = given.live.iter().map(|due| Reverse(Look { due: *due, twice: false, ours: false }));
        Self { given, places: places.collect(), looks: live.collect(), slots: given.slots, created: 0, last: None }
    }

    /// When the next create has a slot and the credits, if that does not hang on a look.
    fn next_create(&self) -> Option<Duration> {
        if !self.has_slot() {
            return None;
        }
        let Some(ours) = self.created.checked_sub(self.given.ahead) else { return Some(Duration::ZERO) };
        if ours >= self.given.jobs {
            return None;
        }
        let Some(budget) = self.given.budget else { return Some(Duration::ZERO) };
        let Some(later) = u64::from(ours).checked_sub(budget.today) else { return Some(Duration::ZERO) };
        let days = later.checked_div(budget.per_day)?;
        Some(budget.renews_in + DAY * u32::try_from(days).unwrap_or(u32::MAX))
    }

    fn has_slot(&self) -> bool {
        self.slots.is_none_or(|free| free > 0)
    }

    /// When an attempt that is wanted from `at` on may leave.
    fn departure(&self, at: Duration) -> Duration {
        let at = at.max(self.last.unwrap_or_default());
        let Some(limits) = &self.given.places else { return at };
        let place = self.places.peek().map_or(Duration::ZERO, |Reverse((place, _))| *place);
        let spaced = self.last.map_or(Duration::ZERO, |last| last + limits.gap);
        at.max(place).max(spaced).max(limits.closed)
    }

    /// An attempt leaves: its place comes free one window later.
    fn leaves(&mut self, at: Duration) {
        self.last = Some(at);
        let Some(limits) = &self.given.places else { return };
        if let Some(Reverse((place, count))) = self.places.pop()
            && count > 1
        {
            self.places.push(Reverse((place, count - 1)));
        }
        self.places.push(Reverse((at + limits.window, 1)));
    }

    fn create(&mut self, at: Duration) {
        self.created += 1;
        self.slots = self.slots.map(|free| free - 1);
        let twice = self.created.is_multiple_of(LOOKED_AT_TWICE);
        let ours = self.created > self.given.ahead;
        self.looks.push(Reverse(Look { due: at + self.given.run_time, twice, ours }));
    }

    /// True if it tells that one of ours is done.
    fn look(&mut self) -> bool {
        let Some(Reverse(look)) = self.looks.pop() else { return false };
        if look.twice {
            self.looks.push(Reverse(Look { twice: false, ..look }));
            return false;
        }
        self.slots = self.slots.map(|free| free + 1);
        look.ours
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::demo::oracle;

    fn secs(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    fn places(free: u32) -> Places {
        Places { window: secs(60.0), free, returns: Vec::new(), gap: Duration::ZERO, closed: Duration::ZERO }
    }

    fn free_plan(jobs: u32, run_time: f64) -> Given {
        Given {
            jobs,
            run_time: secs(run_time),
            places: Some(places(60)),
            slots: Some(5),
            live: Vec::new(),
            ahead: 0,
            budget: None,
        }
    }

    fn last(given: &Given) -> f64 {
        done(given).expect("done").last.as_secs_f64()
    }

    #[test]
    fn it_is_near_the_oracle_and_never_before_it() {
        let limits = oracle::Limits { requests: 60, window: secs(60.0), jobs: 5 };
        for (jobs, run_time) in [(1, 2.5), (6, 2.5), (30, 2.5), (50, 2.5), (190, 2.5), (50, 10.0), (60, 30.0)] {
            let best = oracle::makespan(&vec![secs(run_time); jobs as usize], limits).as_secs_f64();
            let ours = last(&free_plan(jobs, run_time));
            // The looks that come too early may be what needs another window.
            let extra = if jobs < 40 && run_time < 3.0 { 60.0 } else { best * 0.1 };
            assert!(ours >= best && ours <= best + extra, "{jobs} of {run_time}: {ours}, not {best}");
        }
        let fifty = last(&free_plan(50, 2.5));
        assert!((70.0..75.0).contains(&fifty), "{fifty}");
        assert_eq!(done(&free_plan(50, 2.5)).map(|done| done.first), Some(secs(2.5)));
        assert_eq!((attempts(1), attempts(50)), (2, 105));
    }

    #[test]
    fn the_bottleneck_is_what_helps_most_when_lifted() {
        assert_eq!(bottleneck(&free_plan(50, 2.5)), Bottleneck::Requests);
        assert_eq!(bottleneck(&free_plan(20, 30.0)), Bottleneck::Jobs);
        assert_eq!(bottleneck(&free_plan(5, 30.0)), Bottleneck::RunTime);
        let poor = Budget { today: 3, per_day: 10, renews_in: secs(3_600.0) };
        let given = Given { budget: Some(poor), ..free_plan(20, 2.5) };
        assert_eq!(bottleneck(&given), Bottleneck::Credits);
        assert!((last(&given) - 90_000.0 - 5.0).abs() < 6.0, "ten tomorrow, seven the day after: {}", last(&given));
        let never = Given { budget: Some(Budget { per_day: 0, ..poor }), ..given };
        assert_eq!((done(&never), bottleneck(&never)), (None, Bottleneck::Credits));
    }

    #[test]
    fn what_is_under_way_goes_first() {
        let full = Given { slots: Some(0), live: vec![secs(100.0); 5], ..free_plan(1, 2.5) };
        assert!((last(&full) - 102.5).abs() < 1e-9);
        let over = Given { slots: Some(-1), live: vec![secs(100.0), secs(200.0)], ..free_plan(1, 2.5) };
        assert!((last(&over) - 202.5).abs() < 1e-9, "the first to end frees nothing");
        let queued = Given { ahead: 5, ..free_plan(1, 2.5) };
        assert!((last(&queued) - 5.0).abs() < 1e-9);
        let returns = vec![(secs(20.0), 1), (secs(30.0), 59)];
        let used = Given { places: Some(Places { returns, ..places(0) }), ..free_plan(1, 2.5) };
        assert!((last(&used) - 30.0).abs() < 1e-9, "a create at 20 s, its look at 30 s");
        let closed = Given { places: Some(Places { closed: secs(7.0), ..places(60) }), ..free_plan(1, 2.5) };
        assert!((last(&closed) - 9.5).abs() < 1e-9);
        let paced = Given { places: Some(Places { gap: secs(1.0), ..places(60) }), ..free_plan(3, 0.5) };
        assert!((last(&paced) - 5.0).abs() < 1e-9, "six attempts, a second apart");
    }

    #[test]
    fn ten_thousand_jobs_are_no_work() {
        let given = Given { places: Some(places(100_000)), slots: None, ahead: 10_000, ..free_plan(10_000, 2.5) };
        assert!((last(&given) - 2.5).abs() < 1e-9);
    }

    fn given() -> impl Strategy<Value = Given> {
        let places = (0_u32..20, prop::collection::vec((0_u64..60_000, 1_u32..4), 0..6), 0_u64..3).prop_map(
            |(free, returns, gap)| {
                let returns = returns.into_iter().map(|(at, count)| (Duration::from_millis(at), count)).collect();
                Places { free: free.max(1), returns, gap: Duration::from_secs(gap), ..places(0) }
            },
        );
        let live = prop::collection::vec(0_u64..90_000, 0..6);
        let budget = prop::option::of((0_u64..30, 0_u64..30, 0_u64..90_000));
        (1_u32..80, 0_u64..90_000, places, 1_u32..8, live, 0_u32..10, budget).prop_map(
            |(jobs, run_time, places, slots, live, ahead, budget)| Given {
                jobs,
                run_time: Duration::from_millis(run_time),
                places: Some(places),
                slots: Some(i64::from(slots)),
                live: live.into_iter().map(Duration::from_millis).collect(),
                ahead,
                budget: budget.map(|(today, per_day, secs)| Budget {
                    today,
                    per_day,
                    renews_in: Duration::from_secs(secs),
                }),
            },
        )
    }

    proptest! {
        #[test]
        fn lifting_the_rate_never_lengthens_and_other_limits_by_a_round_at_most(given in given()) {
            let last = |given: &Given| done(given).map_or(Duration::MAX, |done| done.last);
            let now = last(&given);
            let unrated = Given { places: None, ..given.clone() };
            prop_assert!(last(&unrated) <= now);
            // Greed may spend on early creates what a look needs later: one round of both at most.
            let round = Duration::from_secs(60) + given.run_time;
            let lifted = [Given { slots: None, ..given.clone() }, Given { budget: None, ..given.clone() }];
            for lifted in lifted {
                prop_assert!(last(&lifted) <= now.saturating_add(round), "{:?} after {now:?}: {lifted:?}", last(&lifted));
            }
        }
    }
}
