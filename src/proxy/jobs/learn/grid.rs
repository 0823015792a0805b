//! The grid of what is thought possible: bins of run times, and log-normal shapes over them.

use std::sync::LazyLock;
use std::time::Duration;

/// Bins of run times grow by this factor, which bounds the precision of a look.
pub(super) const RATIO: f64 = 1.005;
/// Lower edge of the first bin, in seconds.
const FIRST: f64 = 0.01;
/// Its root.
pub(super) const HALF: f64 = 1.002_496_882_788_171;
/// Up to about three hours.
pub(super) const BINS: usize = 2_800;
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
/// Every run time is thought possible this much, however unlikely it seems: no sample can silence the others.
const POSSIBLE: f64 = 0.01;

/// How much run times of one median may differ.
pub(super) struct Spread {
    pub(super) sigma: f64,
    /// Medians that are told apart lie so many bins from each other. `BINS / step` is a multiple of ten, for loops over ten at once.
    pub(super) step: usize,
    /// How easily it is believed (a logarithm): jobs of a model take the same time, or times that differ by a third or more.
    pub(super) prior: f64,
}

/// Log-normal run times of one spread, by bins above the median: entry `i` is for `i - BINS` bins.
pub(super) struct Shape {
    pub(super) spread: Spread,
    /// Share of run times up to there.
    share: Vec<f64>,
    /// Share in the bin that begins there.
    mass: Vec<f64>,
    /// So many bins from the median there is nothing left.
    far: usize,
}

pub(super) static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
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
    pub(super) fn medians(&self) -> usize {
        BINS / self.spread.step
    }

    /// How easily one median of the grid is believed: it stands for as many as are not told apart.
    pub(super) fn prior(&self) -> f64 {
        self.spread.prior + count(self.spread.step).ln()
    }

    /// Adds the run times of jobs whose median begins this bin to a forecast. Those below the first bin count in it.
    pub(super) fn add(&self, bins: &mut [f64], median: usize, weight: f64) {
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
    pub(super) fn weigh(&self, beliefs: &mut [f64], low: usize, high: usize, keep: f64) {
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
pub(super) fn by_shape(mut beliefs: &mut [f64]) -> impl Iterator<Item = (&'static Shape, &mut [f64])> {
    SHAPES.iter().map(move |shape| {
        let (own, others) = std::mem::take(&mut beliefs).split_at_mut(shape.medians());
        beliefs = others;
        (shape, own)
    })
}

/// Lower edges of the bins, in seconds, and of the one after the last.
static EDGES: LazyLock<Vec<f64>> = LazyLock::new(|| (0..=BINS).map(|bin| FIRST * RATIO.powf(count(bin))).collect());

/// The standard normal distribution function, to 1e-7 (Abramowitz and Stegun, 26.2.17).
fn normal_share(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let poly =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let upper = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * poly;
    if x >= 0.0 { 1.0 - upper } else { upper }
}

#[allow(clippy::cast_precision_loss)] // at most twice the bins
pub(super) fn count(bins: usize) -> f64 {
    bins as f64
}

pub(super) fn edge(bin: usize) -> f64 {
    EDGES[bin]
}

pub(super) fn middle(bin: usize) -> f64 {
    EDGES[bin] * HALF
}

/// The bin of an age, and the part of it that lies above.
pub(super) fn place(age: Duration) -> (usize, f64) {
    let age = age.as_secs_f64();
    let bin = bin(age);
    (bin, ((edge(bin + 1) - age) / (edge(bin + 1) - edge(bin))).clamp(0.0, 1.0))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to the bins
pub(super) fn bin(secs: f64) -> usize {
    let bin = (secs.max(FIRST) / FIRST).ln() / RATIO.ln();
    (bin.floor().max(0.0) as usize).min(BINS - 1)
}
