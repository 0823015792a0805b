//! `sluicegate usage`: the credits of a running proxy, asked of its admin port.

use serde_json::Value;

use super::picture::{Picture, Tone, cell};
use super::watch::Look;

pub(super) const LOOK: Look = Look { target: "/api/v1/usage", member: "today", draw };

/// For people: budgets, then what was used today and in 30 days.
fn draw(report: &Value) -> Picture {
    let mut picture = Picture::default();
    let minutes = report["resets_in_secs"].as_u64().unwrap_or_default() / 60;
    let (day, offset) = (cell(&report["day"]), cell(&report["utc_offset"]));
    let renewed = format!("{day} (UTC{offset}), budgets renew in {} h {:02} min", minutes / 60, minutes % 60);
    picture.line(Tone::Plain, renewed);
    let accounts = report["accounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    if accounts.iter().any(|account| account["shared"] == true) {
        picture.line(Tone::Plain, "accounts: all replicas together; the rest: this replica alone");
    }
    if accounts.iter().any(|account| account["frozen"] == true) {
        let frozen = "what a replica has used is not known: nothing more is spent until it is back, or the day ends";
        picture.line(Tone::Plain, frozen);
    }
    rows(&mut picture, "account", &report["accounts"], &["name", "used", "limit", "remaining"]);
    let clients = report["clients"].as_array().is_some_and(|list| list.iter().any(|client| !client["limit"].is_null()));
    if clients {
        rows(&mut picture, "client", &report["clients"], &["name", "used", "limit", "remaining"]);
    }
    let columns = ["account", "client", "model", "calls", "tokens", "charged", "unknown", "reserved", "refunded"];
    for (title, list) in [("today", &report["today"]), ("last 30 days", &report["last_30_days"])] {
        if list.as_array().is_some_and(|list| !list.is_empty()) {
            picture.gap();
            picture.line(Tone::Plain, title);
            table(&mut picture, "account", list, &columns);
        }
    }
    picture
}

fn rows(picture: &mut Picture, first: &str, list: &Value, columns: &[&str]) {
    picture.gap();
    table(picture, first, list, columns);
}

/// `first` is what the first column is called.
fn table(picture: &mut Picture, first: &str, list: &Value, columns: &[&str]) {
    let heading: Vec<_> = [first].into_iter().chain(columns.iter().skip(1).copied()).collect();
    let words = ["name", "account", "client", "model"];
    let numbers: Vec<_> = (0..columns.len()).filter(|column| !words.contains(&columns[*column])).collect();
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = list.iter().map(|line| columns.iter().map(|name| cell(&line[*name])).collect()).collect();
    picture.table(&heading, &numbers, &rows);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::picture::Frame;

    #[test]
    fn what_all_replicas_use_together_is_told_from_what_one_does() {
        let account = json!({"name": "main", "used": 9, "limit": 50, "remaining": 41, "shared": true, "frozen": true});
        let report =
            json!({"resets_in_secs": 60, "accounts": [account], "clients": [], "today": [], "last_30_days": []});
        let lines = draw(&report).lines(Frame::default());
        assert_eq!(lines[1], "accounts: all replicas together; the rest: this replica alone");
        assert!(lines[2].starts_with("what a replica has used is not known"), "{lines:?}");
    }

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
main      2.5     50       47.5

today
account  client  model  calls  tokens  charged  unknown  reserved  refunded
main     web     flux       2       0        2        1       0.5         0";
        assert_eq!(draw(&report).lines(Frame::default()).join("\n"), expected);
    }
}
