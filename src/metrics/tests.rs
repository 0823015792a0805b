//! docs/metrics.md and what `/metrics` exposes are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::UNIX_EPOCH;

use crate::config;
use crate::credits::amount::Amount;
use crate::proxy::quota::Refused;
use crate::proxy::rejection::Unreachable;
use crate::state::redis::Terms;

use super::*;

const PAGE: &str = include_str!("../../docs/metrics.md");

/// A row of the table, or what the exposition says: type, labels, unit, meaning.
type Row = (String, BTreeSet<String>, String, String);

fn documented() -> BTreeMap<String, Row> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `sluicegate_"));
    let mut table = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, form, labels, unit, meaning] = cells[..] else { panic!("{row}") };
        let labels = labels.split([',', ' ']).filter(|word| !word.is_empty());
        let labels = labels.map(|label| label.trim_matches('`').to_owned()).collect();
        let row = (form.to_owned(), labels, unit.to_owned(), meaning.to_owned());
        assert!(table.insert(name.trim_matches('`').to_owned(), row).is_none(), "{name} stands twice");
    }
    table
}

fn exposed(text: &str) -> BTreeMap<String, Row> {
    let said = |what: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(&format!("# {what} "))?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let (types, units, helps) = (said("TYPE"), said("UNIT"), said("HELP"));
    let row = |(family, form): (&String, &String)| {
        let name = if form == "counter" { format!("{family}_total") } else { family.clone() };
        let first = if form == "histogram" { format!("{name}_count") } else { name.clone() };
        let sample =
            text.lines().find(|line| line.strip_prefix(&first).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let sample = sample.unwrap_or_else(|| panic!("{name} has no sample"));
        let labels = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
        let labels = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
        // The library ends each help with a full stop; the table is a table.
        let help = helps[family].trim_end_matches('.').to_owned();
        (name, (form.clone(), labels.collect(), units.get(family).cloned().unwrap_or_default(), help))
    };
    types.iter().map(row).collect()
}

/// Everything has been counted once.
fn provoked() -> String {
    let metrics = Metrics::new();
    metrics.finished(None, StatusCode::FORBIDDEN, Some("forbidden_origin"), Duration::ZERO, Duration::ZERO);
    metrics.account("main").refused(Refused::Window, UNIX_EPOCH);
    metrics.job_ended(End::Succeeded);
    metrics.credits.unpriced("main");
    metrics.credits.set("main", Amount::default(), Some(Amount::default()));
    metrics.circuit.failed(Unreachable::Timeout);
    metrics.shared.called(true);
    let (one, second) = (NonZeroU32::MIN, Duration::from_secs(1));
    let limit = NonZeroU32::new(20_000).expect("not zero");
    let plan = config::Plan {
        name: "small".into(),
        requests: Some(config::Requests { limit, window: second, jitter: second }),
        concurrent_jobs: Some(one),
        pacing: config::Pacing::Auto,
        llm: config::Llm::Shared,
        credits_per_day: Some(Amount::default()),
    };
    let account = queue::Account::new("main".into(), &plan, &[Some((None, 1))], 1, None, Instant::now());
    let jobs = config::Jobs { max_age: second, uncertain: second, result_ttl: second, hold: second, shared: false };
    let terms = Terms::new(&plan, 1, &jobs, 0);
    account.share(terms, "replica".into(), vec!["local".into()], BTreeMap::new());
    let clients = vec![ClientLevel { name: "local", waiting: 0, jobs_live: 0 }];
    metrics.render(
        &[("main".into(), account)],
        &Levels { clients, jobs_uncertain: 0, remembered: (0, 0), held_bytes: 0, ready: true },
    )
}

#[test]
fn the_table_says_what_is_exposed() {
    let (documented, exposed) = (documented(), exposed(&provoked()));
    assert!(exposed.len() > 25, "{exposed:#?}");
    for (name, row) in &exposed {
        assert_eq!(documented.get(name), Some(row), "{name}: docs/metrics.md on the left");
    }
    let stale: Vec<_> = documented.keys().filter(|name| !exposed.contains_key(*name)).collect();
    assert!(stale.is_empty(), "docs/metrics.md lists what is not exposed: {stale:?}");
}
