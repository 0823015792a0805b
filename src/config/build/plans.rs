//! `[plans.NAME]`.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::config::reader::{Complaint, Section, count, duration};
use crate::config::{Llm, Pacing, Plan, Requests};

/// Beyond any plan that is sold.
const LIMIT: RangeInclusive<u64> = 1..=1_000_000_000;
const WINDOW: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

/// All plans of the file, used or not. One with problems is in the list too, so that its name is known.
pub(super) fn read(root: &Section<'_>) -> Vec<Arc<Plan>> {
    root.named("plans")
        .into_iter()
        .map(|(name, section)| {
            super::accounts::check_name(name, &section);
            Arc::new(plan(name, &section))
        })
        .collect()
}

fn plan(name: &str, section: &Section<'_>) -> Plan {
    let pacing = [("auto", Pacing::Auto), ("paced", Pacing::Paced), ("burst", Pacing::Burst)];
    let llm = [("shared", Llm::Shared), ("unmetered", Llm::Unmetered)];
    Plan {
        name: name.to_owned(),
        requests: requests(section),
        concurrent_jobs: section.read("concurrent_jobs", |value| count(value, &LIMIT)).and_then(nonzero),
        pacing: section.choice("pacing", &pacing).unwrap_or(Pacing::Auto),
        llm: section.choice("llm", &llm).unwrap_or(Llm::Shared),
        credits_per_day: section.read("credits_per_day", super::credits::budget),
    }
}

/// Either `requests_per_minute`, or `requests` with `per`.
fn requests(section: &Section<'_>) -> Option<Requests> {
    let per_minute = section.read("requests_per_minute", |value| count(value, &LIMIT));
    let requests = section.read("requests", |value| count(value, &LIMIT));
    let per = section.read("per", |value| duration(value, &WINDOW));
    let jitter = section.read("jitter", |value| duration(value, &(Duration::ZERO..=MINUTE * 60)));
    for key in ["requests", "per"] {
        if section.has("requests_per_minute") && section.has(key) {
            let complaint = Complaint::new("stands beside requests_per_minute, which says the same");
            section.complain(key, complaint.help("keep requests_per_minute, or requests and per"));
        }
    }
    let limited = section.has("requests_per_minute") || section.has("requests");
    if section.has("requests") && !section.has("per") && !section.has("requests_per_minute") {
        section.complain(
            "requests",
            Complaint::new("needs per, the window it counts in").help("for example per = \"1s\""),
        );
    }
    for key in ["per", "jitter"] {
        if section.has(key) && !limited {
            section.complain(
                key,
                Complaint::new("needs a number of requests").help("add requests_per_minute or requests"),
            );
        }
    }
    let (limit, window) = per_minute.map(|limit| (limit, MINUTE)).or_else(|| Some((requests?, per?)))?;
    Some(Requests { limit: nonzero(limit)?, window, jitter: jitter.unwrap_or_else(|| default_jitter(window)) })
}

/// max(W/40, 100 ms): 1.5 s for a minute.
fn default_jitter(window: Duration) -> Duration {
    (window / 40).max(Duration::from_millis(100))
}

fn nonzero(number: u64) -> Option<NonZeroU32> {
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}
