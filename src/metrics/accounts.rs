//! What is counted of each account's attempts: what came of them, what was tried again, what the upstream refused.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;

use crate::proxy::queue::Class;
use crate::proxy::quota::Refused;
use crate::proxy::retry::Outcome;

/// How an attempt can end.
const OUTCOMES: [&str; 9] = ["2xx", "3xx", "401", "408", "429", "4xx", "5xx", "silent", "unsent"];
/// Nothing of these reached the upstream.
const UNSENT: usize = 8;

/// The counters of one account.
pub(crate) struct Account {
    name: String,
    /// By class and outcome.
    attempts: [[Counter; OUTCOMES.len()]; 4],
    /// By outcome of the attempt before.
    retries: [Counter; OUTCOMES.len()],
    refused_window: Counter,
    refused_jobs: Counter,
    last_refused: Family<[(&'static str, String); 1], Gauge>,
}

/// What an account has counted so far, for people.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Totals {
    /// Attempts that were sent, by class.
    pub(crate) sent: BTreeMap<&'static str, u64>,
    /// All attempts, by outcome; none that is zero.
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
    /// Attempts after the first, by the outcome before; none that is zero.
    pub(crate) retries: BTreeMap<&'static str, u64>,
    /// 429 answers of the upstream: too many requests.
    pub(crate) refused_window: u64,
    /// The same: too many jobs.
    pub(crate) refused_jobs: u64,
    /// Seconds since 1970 of the last of them.
    pub(crate) last_refused_at: Option<i64>,
}

/// What is counted, for all accounts.
#[derive(Default)]
pub(super) struct Families {
    attempts: Family<[(&'static str, String); 3], Counter>,
    retries: Family<[(&'static str, String); 2], Counter>,
    refused: Family<[(&'static str, String); 2], Counter>,
    last_refused: Family<[(&'static str, String); 1], Gauge>,
}

impl Families {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self::default();
        let Self { attempts, retries, refused, last_refused } = &families;
        registry.register("attempts", "Requests sent upstream, by outcome", attempts.clone());
        registry.register("retries", "Attempts after the first, by the outcome before", retries.clone());
        registry.register("upstream_429", "429 answers of the upstream, by what they meant", refused.clone());
        let help = "When the upstream last answered 429, in Unix time";
        registry.register_with_unit("upstream_429_last_timestamp", help, Unit::Seconds, last_refused.clone());
        families
    }

    /// Counts for the account of this name; two of one name count together.
    pub(super) fn of(&self, account: &str) -> Account {
        let attempt = |class: Class, outcome: &str| {
            let labels = [("account", account.into()), ("class", class.name().into()), ("outcome", outcome.into())];
            self.attempts.get_or_create_owned(&labels)
        };
        let reason = |family: &Family<[(&'static str, String); 2], Counter>, reason: &str| {
            family.get_or_create_owned(&[("account", account.into()), ("reason", reason.into())])
        };
        Account {
            name: account.to_owned(),
            attempts: Class::ALL.map(|class| OUTCOMES.map(|outcome| attempt(class, outcome))),
            retries: OUTCOMES.map(|outcome| reason(&self.retries, outcome)),
            refused_window: reason(&self.refused, "window"),
            refused_jobs: reason(&self.refused, "jobs"),
            last_refused: self.last_refused.clone(),
        }
    }
}

impl Account {
    /// An attempt has ended.
    pub(crate) fn attempt(&self, class: Class, outcome: Outcome) {
        self.attempts[class as usize][index(outcome)].inc();
    }

    /// Another attempt follows this outcome.
    pub(crate) fn retry(&self, outcome: Outcome) {
        self.retries[index(outcome)].inc();
    }

    /// The upstream answered 429, at this time.
    pub(crate) fn refused(&self, refused: Refused, wall: SystemTime) {
        match refused {
            Refused::Window => self.refused_window.inc(),
            Refused::Jobs => self.refused_jobs.inc(),
        };
        let at = wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let last = self.last_refused.get_or_create_owned(&[("account", self.name.clone())]);
        last.set(i64::try_from(at).unwrap_or(i64::MAX));
    }

    /// What it has counted so far.
    pub(crate) fn totals(&self) -> Totals {
        let some = |counts: &[u64; OUTCOMES.len()]| {
            OUTCOMES.into_iter().zip(*counts).filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>()
        };
        let attempts = self.attempts.each_ref().map(|class| class.each_ref().map(Counter::get));
        let sent = |counts: &[u64; OUTCOMES.len()]| counts[..UNSENT].iter().sum::<u64>();
        let mut outcomes = [0; OUTCOMES.len()];
        for counts in &attempts {
            outcomes.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
        }
        Totals {
            sent: Class::ALL.into_iter().zip(&attempts).map(|(class, counts)| (class.name(), sent(counts))).collect(),
            outcomes: some(&outcomes),
            retries: some(&self.retries.each_ref().map(Counter::get)),
            refused_window: self.refused_window.get(),
            refused_jobs: self.refused_jobs.get(),
            last_refused_at: self.last_refused.get(&[("account", self.name.clone())]).map(|at| at.get()),
        }
    }
}

/// Into `OUTCOMES`.
fn index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Unsent => UNSENT,
        Outcome::Silent => 7,
        Outcome::Answer(status) => match status.as_u16() {
            401 => 2,
            408 => 3,
            429 => 4,
            500.. => 6,
            400.. => 5,
            300.. => 1,
            _ => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn totals_say_what_was_sent_what_came_of_it_and_when_it_was_refused() {
        let families = Families::register(&mut Registry::default());
        let (account, other) = (families.of("a"), families.of("b"));
        for status in [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY]
        {
            account.attempt(Class::Poll, Outcome::Answer(status));
        }
        account.attempt(Class::Create, Outcome::Silent);
        account.attempt(Class::Create, Outcome::Unsent);
        account.retry(Outcome::Unsent);
        account.refused(Refused::Jobs, UNIX_EPOCH + std::time::Duration::from_millis(1_999));
        let totals = account.totals();
        assert_eq!(totals.sent, BTreeMap::from([("cancel", 0), ("poll", 4), ("create", 1), ("other", 0)]));
        let each = ["2xx", "401", "429", "5xx", "silent", "unsent"].map(|outcome| (outcome, 1));
        assert_eq!(totals.outcomes, BTreeMap::from(each));
        assert_eq!(totals.retries, BTreeMap::from([("unsent", 1)]));
        assert_eq!((totals.refused_window, totals.refused_jobs, totals.last_refused_at), (0, 1, Some(1)));
        assert_eq!(other.totals().last_refused_at, None);
    }
}
