//! What is expected of jobs, for a forecast: how long they run, and when the live ones end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Jobs;

/// The run time of a model, as far as it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunTime {
    pub(crate) mean: Duration,
    /// Nine of ten jobs run no longer.
    pub(crate) p90: Duration,
}

impl Jobs {
    /// `None` while no job of the model was seen to end.
    pub(crate) fn run_time(&self, model: &str) -> Option<RunTime> {
        let known = |times: &super::learn::RunTimes| (times.mean(), times.quantile(Duration::ZERO, 0.9));
        let (mean, p90) = self.models.learned(model, known)?;
        mean.zip(p90).map(|(mean, p90)| RunTime { mean, p90 })
    }

    /// In how long each live job of this account, or of another with its key, ends: by the median of those that ran as long, or at the
    /// next look where nothing is known.
    pub(crate) fn expected_ends(&self, account: usize) -> Vec<Duration> {
        let now = Instant::now();
        let terms = self.terms.load_full();
        let queue = &terms.accounts[account].1;
        let of_account = |owner: usize| Arc::ptr_eq(&terms.accounts[owner].1, queue);
        let live = self.table.iter().filter(|job| job.slot.is_some() && of_account(job.owner.account));
        // The table's locks first, then the models': `learned` must not be asked under them.
        let live: Vec<_> = live.map(|job| (Arc::clone(&job.model), job.started, job.due)).collect();
        let ends = live.into_iter().map(|(model, started, due)| {
            let age = now - started;
            let median = self.models.learned(&model, |times| times.quantile(age, 0.5)).flatten();
            median.map_or(due.saturating_duration_since(now), |median| median.saturating_sub(age))
        });
        ends.collect()
    }
}
