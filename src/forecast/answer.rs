//! `/api/v1/forecast`: reads the question, gathers what a forecast follows from, and tells it.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::credits::Quote;
use crate::credits::amount::Amount;
use crate::proxy::App;
use crate::proxy::identify::percent_decode;
use crate::proxy::jobs::expect::RunTime;

use super::{Bottleneck, Budget, Given};

/// The most jobs of one forecast.
const MOST_JOBS: u32 = 10_000;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    model: String,
    jobs: u32,
    account: Option<String>,
}

impl Question {
    /// From `model=M&n=N[&account=A]`; the error says what is wrong.
    fn read(query: &str) -> Result<Self, String> {
        let (mut model, mut jobs, mut account) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode(value).into_owned();
            match name {
                "model" => model = Some(value).filter(|model| !model.is_empty()),
                "n" => jobs = Some(value),
                "account" => account = Some(value),
                other => return Err(format!("{other} is not known: model, n, account")),
            }
        }
        let model = model.ok_or("model is missing: ?model=NAME&n=JOBS")?;
        let jobs = jobs.ok_or("n is missing: ?model=NAME&n=JOBS")?;
        let jobs = jobs.parse().ok().filter(|jobs| (1..=MOST_JOBS).contains(jobs));
        let jobs = jobs.ok_or_else(|| format!("n must be a whole number from 1 to {MOST_JOBS}"))?;
        Ok(Self { model, jobs, account })
    }
}

/// The answer to this query, or what is wrong with it.
pub(crate) fn answer(app: &App, query: &str) -> Result<Value, String> {
    let Question { model, jobs, account } = Question::read(query)?;
    let account = match account {
        // That of callers who do not say who they are.
        None => app.account_of.get(app.clients.first()).copied().unwrap_or_default(),
        Some(name) => {
            let found = app.accounts.iter().position(|account| account.name == name && !account.gone);
            found.ok_or_else(|| format!("there is no account {name:?}"))?
        }
    };
    let (learned, quote) = (app.jobs.run_time(&model), app.credits.quote(account, &model));
    let guess = || app.jobs.configured_poll(&model).map(|poll| RunTime { mean: poll, p90: poll });
    let run_time = learned.or_else(guess);
    let given = run_time.map(|run_time| gather(app, account, jobs, run_time.mean, quote));
    let done = given.as_ref().and_then(super::done);
    let wall = app.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = |from_now: Duration| (wall + from_now).as_secs_f64().ceil();
    Ok(json!({
        "model": model,
        "n": jobs,
        "account": app.accounts[account].name,
        "known": learned.is_some(),
        "run_time_secs": run_time.map(|times| json!({"mean": secs(times.mean), "p90": secs(times.p90)})),
        "first_done_in_secs": done.map(|done| secs(done.first)),
        "done_in_secs": done.map(|done| secs(done.last)),
        "done_at": done.map(|done| whole(at(done.last))),
        "attempts": super::attempts(jobs),
        "credits": quote.map(|quote| credits(quote, jobs, whole(at(quote.renews_in)))),
        "bottleneck": given.as_ref().map(super::bottleneck) as Option<Bottleneck>,
    }))
}

fn gather(app: &App, account: usize, jobs: u32, run_time: Duration, quote: Option<Quote>) -> Given {
    let queue = &app.accounts[account].queue;
    let now = queue.snapshot();
    let mut live = app.jobs.expected_ends(account);
    // Creates under way and those without a known outcome hold slots too.
    let missing = usize::try_from(now.live).unwrap_or(usize::MAX).saturating_sub(live.len());
    live.extend(std::iter::repeat_n(run_time, missing));
    Given {
        jobs,
        run_time,
        places: queue.places(),
        slots: now.jobs_limit.map(|limit| i64::from(limit) - i64::from(now.live)),
        live,
        ahead: queue.creates_waiting(),
        budget: quote.and_then(budget),
    }
}

fn budget(quote: Quote) -> Option<Budget> {
    let holds = |amount: Amount| amount.micro().checked_div(quote.each.micro());
    Some(Budget { today: holds(quote.left?)?, per_day: holds(quote.limit?)?, renews_in: quote.renews_in })
}

fn credits(quote: Quote, jobs: u32, reset_at: u64) -> Value {
    let total = Amount::from_micro(quote.each.micro().saturating_mul(jobs.into()));
    json!({
        "each": quote.each.json(),
        "total": total.json(),
        "left": quote.left.map(Amount::json),
        "enough": quote.left.is_none_or(|left| left >= total),
        "reset_at": quote.left.map(|_| reset_at),
    })
}

/// Seconds, to the millisecond.
fn secs(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970, rounded up before")]
fn whole(secs: f64) -> u64 {
    secs as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_or_refused_with_a_reason() {
        let read = Question::read("n=50&model=black-forest-labs%2Fflux&account=prod").expect("a question");
        assert_eq!((read.model.as_str(), read.jobs), ("black-forest-labs/flux", 50));
        assert_eq!(read.account.as_deref(), Some("prod"));
        for (query, reason) in [
            ("", "model is missing"),
            ("model=&n=1", "model is missing"),
            ("model=a", "n is missing"),
            ("model=a&n=0", "from 1 to 10000"),
            ("model=a&n=10001", "from 1 to 10000"),
            ("model=a&n=-1", "from 1 to 10000"),
            ("model=a&n=two", "from 1 to 10000"),
            ("model=a&n=1&count=2", "count is not known"),
        ] {
            let refused = Question::read(query).expect_err(query);
            assert!(refused.contains(reason), "{query}: {refused}");
        }
    }
}
