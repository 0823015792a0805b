//! What was used, for `/api/v1/usage` and the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{Span, civil};
use serde_json::{Map, Value, json};

use crate::ledger::moment::Moment;

use super::amount::Amount;
use super::book::{DAYS_KEPT, Key, Scope, Tally};
use super::{Credits, Purse, State};

impl Credits {
    /// Budgets, today and the last 30 days, by account, client and model.
    pub(crate) fn report(&self) -> Value {
        let now = self.ledger.now();
        let state = self.today();
        let today = state.calendar.day;
        let mut month = BTreeMap::<&Key, Tally>::new();
        for ((_, key), tally) in state.book.totals.range((today + 1 - DAYS_KEPT, least())..) {
            month.entry(key).or_default().add(*tally);
        }
        let of_today = state.book.totals.range((today, least())..).map(|((_, key), tally)| (key, *tally));
        let mut report = self.budgets_of(&state, &now);
        report["today"] = of_today.map(line).collect();
        report["last_30_days"] = month.into_iter().map(line).collect();
        report
    }

    /// The day and its budgets alone.
    pub(crate) fn budgets(&self) -> Value {
        let now = self.ledger.now();
        self.budgets_of(&self.today(), &now)
    }

    fn budgets_of(&self, state: &State, now: &Moment) -> Value {
        let terms = self.terms.load();
        let accounts = terms.accounts.iter().enumerate().filter(|(index, Purse { name, first, .. })| {
            // Accounts with one key share one budget.
            name == first || !terms.accounts[..*index].iter().any(|other| other.first == *first)
        });
        let accounts = accounts.map(|(_, purse)| {
            let mut line = budget(&purse.name, purse.budget, purse.used(&state.book));
            if let Some(funds) = purse.shared.as_ref().and_then(|queue| queue.funds()) {
                // Of all replicas; what the lines below say is this one's own.
                line["shared"] = true.into();
                line["used_here"] = funds.own.json();
                line["frozen"] = funds.frozen.into();
            }
            line
        });
        let clients = terms.clients.iter();
        let clients =
            clients.map(|(name, limit)| budget(name, *limit, state.book.used(&Scope::Client(Arc::clone(name)))));
        json!({
            "day": date(state.calendar.day),
            "utc_offset": offset(self.utc_offset),
            "resets_in_secs": state.calendar.ends_in(now).as_secs(),
            "accounts": accounts.collect::<Vec<_>>(),
            "clients": clients.collect::<Vec<_>>(),
        })
    }

    /// Sets the gauges to what is now.
    pub(crate) fn set_gauges(&self) {
        let state = self.today();
        let terms = self.terms.load();
        for purse in &terms.accounts {
            self.metrics.set(&purse.name, purse.used(&state.book), purse.budget);
        }
    }
}

/// A budget, and what has been used of it.
fn budget(name: &str, limit: Option<Amount>, used: Amount) -> Value {
    json!({
        "name": name,
        "used": used.json(),
        "limit": limit.map(Amount::json),
        "remaining": limit.map(|limit| limit.less(used).json()),
    })
}

fn least() -> Key {
    Key { account: "".into(), client: "".into(), model: "".into() }
}

fn line((key, tally): (&Key, Tally)) -> Value {
    let amount = |micro: i64| Amount::from_micro(u64::try_from(micro).unwrap_or_default()).json();
    let mut line = Map::new();
    line.insert("account".into(), key.account.as_ref().into());
    line.insert("client".into(), key.client.as_ref().into());
    line.insert("model".into(), key.model.as_ref().into());
    line.insert("charged".into(), amount(tally.charged));
    line.insert("unknown".into(), amount(tally.unknown));
    line.insert("reserved".into(), amount(tally.reserved));
    line.insert("refunded".into(), amount(tally.refunded));
    line.insert("calls".into(), tally.calls.into());
    line.insert("tokens".into(), tally.tokens.into());
    line.into()
}

/// `2026-11-24`.
fn date(day: i64) -> String {
    let days = Span::new().try_days(day);
    let date = days.and_then(|days| civil::date(1970, 1, 1).checked_add(days));
    date.map_or_else(|_| format!("day {day}"), |date| date.to_string())
}

/// `+05:30`.
fn offset(secs: i32) -> String {
    let minutes = secs.abs() / 60;
    format!("{}{:02}:{:02}", if secs < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_offsets_are_shown_as_people_write_them() {
        assert_eq!((date(0), date(20_000)), ("1970-01-01".into(), "2024-10-04".into()));
        assert_eq!((offset(0), offset(-19_800)), ("+00:00".into(), "-05:30".into()));
    }
}
