//! The last hour in points of ten seconds, for the dashboard's charts.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;

/// How long a point is.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// How often levels are looked at: a point has the highest of them.
pub(super) const SAMPLED_EVERY: Duration = Duration::from_secs(2);
/// An hour.
pub(super) const POINTS: usize = 360;

/// What is measured, all accounts together. Counts since the start, levels of the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Sent upstream.
    pub(super) attempts: u64,
    /// Answered 429 by the upstream.
    pub(super) refused: u64,
    /// Requests in queues.
    pub(super) waiting: usize,
    /// Job slots taken.
    pub(super) jobs_live: u32,
}

/// The ring of points. `Sample`s in it have counts of their ten seconds alone.
#[derive(Debug, Default)]
pub(super) struct History {
    points: VecDeque<Sample>,
    /// The point that is not over yet: the highest levels so far.
    current: Sample,
    /// Counts at the end of the last point.
    before: Sample,
    samples: u32,
}

impl History {
    /// Counts so far belong to no point.
    pub(super) fn start(&mut self, now: Sample) {
        self.before = now;
    }

    /// Takes a sample, one each `SAMPLED_EVERY`. True where it ends a point.
    pub(super) fn add(&mut self, now: Sample) -> bool {
        self.current.waiting = self.current.waiting.max(now.waiting);
        self.current.jobs_live = self.current.jobs_live.max(now.jobs_live);
        self.samples += 1;
        if u128::from(self.samples) * SAMPLED_EVERY.as_millis() < EVERY.as_millis() {
            return false;
        }
        let point = Sample {
            attempts: now.attempts.saturating_sub(self.before.attempts),
            refused: now.refused.saturating_sub(self.before.refused),
            ..self.current
        };
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back(point);
        (self.current, self.before, self.samples) = (Sample::default(), now, 0);
        true
    }

    /// For the page: columns, the oldest point first.
    pub(super) fn json(&self) -> String {
        let column = |of: fn(&Sample) -> u64| self.points.iter().map(of).collect::<Vec<_>>();
        let history = json!({
            "every_secs": EVERY.as_secs(),
            "points": POINTS,
            "attempts": column(|point| point.attempts),
            "refused": column(|point| point.refused),
            "waiting": column(|point| point.waiting as u64),
            "jobs_live": column(|point| point.jobs_live.into()),
        });
        history.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_point_has_the_counts_of_its_time_and_the_highest_levels() {
        let mut history = History::default();
        let levels = [(1, 0), (7, 2), (3, 5), (0, 0), (0, 1)];
        for point in 1..=2_u64 {
            for (number, (waiting, jobs_live)) in levels.into_iter().enumerate() {
                let over = history.add(Sample { attempts: point * 10, refused: point, waiting, jobs_live });
                assert_eq!(over, number == 4);
            }
        }
        let shown: Value = serde_json::from_str(&history.json()).expect("JSON");
        assert_eq!((&shown["attempts"], &shown["refused"]), (&json!([10, 10]), &json!([1, 1])));
        assert_eq!((&shown["waiting"], &shown["jobs_live"]), (&json!([7, 7]), &json!([5, 5])));
    }

    #[test]
    fn no_more_than_an_hour_is_kept() {
        let mut history = History::default();
        for attempts in 0..(POINTS as u64 + 10) * 5 {
            history.add(Sample { attempts, ..Sample::default() });
        }
        assert_eq!(history.points.len(), POINTS);
        assert!(history.points.iter().all(|point| point.attempts == 5), "each since the point before");
        assert!(history.json().len() < 8_000);
    }
}
