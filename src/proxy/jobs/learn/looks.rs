//! The look that costs least, from the forecast: at each age, the price of a look against the time that an end would go unseen.

use std::time::Duration;

use super::RunTimes;
use super::grid::{edge, middle, place};

/// A part of the forecast.
pub(super) struct Step {
    pub(super) weight: f64,
    /// Times the run time.
    pub(super) moments: f64,
    pub(super) end: f64,
}

/// The best looks since the last sample, by what was asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks(pub(super) Vec<(LookKey, Option<Duration>)>);

/// The age that it was seen running at, and the price of a look.
pub(super) type LookKey = (Duration, f64);

impl Looks {
    /// Most that are kept.
    pub(super) const MOST: usize = 64;

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

impl RunTimes {
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
}

/// Prices that differ by less than a tenth or so are one.
fn grade(price: f64) -> f64 {
    const GRADES: f64 = 16.0;
    ((price.max(1e-9).log2() * GRADES).round() / GRADES).exp2()
}

/// The end of the step after which to look first, where a look costs as much as so many seconds that an end goes unseen.
pub(super) fn cheapest(steps: &[Step], look: f64) -> Option<Duration> {
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
