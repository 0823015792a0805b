//! What is kept of beliefs across a restart.

use super::grid::{HALF, SHAPES, bin, edge};
use super::{EXPLORED, RunTimes};

/// A spread, a median in seconds and how much they are believed in (a logarithm, 0 at most). It does not depend on the grid.
pub(crate) type Belief = (f64, f64, f64);

/// Beliefs below this (a logarithm) are not kept across a restart.
const UNLIKELY: f64 = -9.0;

impl RunTimes {
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
