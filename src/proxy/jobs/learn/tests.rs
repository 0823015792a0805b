//! What is learned, from few samples and from many.

use proptest::prelude::*;

use super::looks::{Step, cheapest};
use super::*;

fn secs(n: f64) -> Duration {
    Duration::from_secs_f64(n)
}

fn about(found: Option<Duration>, expected: f64) {
    let found = found.expect("known").as_secs_f64();
    assert!((found / expected).ln().abs() < 0.06, "{found} is not about {expected}");
}

#[test]
fn the_mean_is_no_prey_to_what_is_barely_possible() {
    let mut times = RunTimes::default();
    assert_eq!(times.mean(), None);
    times.learn(secs(2.4), secs(2.6));
    let mean = times.mean().expect("learned").as_secs_f64();
    assert!((2.2..2.9).contains(&mean), "{mean}");
    (0..20).for_each(|_| times.learn(secs(2.45), secs(2.55)));
    let mean = times.mean().expect("learned").as_secs_f64();
    assert!((2.45..2.55).contains(&mean), "{mean}");
}

#[test]
fn exact_samples_give_the_moment_of_the_end() {
    let mut times = RunTimes::default();
    for _ in 0..5 {
        times.learn(secs(2.45), secs(2.5));
    }
    for look in [100.0, 0.05, 5.0] {
        about(times.best_look(Duration::ZERO, look), 2.5);
    }
}

#[test]
fn exact_samples_of_varied_run_times_are_no_surprise() {
    let mut times = RunTimes::default();
    for n in 0..60 {
        let ran = secs(5.0 * (0.4 * f64::from(n * 7 % 20 - 10) / 6.0).exp());
        times.learn(ran, ran);
    }
    about(times.quantile(Duration::ZERO, 0.5), 5.0);
    let (low, high) = (times.quantile(Duration::ZERO, 0.1), times.quantile(Duration::ZERO, 0.9));
    assert!(low < Some(secs(3.5)) && high > Some(secs(7.0)), "{low:?} {high:?}");
}

#[test]
fn looks_come_late_where_they_are_dear_and_early_where_slots_are() {
    let mut times = RunTimes::default();
    for n in 0..40 {
        let t = 2.0 + 0.1 * f64::from(n % 20);
        times.learn(secs(t - 0.02), secs(t));
    }
    let late = times.best_look(Duration::ZERO, 50.0).expect("known");
    let early = times.best_look(Duration::ZERO, 0.05).expect("known");
    assert!(late > early.mul_f64(1.3), "{late:?} {early:?}");
}

#[test]
fn wide_intervals_narrow_by_agreement() {
    let mut times = RunTimes::default();
    for (over, within) in [(2.0, 5.0), (1.0, 3.0), (2.4, 9.0), (1.5, 2.7), (2.3, 4.0)] {
        times.learn(secs(over), secs(within));
    }
    let (low, high) = (times.quantile(Duration::ZERO, 0.1), times.quantile(Duration::ZERO, 0.8));
    assert!(low > Some(secs(1.9)) && high < Some(secs(3.2)), "{low:?} {high:?}");
}

#[test]
fn a_drift_is_followed_within_a_few_jobs_and_an_outlier_is_not() {
    let mut times = RunTimes::default();
    for _ in 0..50 {
        times.learn(secs(2.4), secs(2.5));
    }
    times.learn(secs(40.0), secs(45.0));
    about(times.quantile(Duration::ZERO, 0.5), 2.5);
    times.learn(secs(2.4), secs(2.5));
    for _ in 0..4 {
        times.learn(secs(4.9), secs(5.0));
    }
    about(times.quantile(Duration::ZERO, 0.5), 5.0);
}

#[test]
fn a_job_seen_very_late_does_not_hide_a_drift() {
    let mut times = RunTimes::default();
    for _ in 0..50 {
        times.learn(secs(4.8), secs(4.95));
    }
    times.learn(secs(7.1), secs(9.9));
    // These agree with anything.
    times.learn(Duration::ZERO, secs(35.0));
    times.learn(Duration::ZERO, secs(35.0));
    times.learn(secs(8.5), secs(40.0));
    times.learn(secs(8.5), secs(10.0));
    let longer = times.beyond(secs(7.0));
    assert!(longer > 0.5, "{longer}");
}

#[test]
fn a_sample_that_was_certain_changes_nothing_and_one_that_was_not_forgets_the_looks() {
    let mut times = RunTimes::default();
    (0..30).for_each(|_| times.learn(secs(2.4), secs(2.6)));
    let look = times.best_look(Duration::ZERO, 10.0);
    let (beliefs, known) = (times.beliefs.clone(), times.looks.borrow().0.len());
    times.learn(Duration::ZERO, secs(9.0));
    assert!(times.beliefs == beliefs && times.looks.borrow().0.len() == known);
    assert_eq!(times.best_look(Duration::ZERO, 10.0), look);
    assert_eq!(times.looks.borrow().0.len(), known, "nothing is worked out twice");
    (0..30).for_each(|_| times.learn(secs(4.9), secs(5.1)));
    about(times.best_look(Duration::ZERO, 10.0), 5.1);
}

#[test]
fn the_looks_that_are_kept_are_bounded() {
    let mut times = RunTimes::default();
    times.learn(secs(1.0), secs(9.0));
    for n in 0..500 {
        times.best_look(Duration::from_millis(n), 10.0);
        assert!(times.looks.borrow().0.len() <= Looks::MOST);
    }
}

#[test]
fn constant_run_times_are_known_to_two_percent() {
    let mut times = RunTimes::default();
    times.learn(secs(8.4), secs(13.7));
    times.learn(Duration::ZERO, secs(10.3));
    times.learn(secs(9.9), secs(10.05));
    (0..5).for_each(|_| times.learn(Duration::ZERO, secs(10.05)));
    let at = times.best_look(Duration::ZERO, 7.0).expect("known").as_secs_f64();
    assert!((10.0..10.2).contains(&at), "{at}");
}

#[test]
fn wide_spreads_are_believed_as_soon_as_constancy_is_refuted() {
    let mut times = RunTimes::default();
    for (over, within) in [(3.0, 3.5), (5.0, 6.0), (4.0, 4.6), (6.5, 7.5)] {
        times.learn(secs(over), secs(within));
    }
    let (low, high) = (times.quantile(Duration::ZERO, 0.1), times.quantile(Duration::ZERO, 0.9));
    assert!(low < Some(secs(3.8)) && high > Some(secs(6.8)), "{low:?} {high:?}");
}

#[test]
fn what_is_saved_is_known_again() {
    let mut times = RunTimes::default();
    (0..9).for_each(|_| times.learn(secs(2.4), secs(2.5)));
    let again = RunTimes::restore(&times.save());
    about(again.best_look(Duration::ZERO, 10.0), 2.5);
    assert_eq!(again.bins, RunTimes::restore(&again.save()).bins, "each belief comes back to its place");
    // A grid that tells other spreads and medians apart.
    about(RunTimes::restore(&[(0.011, 2.507, 0.0), (0.33, 2.2, -8.0)]).best_look(Duration::ZERO, 10.0), 2.5);
    assert!(RunTimes::restore(&[(0.3, -1.0, -1.0), (0.3, 2.0, f64::NAN), (0.0, 2.0, -1.0)]).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_look_is_as_cheap_as_any_other(
        weights in prop::collection::vec((0.0_f64..1.0, 0.01_f64..2.0), 1..30),
        look in 0.01_f64..50.0,
    ) {
        let mut end = 0.0;
        let steps = weights.into_iter().map(|(weight, width)| {
            end += width;
            Step { weight, moments: weight * (end - width / 2.0), end }
        });
        let steps: Vec<Step> = steps.collect();
        // By trying all, without what `cheapest` knows of where the best one is.
        let mut least = vec![(0.0, 0); steps.len() + 1];
        for from in (0..steps.len()).rev() {
            let weight: f64 = steps[from..].iter().map(|step| step.weight).sum();
            let cost = |to: usize| {
                let unseen = steps[from..=to].iter().map(|step| step.weight * steps[to].end - step.moments);
                look * weight + unseen.sum::<f64>() + least[to + 1].0
            };
            let best = (from..steps.len()).map(|to| (cost(to), to)).min_by(|a, b| a.0.total_cmp(&b.0));
            least[from] = best.expect("one at least");
        }
        let best = steps[least[0].1].end;
        prop_assert_eq!(cheapest(&steps, look), Some(Duration::from_secs_f64(best)));
    }

    #[test]
    fn any_history_gives_a_look_after_the_last(
        history in prop::collection::vec((0.0_f64..20_000.0, 0.0_f64..500.0), 0..8),
        over in 0.0_f64..30_000.0,
        look in 0.0_f64..100.0,
    ) {
        let mut times = RunTimes::default();
        for (low, more) in history {
            times.learn(secs(low), secs(low + more));
        }
        if let Some(at) = times.best_look(secs(over), look) {
            prop_assert!(at >= secs(over * 0.999));
        }
        prop_assert!((0.0..=1.0001).contains(&times.beyond(secs(over))));
    }
}
