//! `[queue]`, `[retry]`, `[jobs]` and `[models.NAME]`: how calls are waited for, tried again and followed.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use http::StatusCode;

use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, count, unexpected};
use crate::config::{Jobs, Model, Queue, Retry, RetryCreates, units};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const STATUSES: [StatusCode; 6] = [
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

pub(super) fn queue(root: &Section<'_>) -> Queue {
    let section = root.section("queue");
    let max_waiting = section.count("max_waiting", 1000, 1..=1_000_000);
    Queue {
        max_wait: section.duration("max_wait", MINUTE * 30, Duration::ZERO..=DAY),
        max_waiting: usize::try_from(max_waiting).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN),
    }
}

pub(super) fn retry(root: &Section<'_>) -> Retry {
    let section = root.section("retry");
    let bounds = Duration::from_millis(1)..=DAY;
    let initial_backoff = section.duration("initial_backoff", SECOND, bounds.clone());
    let max_backoff = section.duration("max_backoff", (SECOND * 30).max(initial_backoff), bounds);
    if max_backoff < initial_backoff {
        let least = units::show(initial_backoff);
        section.complain("max_backoff", Complaint::new(format!("must be at least retry.initial_backoff, {least}")));
    }
    let words =
        [("documented", RetryCreates::Documented), ("safe", RetryCreates::Safe), ("never", RetryCreates::Never)];
    Retry {
        max_attempts: small(section.count("max_attempts", 4, 1..=100)).unwrap_or(NonZeroU32::MIN),
        initial_backoff,
        max_backoff,
        statuses: section.list("statuses", status).map_or_else(|| STATUSES.to_vec(), sorted),
        creates: section.choice("creates", &words).unwrap_or(RetryCreates::Documented),
        budget: section.read("budget", share).unwrap_or(0.2),
        budget_floor: u32::try_from(section.count("budget_floor", 10, 0..=1_000_000)).unwrap_or(u32::MAX),
    }
}

fn small(number: u64) -> Option<NonZeroU32> {
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}

/// Only errors can be tried again.
fn status(value: &Value) -> Result<StatusCode, Complaint> {
    let number = count(value, &(400..=599))?;
    u16::try_from(number)
        .ok()
        .and_then(|number| StatusCode::from_u16(number).ok())
        .ok_or_else(|| Complaint::new("must be an HTTP status from 400 to 599"))
}

fn sorted(mut statuses: Vec<StatusCode>) -> Vec<StatusCode> {
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

/// A share of first attempts, 0 to 1.
#[allow(clippy::cast_precision_loss, reason = "numbers beyond 1 are refused right after")]
fn share(value: &Value) -> Result<f64, Complaint> {
    let number = match value {
        Value::Real(number) => *number,
        Value::Whole(number) => *number as f64,
        other => return Err(unexpected("a number from 0 to 1", other)),
    };
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err(Complaint::new("must be from 0 to 1")) }
}

pub(super) fn jobs(root: &Section<'_>) -> Jobs {
    let section = root.section("jobs");
    Jobs {
        max_age: section.duration("max_age", MINUTE * 30, SECOND..=DAY * 7),
        uncertain: section.duration("uncertain", MINUTE * 2, Duration::ZERO..=DAY),
        result_ttl: section.duration("result_ttl", MINUTE * 10, Duration::ZERO..=DAY),
        hold: section.duration("hold", SECOND * 2, Duration::ZERO..=MINUTE),
        shared: section.flag("shared"),
    }
}

pub(super) fn models(root: &Section<'_>) -> Vec<Model> {
    let model = |(name, section): (&str, Section<'_>)| {
        if super::rules::model(name).is_err() {
            section.complain_here(Complaint::new("is no model name: use 1 to 200 visible ASCII characters"));
        }
        let poll = section.duration("poll", SECOND, Duration::from_millis(100)..=MINUTE * 60);
        Model { name: name.to_owned(), poll, price: super::credits::price(&section) }
    };
    root.named("models").into_iter().map(model).collect()
}
