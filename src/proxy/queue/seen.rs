//! What others see of an account: answers, the admin port, the forecast, the price of looks.

use tokio::time::Instant;

use crate::proxy::quota::{Places, Use, View};

use super::Account;

/// What the admin port shows of an account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) limit: Option<u32>,
    pub(crate) used: u32,
    pub(crate) view: Option<View>,
    pub(crate) jobs_limit: Option<u32>,
    pub(crate) live: u32,
    pub(crate) waiting: usize,
    pub(crate) paced: bool,
    pub(crate) drift: u32,
    pub(crate) attempts: u64,
}

impl Account {
    /// Limits for the headers of an answer to `client`: the tighter of its own and the account's.
    pub(crate) fn view(&self, client: usize) -> Option<View> {
        let now = Instant::now();
        self.book().view(client, now)
    }

    /// What a 429 without a telling header means for a create: too many jobs, if every slot is taken while requests are left.
    pub(crate) fn jobs_are_at_the_limit(&self) -> bool {
        let now = Instant::now();
        let mut book = self.book();
        let live = book.live_in_all();
        let full = book.jobs_limit.is_some_and(|limit| live >= limit);
        match book.quota.used(now) {
            // Without a rate there is nothing else to be over.
            None => book.jobs_limit.is_some(),
            Some((used, limit)) => full && used < limit,
        }
    }

    /// What decides how dear a look at a job is; `None` where the plan has no rate.
    pub(crate) fn usage(&self) -> Option<Use> {
        let now = Instant::now();
        self.book().quota.usage(now)
    }

    /// Creates that wait for their turn.
    pub(crate) fn creates_waiting(&self) -> u32 {
        u32::try_from(self.book().line.wanting_slots()).unwrap_or(u32::MAX)
    }

    /// Attempts that are free now and when used ones come free again, for a forecast; `None` where the plan has no rate.
    pub(crate) fn places(&self) -> Option<Places> {
        let now = Instant::now();
        self.book().quota.places(now)
    }

    /// What the admin port shows.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut book = self.book();
        let used = book.quota.used(now);
        Snapshot {
            limit: used.map(|(_, limit)| limit),
            used: used.map_or(0, |(used, _)| used),
            view: book.account_view(now),
            jobs_limit: book.jobs_limit,
            live: book.live,
            waiting: book.line.len(),
            paced: book.quota.paced() || book.shared.as_ref().is_some_and(|shared| shared.told.paced),
            // What other replicas sent since they were last heard of would be taken for that.
            drift: if book.shared.is_some() { 0 } else { book.quota.drift(now) },
            attempts: book.attempts,
        }
    }

    /// Waiters and live jobs of one client.
    pub(crate) fn client_snapshot(&self, client: usize) -> (usize, u32) {
        let book = self.book();
        (book.line.len_of(client), book.clients.0[client].live)
    }
}
