//! How long jobs of a model run, learned from what looks at them saw.
//!
//! A look says only whether a job still runs, so a finished job is known as an interval: it ran longer than when it was last seen running
//! and at most as long as when it was seen done. Run times are taken as log-normal; what is believed of median and spread is a grid of
//! weights, and each interval multiplies it by its likelihood (Bayes). Few samples are enough, a constant run time shows as a small
//! spread, and the forecast stays honest about what is not known. Old samples fade, at once when jobs end where none was expected.

use std::sync::LazyLock;
use std::time::Duration;

/// Bins of run times grow by this factor, which bounds the precision of a look.
const RATIO: f64 = 1.02;
/// Lower edge of the first bin, in seconds.
const FIRST: f64 = 0.01;
/// Up to about three hours.
const BINS: usize = 700;
/// Spreads (σ of the logarithm) that are told apart.
const SPREADS: [f64; 8] = [0.01, 0.03, 0.06, 0.12, 0.2, 0.3, 0.45, 0.7];
/// What a sample keeps of its say when the next one comes: the last thirty or so count.
const KEEP: f64 = 0.97;
/// A narrow spread is believed more easily than a wide one, by this much a unit of spread (a logarithm).
const NARROW: f64 = 2.0;
/// The median is doubtful while it is less well known than this many spreads.
const DOUBTFUL: f64 = 1.5;
/// Of a sample that tells nothing, more than this was expected.
const CERTAIN: f64 = 0.8;
/// Of a surprise nothing more than this was expected.
const EXPECTED_LEAST: f64 = 0.02;
/// What is kept of the past at a first surprise (an outlier?) and at another one right after it (a drift).
const KEEP_AT_SURPRISE: [f64; 2] = [0.8, 0.1];
/// Every run time is thought possible this much, however unlikely it seems: no sample can silence the others.
const POSSIBLE: f64 = 0.01;

/// The run times of one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunTimes {
    /// Logarithms of the weights, by spread and bin of the median, the largest being 0; empty until the first sample.
    beliefs: Vec<f64>,
    /// The forecast that follows from them: weight by bin, summing to 1.
    bins: Vec<f64>,
    samples: u64,
    surprises: usize,
    /// How well the median is known (the standard deviation of its logarithm), and the spread that is expected.
    unsure: f64,
    spread: f64,
}

/// A part of the forecast.
struct Step {
    middle: f64,
    end: f64,
    weight: f64,
}

/// Distribution functions by spread: entry `i` is the share of run times up to `i - BINS` bins above the median.
static SHARES: LazyLock<Vec<Vec<f64>>> = LazyLock::new(|| {
    let share = |spread: f64, bins: usize| normal_share((count(bins) - count(BINS)) * RATIO.ln() / spread);
    SPREADS.iter().map(|spread| (0..=2 * BINS).map(|bins| share(*spread, bins)).collect()).collect()
});

impl RunTimes {
    /// A job ran longer than `over` and at most `within`; exactly so long where they are the same.
    pub(crate) fn learn(&mut self, over: Duration, within: Duration) {
        let (low, high) = (bin(over.as_secs_f64()), bin(within.as_secs_f64()).max(bin(over.as_secs_f64())) + 1);
        let expected: f64 = self.bins.get(low..high.min(BINS)).map_or(1.0, |bins| bins.iter().sum());
        // An exact sample is judged by how many were expected beyond it: where run times vary, no single one is likely.
        let exact = over == within && self.samples > 0;
        let likely = if exact { self.beyond(over).min(1.0 - self.beyond(within)) } else { expected };
        let keep = if likely < EXPECTED_LEAST {
            let keep = KEEP_AT_SURPRISE[self.surprises.min(1)];
            self.surprises += 1;
            keep
        } else {
            self.surprises = 0;
            // What was all but certain tells nothing new: it must not make what is known fade.
            if expected > CERTAIN { 1.0 } else { KEEP }
        };
        if self.beliefs.is_empty() {
            self.beliefs = SPREADS.iter().flat_map(|spread| std::iter::repeat_n(-spread * NARROW, BINS)).collect();
        }
        let possible = POSSIBLE * count(high - low) / count(BINS);
        for ((shares, spread), beliefs) in SHARES.iter().zip(SPREADS).zip(self.beliefs.chunks_mut(BINS)) {
            let prior = -spread * NARROW;
            for (median, belief) in beliefs.iter_mut().enumerate() {
                let from = if low == 0 { 0.0 } else { shares[low + BINS - median] };
                let likelihood = (shares[high + BINS - median] - from).max(0.0);
                *belief = *belief * keep + prior * (1.0 - keep) + (likelihood * (1.0 - POSSIBLE) + possible).ln();
            }
        }
        self.samples += 1;
        self.forecast();
    }

    /// Works out the forecast from the beliefs.
    fn forecast(&mut self) {
        /// Beliefs below this (a logarithm) change nothing.
        const NEGLIGIBLE: f64 = -9.0;
        /// Nor do run times farther from the median than this many spreads.
        const FAR: f64 = 5.0;
        let largest = self.beliefs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.beliefs.iter_mut().for_each(|belief| *belief -= largest);
        self.bins.clear();
        self.bins.resize(BINS, 0.0);
        for ((shares, spread), beliefs) in SHARES.iter().zip(SPREADS).zip(self.beliefs.chunks(BINS)) {
            let far = bin(FIRST * (spread * FAR).exp()) + 2;
            for (median, belief) in beliefs.iter().enumerate().filter(|(_, belief)| **belief > NEGLIGIBLE) {
                let weight = belief.exp();
                let near = median.saturating_sub(far)..BINS.min(median + far);
                for (bin, sum) in self.bins.iter_mut().enumerate().skip(near.start).take(near.len()) {
                    let share = shares[bin + 1 + BINS - median] - shares[bin + BINS - median];
                    *sum += weight * share;
                }
            }
        }
        let total: f64 = self.bins.iter().sum();
        self.bins.iter_mut().for_each(|weight| *weight /= total);
        self.weigh_doubt();
    }

    fn weigh_doubt(&mut self) {
        let (mut all, mut first, mut second, mut spreads) = (0.0, 0.0, 0.0, 0.0);
        for (spread, beliefs) in SPREADS.iter().zip(self.beliefs.chunks(BINS)) {
            for (median, belief) in beliefs.iter().enumerate() {
                let (weight, at) = (belief.exp(), count(median) * RATIO.ln());
                all += weight;
                first += weight * at;
                second += weight * at * at;
                spreads += weight * spread;
            }
        }
        self.unsure = (second / all - (first / all).powi(2)).max(0.0).sqrt();
        self.spread = spreads / all;
    }

    /// True while the median is not known better than jobs differ from each other, and few jobs have told of it: what they left open is
    /// not worth a look that may come too early.
    pub(crate) fn doubtful(&self) -> bool {
        self.samples < EXPLORED && self.unsure > RATIO.ln() && self.unsure > self.spread * DOUBTFUL
    }

    /// How long before a look at age `at` a job ended, on average, if it ran longer than `over` and has ended by then; in seconds.
    pub(crate) fn late(&self, over: Duration, at: Duration) -> f64 {
        let at = at.as_secs_f64();
        let ended = self.rest(over).map(|(bin, weight)| (middle(bin), weight)).take_while(|(middle, _)| *middle < at);
        let (sum, weight) =
            ended.fold((0.0, 0.0), |(sum, all), (middle, weight)| (sum + weight * (at - middle), all + weight));
        if weight > 0.0 { sum / weight } else { 0.0 }
    }

    /// Nothing was learned yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The run time that this share of jobs does not exceed, of those that run longer than `over`.
    pub(crate) fn quantile(&self, over: Duration, share: f64) -> Option<Duration> {
        let rest = self.rest(over);
        let total: f64 = rest.clone().map(|(_, weight)| weight).sum();
        let mut below = 0.0;
        rest.filter(|_| total > 0.0)
            .find(|(_, weight)| {
                below += weight;
                below >= share * total
            })
            .map(|(bin, _)| Duration::from_secs_f64(edge(bin + 1)))
    }

    /// The mean run time of the jobs that run shortest, all but a few: with few samples, hours are thought possible.
    pub(crate) fn mean(&self) -> Option<Duration> {
        const MOST: f64 = 0.95;
        let (mut sum, mut below) = (0.0, 0.0);
        for (bin, weight) in self.bins.iter().enumerate() {
            let counted = weight.min(MOST - below).max(0.0);
            sum += counted * middle(bin);
            below += counted;
        }
        (below > 0.0).then(|| Duration::from_secs_f64(sum / below))
    }

    /// Share of all jobs that run longer than `over`.
    pub(crate) fn beyond(&self, over: Duration) -> f64 {
        let total: f64 = self.bins.iter().sum();
        let rest: f64 = self.rest(over).map(|(_, weight)| weight).sum();
        if total > 0.0 { rest / total } else { 0.0 }
    }

    /// The age at which a look costs least, for a job seen running at age `over`: each look costs `look`, each second that the end goes
    /// unseen costs `unseen`. A look that comes too early is followed by the best one from there. `None` where nothing is known of jobs
    /// this old.
    pub(crate) fn best_look(&self, over: Duration, look: f64, unseen: f64) -> Option<Duration> {
        let steps = self.steps(over);
        // From the end: the least cost of finding all jobs that end in step `from` or later, times their weight.
        let mut least = vec![(0.0, 0); steps.len() + 1];
        let mut weight = 0.0;
        for from in (0..steps.len()).rev() {
            weight += steps[from].weight;
            let (mut ended, mut moments) = (0.0, 0.0);
            let costs = steps.iter().enumerate().skip(from).map(|(to, step)| {
                ended += step.weight;
                moments += step.weight * step.middle;
                (look * weight + unseen * (ended * step.end - moments) + least[to + 1].0, to)
            });
            let best = costs.min_by(|a, b| a.0.total_cmp(&b.0));
            least[from] = best.unwrap_or_default();
        }
        steps.get(least[0].1).map(|step| Duration::from_secs_f64(step.end))
    }

    /// Run times over `over` in at most some fifty steps of about equal weight, or single bins.
    fn steps(&self, over: Duration) -> Vec<Step> {
        const MOST: f64 = 48.0;
        /// The longest of jobs are not waited for: they get another look.
        const IGNORED: f64 = 0.01;
        let rest: Vec<(usize, f64)> = self.rest(over).filter(|(_, weight)| *weight > 1e-9).collect();
        let total = rest.iter().map(|(_, weight)| weight).sum::<f64>();
        let enough = total / MOST;
        let mut steps: Vec<Step> = Vec::new();
        let mut left = total;
        for (bin, weight) in rest {
            if left < IGNORED * total {
                break;
            }
            left -= weight;
            let (middle, end) = (middle(bin), edge(bin + 1));
            match steps.last_mut().filter(|step| step.weight + weight <= enough) {
                Some(step) => {
                    step.middle = (step.middle * step.weight + middle * weight) / (step.weight + weight);
                    (step.weight, step.end) = (step.weight + weight, end);
                }
                None => steps.push(Step { middle, end, weight }),
            }
        }
        steps
    }

    /// Bins of run times over `over`, with their weights; the bin in which `over` lies counts with the part above it.
    fn rest(&self, over: Duration) -> impl Iterator<Item = (usize, f64)> + Clone {
        let over = over.as_secs_f64();
        let first = bin(over);
        let part = ((edge(first + 1) - over) / (edge(first + 1) - edge(first))).clamp(0.0, 1.0);
        let weights = self.bins.iter().copied().enumerate().skip(first);
        weights.map(move |(bin, weight)| (bin, if bin == first { weight * part } else { weight }))
    }

    /// What is worth keeping: the likelier beliefs, by place in the grid.
    pub(crate) fn save(&self) -> Vec<(usize, f64)> {
        self.beliefs.iter().copied().enumerate().filter(|(_, belief)| *belief > UNLIKELY).collect()
    }

    /// Takes up what `save` gave. Pairs out of range are left out.
    pub(crate) fn restore(saved: &[(usize, f64)]) -> Self {
        let mut times = Self::default();
        let fit = saved.iter().filter(|(place, belief)| *place < SPREADS.len() * BINS && *belief <= 0.0);
        for (place, belief) in fit {
            times.beliefs.resize(SPREADS.len() * BINS, UNLIKELY);
            times.beliefs[*place] = *belief;
        }
        if !times.beliefs.is_empty() {
            times.samples = EXPLORED;
            times.forecast();
        }
        times
    }
}

/// Beliefs below this (a logarithm) are not kept across a restart.
const UNLIKELY: f64 = -9.0;
/// Samples after which nothing is explored any more; restored beliefs stand for as many.
const EXPLORED: u64 = 10;

/// The standard normal distribution function, to 1e-7 (Abramowitz and Stegun, 26.2.17).
fn normal_share(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let poly =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let upper = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * poly;
    if x >= 0.0 { 1.0 - upper } else { upper }
}

#[allow(clippy::cast_precision_loss)] // at most 700
fn count(bins: usize) -> f64 {
    bins as f64
}

fn edge(bin: usize) -> f64 {
    FIRST * RATIO.powf(count(bin))
}

fn middle(bin: usize) -> f64 {
    edge(bin) * RATIO.sqrt()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to the bins
fn bin(secs: f64) -> usize {
    let bin = (secs.max(FIRST) / FIRST).ln() / RATIO.ln();
    (bin.floor().max(0.0) as usize).min(BINS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        for (look, unseen) in [(1.0, 0.01), (0.01, 0.2), (1.0, 0.2)] {
            about(times.best_look(Duration::ZERO, look, unseen), 2.5);
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
        let late = times.best_look(Duration::ZERO, 1.0, 0.02).expect("known");
        let early = times.best_look(Duration::ZERO, 0.01, 0.2).expect("known");
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
    fn what_is_saved_is_known_again() {
        let mut times = RunTimes::default();
        (0..9).for_each(|_| times.learn(secs(2.4), secs(2.5)));
        let again = RunTimes::restore(&times.save());
        about(again.best_look(Duration::ZERO, 1.0, 0.1), 2.5);
        assert!(RunTimes::restore(&[(99_999, -1.0), (3, f64::NAN)]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_history_gives_a_look_after_the_last(
            history in prop::collection::vec((0.0_f64..20_000.0, 0.0_f64..500.0), 0..8),
            over in 0.0_f64..30_000.0,
            look in 0.0_f64..100.0,
            unseen in 0.0_f64..10.0,
        ) {
            let mut times = RunTimes::default();
            for (low, more) in history {
                times.learn(secs(low), secs(low + more));
            }
            if let Some(at) = times.best_look(secs(over), look, unseen) {
                prop_assert!(at >= secs(over * 0.999));
            }
            prop_assert!((0.0..=1.0001).contains(&times.beyond(secs(over))));
        }
    }
}
