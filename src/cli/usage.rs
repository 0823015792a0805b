//! `sluicegate usage`: the credits of a running proxy, asked of its admin port.

use std::fmt::Write as _;

use clap::Args;
use http::{StatusCode, Uri};
use serde_json::Value;

use super::{ConfigFlags, Failure, ask, say};

const TARGET: &str = "/api/v1/usage";

/// Arguments of `usage`.
#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// Print what the admin port answers
    #[arg(long)]
    json: bool,
    /// Ask this URL instead of the configured admin port
    #[arg(long, value_name = "URL")]
    url: Option<Uri>,
}

pub(super) async fn usage(args: UsageArgs, above: ConfigFlags) -> Result<u8, Failure> {
    let (place, answer) = ask::ask(args.url, args.flags.or(above), TARGET).await?;
    let report = serde_json::from_slice::<Value>(answer.body()).ok();
    let report = report.filter(|report| answer.status() == StatusCode::OK && report["today"].is_array());
    let Some(report) = report else {
        return Err(Failure::failed(format_args!("{place} answers {} and no usage", answer.status())));
    };
    say(if args.json { report.to_string() } else { table(&report).trim_end().to_owned() });
    Ok(0)
}

/// For people: budgets, then what was used today and in 30 days.
fn table(report: &Value) -> String {
    let minutes = report["resets_in_secs"].as_u64().unwrap_or_default() / 60;
    let day = report["day"].as_str().unwrap_or_default();
    let offset = report["utc_offset"].as_str().unwrap_or_default();
    let mut text = format!("{day} (UTC{offset}), budgets renew in {} h {:02} min\n\n", minutes / 60, minutes % 60);
    rows(&mut text, "account", &report["accounts"], &["name", "used", "limit", "remaining"]);
    let clients = report["clients"].as_array().is_some_and(|list| list.iter().any(|client| !client["limit"].is_null()));
    if clients {
        rows(&mut text, "client", &report["clients"], &["name", "used", "limit", "remaining"]);
    }
    let columns = ["account", "client", "model", "calls", "tokens", "charged", "unknown", "reserved", "refunded"];
    for (title, list) in [("today", &report["today"]), ("last 30 days", &report["last_30_days"])] {
        if list.as_array().is_some_and(|list| !list.is_empty()) {
            let _ = writeln!(text, "{title}");
            rows(&mut text, "account", list, &columns);
        }
    }
    text
}

/// A heading and a line each, in columns. `first` is what the first column is called.
fn rows(text: &mut String, first: &str, list: &Value, columns: &[&str]) {
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let heading = columns.iter().enumerate().map(|(at, name)| if at == 0 { first } else { name }.to_owned()).collect();
    let mut lines: Vec<Vec<String>> = vec![heading];
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    lines.extend(list.iter().map(|line| columns.iter().map(|name| cell(&line[*name])).collect()));
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn usage_is_shown_in_columns() {
        let line = json!({"account": "main", "client": "web", "model": "flux", "calls": 2, "tokens": 0,
            "charged": 2, "unknown": 1, "reserved": 0.5, "refunded": 0});
        let report = json!({"day": "2026-11-24", "utc_offset": "+00:00", "resets_in_secs": 7_500,
            "accounts": [{"name": "main", "used": 2.5, "limit": 50, "remaining": 47.5}],
            "clients": [{"name": "web", "used": 2.5, "limit": null, "remaining": null}],
            "today": [line], "last_30_days": []});
        let expected = "\
2026-11-24 (UTC+00:00), budgets renew in 2 h 05 min

account  used  limit  remaining
main     2.5   50     47.5

today
account  client  model  calls  tokens  charged  unknown  reserved  refunded
main     web     flux   2      0       2        1        0.5       0
";
        assert_eq!(table(&report).trim_end(), expected.trim_end());
    }
}
