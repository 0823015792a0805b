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
use std::time::Duration;

use self::grid::{BINS, RATIO, SHAPES, Shape, bin, by_shape, count, edge, middle, place};
use self::looks::Looks;

pub(crate) use self::saved::Belief;

/// What is thought possible.
mod grid;

/// When to look.
mod looks;

/// Across a restart.
mod saved;

#[cfg(test)]
mod tests;

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
/// Samples after which nothing is explored any more; restored beliefs stand for as many.
const EXPLORED: u64 = 10;

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

    /// Weight and moments of this part of a bin and of all that lies above it.
    fn rest(&self, first: usize, part: f64) -> (f64, f64) {
        let (weight, moments) = self.above_bin(first + 1);
        let own = self.bins.get(first).copied().unwrap_or_default() * part;
        (weight + own, moments + own * middle(first))
    }

    fn above_bin(&self, bin: usize) -> (f64, f64) {
        self.above.get(bin).copied().unwrap_or_default()
    }
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
