//! How long jobs of a model run, learned from what looks at them saw.
//!
//! A look says only whether a job still runs, so a finished job is known as an interval: it ran longer than when it was last seen running
//! and at most as long as when it was seen done. Run times are taken as log-normal; what is believed of median and spread is a grid of
//! weights, and each interval multiplies it by its likelihood (Bayes). Few samples are enough, a constant run time shows as a small
//! spread, and the forecast stays honest about what is not known. Old samples fade, at once when jobs end where none was expected.
//!
//! A sample is dear and a look cheap: what a look needs of the forecast is summed up when a sample comes, and the looks that were worked
//! out are kept until the next. A sample that was all but certain is left out.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

/// Bins of run times grow by this factor, which bounds the precision of a look.
const RATIO: f64 = 1.005;
/// Lower edge of the first bin, in seconds.
const FIRST: f64 = 0.01;
/// Its root.
const HALF: f64 = 1.002_496_882_788_171;
/// Up to about three hours.
const BINS: usize = 2_800;
/// The spreads (σ of the logarithm) that are told apart.
const SPREADS: [Spread; 9] = [
    Spread { sigma: 0.003, step: 1, prior: 0.0 },
    Spread { sigma: 0.01, step: 1, prior: 0.0 },
    Spread { sigma: 0.03, step: 4, prior: -2.0 },
    Spread { sigma: 0.06, step: 4, prior: -3.0 },
    Spread { sigma: 0.12, step: 8, prior: -3.0 },
    Spread { sigma: 0.2, step: 14, prior: -1.0 },
    Spread { sigma: 0.3, step: 20, prior: 0.0 },
    Spread { sigma: 0.45, step: 28, prior: 0.0 },
    Spread { sigma: 0.7, step: 40, prior: 0.0 },
];
/// What a sample keeps of its say when the next one comes: the last thirty or so count.
const KEEP: f64 = 0.97;
/// The median is doubtful while it is less well known than this many spreads.
const DOUBTFUL: f64 = 1.5;
/// Of a sample that tells nothing, more than this was expected.
const CERTAIN: f64 = 0.8;
/// A sample of which more than this was expected is left out: no belief would change by more than it fades.
const FORESEEN: f64 = 0.998;
/// Of a surprise nothing more than this was expected.
const EXPECTED_LEAST: f64 = 0.02;
/// What is kept of the past at a first surprise (an outlier?) and at another one before any that contradicts it (a drift).
const KEEP_AT_SURPRISE: [f64; 2] = [0.8, 0.1];
/// Every run time is thought possible this much, however unlikely it seems: no sample can silence the others.
const POSSIBLE: f64 = 0.01;

/// How much run times of one median may differ.
struct Spread {
    sigma: f64,
    /// Medians that are told apart lie so many bins from each other. `BINS / step` is a multiple of ten, for loops over ten at once.
    step: usize,
    /// How easily it is believed (a logarithm): jobs of a model take the same time, or times that differ by a third or more.
    prior: f64,
}

/// The run times of one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunTimes {
    /// Logarithms of the weights, by spread and median, the largest being 0; empty until the first sample.
    beliefs: Vec<f64>,
    /// The forecast that follows from them: weight by bin, summing to 1.
    bins: Vec<f64>,
    /// By bin, what lies in it and above: its weight, and its weight times its run time.
    above: Vec<(f64, f64)>,
    /// The bins that have any weight to speak of.
    likely: Range<usize>,
    /// Looks that follow from them.
    looks: RefCell<Looks>,
    samples: u64,
    /// The last sample that was not expected, until another one contradicts it.
    surprise: Option<Range<usize>>,
    /// How well the median is known (the standard deviation of its logarithm), and the spread that is expected; worked out for as long
    /// as anything is explored.
    unsure: f64,
    spread: f64,
}

/// A part of the forecast.
struct Step {
    weight: f64,
    /// Times the run time.
    moments: f64,
    end: f64,
}

/// The best looks since the last sample, by what was asked.
#[derive(Debug, Clone, Default)]
struct Looks(Vec<(LookKey, Option<Duration>)>);

/// The age that it was seen running at, and the price of a look.
type LookKey = (Duration, f64);

impl Looks {
    /// Most that are kept.
    const MOST: usize = 64;

    fn find(&self, key: LookKey) -> Option<&(LookKey, Option<Duration>)> {
        self.0.iter().find(|(known, _)| *known == key)
    }

    fn keep(&mut self, key: LookKey, look: Option<Duration>) {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.push((key, look));
    }
}

/// Log-normal run times of one spread, by bins above the median: entry `i` is for `i - BINS` bins.
struct Shape {
    spread: Spread,
    /// Share of run times up to there.
    share: Vec<f64>,
    /// Share in the bin that begins there.
    mass: Vec<f64>,
    /// So many bins from the median there is nothing left.
    far: usize,
}

static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    /// In spreads.
    const FAR: f64 = 5.0;
    let shape = |spread: Spread| {
        let sigma = spread.sigma;
        let share = (0..=2 * BINS).map(|bins| normal_share((count(bins) - count(BINS)) * RATIO.ln() / sigma));
        let share: Vec<f64> = share.collect();
        let mass = share.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Shape { spread, share, mass, far: bin(FIRST * (sigma * FAR).exp()) + 2 }
    };
    SPREADS.into_iter().map(shape).collect()
});

impl Shape {
    fn medians(&self) -> usize {
        BINS / self.spread.step
    }

    /// How easily one median of the grid is believed: it stands for as many as are not told apart.
    fn prior(&self) -> f64 {
        self.spread.prior + count(self.spread.step).ln()
    }

    /// Adds the run times of jobs whose median begins this bin to a forecast. Those below the first bin count in it.
    fn add(&self, bins: &mut [f64], median: usize, weight: f64) {
        let near = median.saturating_sub(self.far)..BINS.min(median + self.far);
        if near.start == 0 {
            bins[0] += weight * self.share[BINS - median];
        }
        let masses = &self.mass[near.start + BINS - median..];
        bins[near].iter_mut().zip(masses).for_each(|(sum, mass)| *sum += weight * mass);
    }

    /// Multiplies the beliefs in medians by the likelihood of a sample in bins `low..high`; they keep this share of what they were.
    ///
    /// The likelihood varies with the median near the ends of the sample only: elsewhere its logarithm is worked out once.
    fn weigh(&self, beliefs: &mut [f64], low: usize, high: usize, keep: f64) {
        let (step, medians) = (self.spread.step, self.medians());
        let prior = self.prior() * (1.0 - keep);
        let possible = POSSIBLE * count(high - low) / count(BINS);
        let shift = |likelihood: f64| prior + (likelihood * (1.0 - POSSIBLE) + possible).ln();
        let near =
            |edge: usize| edge.saturating_sub(self.far).div_ceil(step)..(edge + self.far).div_ceil(step).min(medians);
        // A sample that begins in the first bin may have begun anywhere below.
        let (low_end, high_end) = (if low == 0 { 0..0 } else { near(low) }, near(high));
        let between = low_end.end..high_end.start.max(low_end.end);
        let flat = [(0..low_end.start, 0.0), (between.clone(), 1.0), (high_end.end..medians, 0.0)];
        for (medians, likelihood) in flat {
            let shift = shift(likelihood);
            beliefs[medians].iter_mut().for_each(|belief| *belief = *belief * keep + shift);
        }
        for medians in [low_end, between.end..high_end.end] {
            for (median, belief) in medians.clone().zip(&mut beliefs[medians]) {
                let median = median * step;
                let from = if low == 0 { 0.0 } else { self.share[low + BINS - median] };
                let likelihood = (self.share[high + BINS - median] - from).max(0.0);
                *belief = *belief * keep + shift(likelihood);
            }
        }
    }
}

/// The beliefs of each shape.
fn by_shape(mut beliefs: &mut [f64]) -> impl Iterator<Item = (&'static Shape, &mut [f64])> {
    SHAPES.iter().map(move |shape| {
        let (own, others) = std::mem::take(&mut beliefs).split_at_mut(shape.medians());
        beliefs = others;
        (shape, own)
    })
}

/// Lower edges of the bins, in seconds, and of the one after the last.
static EDGES: LazyLock<Vec<f64>> = LazyLock::new(|| (0..=BINS).map(|bin| FIRST * RATIO.powf(count(bin))).collect());

impl RunTimes {
    /// A job ran longer than `over` and at most `within`; exactly so long where they are the same.
    pub(crate) fn learn(&mut self, over: Duration, within: Duration) {
        let (low, high) = (bin(over.as_secs_f64()), bin(within.as_secs_f64()).max(bin(over.as_secs_f64())) + 1);
        let expected: f64 = self.bins.get(low..high.min(BINS)).map_or(1.0, |bins| bins.iter().sum());
        // An exact sample is judged by how many were expected beyond it: where run times vary, no single one is likely.
        let exact = over == within && self.samples > 0;
        let likely = if exact { self.beyond(over).min(1.0 - self.beyond(within)) } else { expected };
        let keep = if likely < EXPECTED_LEAST {
            let again = self.surprise.replace(low..high).is_some();
            KEEP_AT_SURPRISE[usize::from(again)]
        } else {
            // What agrees with the surprise does not make it an outlier.
            self.surprise.take_if(|surprise| high <= surprise.start || surprise.end <= low);
            // What was all but certain tells nothing new: it must not make what is known fade.
            if expected > CERTAIN { 1.0 } else { KEEP }
        };
        self.samples += 1;
        // No median is below the first bin, so that no more can be expected of it.
        if expected > (if high == 1 { CERTAIN } else { FORESEEN }) && !self.beliefs.is_empty() {
            return;
        }
        if self.beliefs.is_empty() {
            let beliefs = SHAPES.iter().flat_map(|shape| std::iter::repeat_n(shape.prior(), shape.medians()));
            self.beliefs = beliefs.collect();
        }
        for (shape, beliefs) in by_shape(&mut self.beliefs) {
            shape.weigh(beliefs, low, high, keep);
        }
        self.forecast();
    }

    /// Works out the forecast from the beliefs.
    fn forecast(&mut self) {
        /// Beliefs below this (a logarithm) change nothing.
        const NEGLIGIBLE: f64 = -9.0;
        let largest = largest(&self.beliefs);
        self.bins.resize(BINS, 0.0);
        self.bins.fill(0.0);
        for (shape, beliefs) in by_shape(&mut self.beliefs) {
            // Most of them change nothing: ten are passed over at once.
            for (ten, beliefs) in beliefs.as_chunks_mut::<10>().0.iter_mut().enumerate() {
                *beliefs = beliefs.map(|belief| belief - largest);
                if highest(beliefs) > NEGLIGIBLE {
                    let medians = (10 * ten..).zip(&*beliefs).filter(|(_, belief)| **belief > NEGLIGIBLE);
                    let add = |(median, belief): (usize, &f64)| {
                        shape.add(&mut self.bins, median * shape.spread.step, belief.exp());
                    };
                    medians.for_each(add);
                }
            }
        }
        if self.samples < EXPLORED {
            self.weigh_doubt();
        }
        self.sum_up();
    }

    fn weigh_doubt(&mut self) {
        let (mut all, mut first, mut second, mut spreads) = (0.0, 0.0, 0.0, 0.0);
        for (Shape { spread, .. }, beliefs) in by_shape(&mut self.beliefs) {
            for (median, belief) in beliefs.iter().enumerate() {
                let (weight, at) = (belief.exp(), count(median * spread.step) * RATIO.ln());
                all += weight;
                first += weight * at;
                second += weight * at * at;
                spreads += weight * spread.sigma;
            }
        }
        self.unsure = (second / all - (first / all).powi(2)).max(0.0).sqrt();
        self.spread = spreads / all;
    }

    /// Prepares what looks need of the forecast.
    fn sum_up(&mut self) {
        /// Weights below this are nothing.
        const LEAST: f64 = 1e-9;
        let total: f64 = self.bins.iter().sum();
        self.above.resize(BINS + 1, (0.0, 0.0));
        let mut sums = (0.0, 0.0);
        for (bin, weight) in self.bins.iter_mut().enumerate().rev() {
            *weight /= total;
            sums = (sums.0 + *weight, sums.1 + *weight * middle(bin));
            self.above[bin] = sums;
        }
        let any = |weight: &f64| *weight > LEAST;
        let first = self.bins.iter().position(any).unwrap_or(0);
        self.likely = first..self.bins.iter().rposition(any).map_or(first, |last| last + 1);
        self.looks.get_mut().0.clear();
    }

    /// True while the median is not known better than jobs differ from each other, and few jobs have told of it: what they left open is
    /// not worth a look that may come too early.
    pub(crate) fn doubtful(&self) -> bool {
        self.samples < EXPLORED && self.unsure > RATIO.ln() && self.unsure > self.spread * DOUBTFUL
    }

    /// How long before a look at age `at` a job ended, on average, if it ran longer than `over` and has ended by then; in seconds.
    pub(crate) fn late(&self, over: Duration, at: Duration) -> f64 {
        let (first, part) = place(over);
        let at = at.as_secs_f64();
        let to = (bin(at) + usize::from(middle(bin(at)) < at)).max(first);
        let (weight, moments) = self.rest(first, part);
        let (later, later_moments) = if to == first { (weight, moments) } else { self.above_bin(to) };
        let ended = weight - later;
        if ended > 0.0 { (at - (moments - later_moments) / ended).max(0.0) } else { 0.0 }
    }

    /// Nothing was learned yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The run time that this share of jobs does not exceed, of those that run longer than `over`.
    pub(crate) fn quantile(&self, over: Duration, share: f64) -> Option<Duration> {
        let (first, part) = place(over);
        let (total, _) = self.rest(first, part);
        let after = self.above.get(first + 1..)?;
        let beyond = after.partition_point(|(weight, _)| *weight > total * (1.0 - share));
        (total > 0.0).then(|| Duration::from_secs_f64(edge((first + beyond + 1).min(BINS))))
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
        let (first, part) = place(over);
        self.rest(first, part).0
    }

    /// The age at which a look costs least, for a job seen running at age `over`: each look costs as much as `look` seconds that the end
    /// goes unseen. A look that comes too early is followed by the best one from there. `None` where nothing is known of jobs this old.
    pub(crate) fn best_look(&self, over: Duration, look: f64) -> Option<Duration> {
        let key = (over, grade(look));
        if let Some((_, known)) = self.looks.borrow().find(key) {
            return *known;
        }
        let best = cheapest(&self.steps(over), key.1);
        self.looks.borrow_mut().keep(key, best);
        best
    }

    /// Run times over `over` in at most some fifty steps of about equal weight, or single bins.
    fn steps(&self, over: Duration) -> Vec<Step> {
        const MOST: f64 = 48.0;
        /// The longest of jobs are not waited for: they get another look.
        const IGNORED: f64 = 0.01;
        let (first, part) = place(over);
        let (total, _) = self.rest(first, part);
        let enough = total / MOST;
        let mut steps: Vec<Step> = Vec::with_capacity(2 * 48);
        let mut left = total;
        for bin in first.max(self.likely.start)..self.likely.end {
            if left <= IGNORED * total {
                break;
            }
            let weight = if bin == first { self.bins[bin] * part } else { self.bins[bin] };
            left -= weight;
            let (middle, end) = (middle(bin), edge(bin + 1));
            match steps.last_mut().filter(|step| step.weight + weight <= enough) {
                Some(step) => {
                    step.moments += weight * middle;
                    (step.weight, step.end) = (step.weight + weight, end);
                }
                None => steps.push(Step { moments: weight * middle, end, weight }),
            }
        }
        steps
    }

    /// Weight and moments of this part of a bin and of all that lies above it.
    fn rest(&self, first: usize, part: f64) -> (f64, f64) {
        let (weight, moments) = self.above_bin(first + 1);
        let own = self.bins.get(first).copied().unwrap_or_default() * part;
        (weight + own, moments + own * middle(first))
    }

    fn above_bin(&self, bin: usize) -> (f64, f64) {
        self.above.get(bin).copied().unwrap_or_default()
    }

    /// What is worth keeping: the likelier beliefs.
    pub(crate) fn save(&self) -> Vec<Belief> {
        let mut beliefs = &self.beliefs[..];
        let mut saved = Vec::new();
        for shape in SHAPES.iter().filter(|_| !self.beliefs.is_empty()) {
            let own;
            (own, beliefs) = beliefs.split_at(shape.medians());
            let likely = own.iter().enumerate().filter(|(_, belief)| **belief > UNLIKELY);
            saved
                .extend(likely.map(|(median, belief)| (shape.spread.sigma, edge(median * shape.spread.step), *belief)));
        }
        saved
    }

    /// Takes up what `save` gave, at the nearest places of the grid. What cannot be meant is left out.
    pub(crate) fn restore(saved: &[Belief]) -> Self {
        let mut times = Self::default();
        for &(sigma, median, belief) in saved {
            if !(sigma > 0.0 && median > 0.0 && belief <= 0.0) {
                continue;
            }
            let mut before = 0;
            let places = SHAPES.iter().map(|shape| {
                let median = (bin(median * HALF) + shape.spread.step / 2) / shape.spread.step;
                let place = before + median.min(shape.medians() - 1);
                before += shape.medians();
                ((shape.spread.sigma / sigma).ln().abs(), place)
            });
            let Some((_, place)) = places.min_by(|(one, _), (other, _)| one.total_cmp(other)) else { continue };
            times.beliefs.resize(before, UNLIKELY);
            times.beliefs[place] = times.beliefs[place].max(belief);
        }
        if !times.beliefs.is_empty() {
            times.samples = EXPLORED;
            times.forecast();
        }
        times
    }
}

/// A spread, a median in seconds and how much they are believed in (a logarithm, 0 at most). It does not depend on the grid.
pub(crate) type Belief = (f64, f64, f64);

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

#[allow(clippy::cast_precision_loss)] // at most twice the bins
fn count(bins: usize) -> f64 {
    bins as f64
}

fn edge(bin: usize) -> f64 {
    EDGES[bin]
}

fn middle(bin: usize) -> f64 {
    EDGES[bin] * HALF
}

/// The bin of an age, and the part of it that lies above.
fn place(age: Duration) -> (usize, f64) {
    let age = age.as_secs_f64();
    let bin = bin(age);
    (bin, ((edge(bin + 1) - age) / (edge(bin + 1) - edge(bin))).clamp(0.0, 1.0))
}

/// Prices that differ by less than a tenth or so are one.
fn grade(price: f64) -> f64 {
    const GRADES: f64 = 16.0;
    ((price.max(1e-9).log2() * GRADES).round() / GRADES).exp2()
}

/// The end of the step after which to look first, where a look costs as much as so many seconds that an end goes unseen.
fn cheapest(steps: &[Step], look: f64) -> Option<Duration> {
    // From the end: the least cost of finding all jobs that end in step `from` or later, times their weight.
    let mut least = vec![0.0; steps.len() + 1];
    let (mut weight, mut first) = (0.0, steps.len().saturating_sub(1));
    for from in (0..steps.len()).rev() {
        weight += steps[from].weight;
        let (mut ended, mut moments, mut best) = (0.0, 0.0, (f64::INFINITY, from));
        // One more job to be found makes each later end dearer: the best one is none later than it was without.
        for (to, step) in steps.iter().enumerate().take(first + 1).skip(from) {
            ended += step.weight;
            moments += step.moments;
            let so_far = look * weight + ended * step.end - moments;
            if so_far > best.0 {
                break;
            }
            let cost = so_far + least[to + 1];
            if cost < best.0 {
                best = (cost, to);
            }
        }
        (least[from], first) = best;
    }
    steps.get(first).map(|step| Duration::from_secs_f64(step.end))
}

/// The largest of the beliefs, ten at a time.
fn largest(beliefs: &[f64]) -> f64 {
    let mut largest = [f64::NEG_INFINITY; 10];
    for ten in beliefs.as_chunks::<10>().0 {
        largest = std::array::from_fn(|n| larger(largest[n], ten[n]));
    }
    highest(&largest)
}

fn highest(ten: &[f64; 10]) -> f64 {
    let five: [f64; 5] = std::array::from_fn(|n| larger(ten[n], ten[n + 5]));
    larger(larger(larger(five[0], five[1]), larger(five[2], five[3])), five[4])
}

/// What one instruction does; `f64::max` has more to say of what is no number.
fn larger(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
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
}
