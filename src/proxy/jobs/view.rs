//! Live jobs as the admin port shows them.

use std::collections::BinaryHeap;

use tokio::time::Instant;

use super::{Held, Job, Jobs, Terms};

/// A live job as the admin port shows it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct View {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
    pub(crate) status: String,
    pub(crate) age_secs: f64,
    pub(crate) next_look_in_secs: f64,
    pub(crate) looks: u32,
}

impl Jobs {
    /// Live jobs, for the admin port: the oldest first.
    pub(crate) fn views(&self) -> Vec<View> {
        self.oldest(usize::MAX).1
    }

    /// How many live, and the oldest of them, at most so many.
    pub(crate) fn oldest(&self, most: usize) -> (usize, Vec<View>) {
        let (now, terms) = (Instant::now(), self.terms.load_full());
        let mut live = 0;
        // The youngest of those so far is on top, and the first to go.
        let mut oldest = BinaryHeap::new();
        for job in self.table.iter().filter(|job| matches!(job.slot, Some(Held::Here(_)))) {
            live += 1;
            if oldest.len() < most || oldest.peek().is_some_and(|(youngest, _)| job.started < *youngest) {
                oldest.push((job.started, job.key().clone()));
            }
            if oldest.len() > most {
                oldest.pop();
            }
        }
        let oldest = oldest.into_sorted_vec().into_iter();
        (live, oldest.filter_map(|(_, id)| Some(Self::view(&terms, &*self.table.get(&id)?, id, now))).collect())
    }

    fn view(terms: &Terms, job: &Job, id: String, now: Instant) -> View {
        View {
            id,
            account: terms.accounts[job.owner.account].0.clone(),
            client: terms.clients[job.owner.client].clone(),
            model: job.model.to_string(),
            status: job.status.clone(),
            age_secs: (now - job.started).as_secs_f64(),
            next_look_in_secs: job.due.saturating_duration_since(now).as_secs_f64(),
            looks: job.looks,
        }
    }
}
