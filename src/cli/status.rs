//! `sluicegate status`: what a running proxy holds at this moment.

use serde_json::Value;

use super::picture::{Picture, Tone, cell, span};
use super::watch::Look;

pub(super) const LOOK: Look = Look { target: "/api/v1/status", member: "accounts", draw };

const BAR: usize = 10;

fn draw(status: &Value) -> Picture {
    let mut picture = Picture::default();
    let ready = if status["ready"] == true { "ready" } else { "draining" };
    let at = status["listen"].as_array().and_then(|listen| listen.first()).map(cell).unwrap_or_default();
    let (version, up, in_flight) = (cell(&status["version"]), span(&status["uptime_secs"]), cell(&status["in_flight"]));
    picture.line(Tone::Plain, format!("sluicegate {version} on {at}: {ready}, up {up}, {in_flight} in flight"));
    picture.gap();
    let accounts = list(&status["accounts"]);
    let heading =
        ["account", "plan", "window", "attempts", "free", "next in", "jobs", "waiting", "credits", "retries", "429s"];
    let rows: Vec<_> = accounts.iter().map(|account| account_row(account, status)).collect();
    picture.table(&heading, &[3, 4, 5, 6, 7, 8, 9, 10], &rows);
    picture.gap();
    let clients = list(&status["clients"])
        .iter()
        .map(|client| ["name", "account", "waiting", "jobs_live"].map(|name| cell(&client[name])).to_vec());
    picture.table(&["client", "account", "waiting", "live jobs"], &[2, 3], &clients.collect::<Vec<_>>());
    let (notes, counts) = (notes(status), counts(status));
    if !notes.is_empty() || !counts.is_empty() {
        picture.gap();
    }
    for (tone, lines) in [(Tone::Warning, notes), (Tone::Plain, counts)] {
        for line in lines {
            picture.line(tone, line);
        }
    }
    picture
}

fn account_row(account: &Value, status: &Value) -> Vec<String> {
    let (requests, counts) = (&account["requests"], &account["counts"]);
    let budgets = list(&status["credits"]["accounts"]);
    let budget = budgets.iter().find(|budget| budget["name"] == account["name"]).unwrap_or(&Value::Null);
    let (attempts, bar, free, next) = if requests.is_null() {
        (cell(&account["attempts"]), "no limit".to_owned(), "-".to_owned(), "-".to_owned())
    } else {
        let idle = requests["remaining"] == requests["limit"];
        (
            of(&requests["used"], &requests["limit"]),
            bar(&requests["used"], &requests["limit"]),
            cell(&requests["remaining"]),
            if idle { "-".to_owned() } else { span(&requests["next_in_secs"]) },
        )
    };
    let refused = number(&counts["refused_window"]) + number(&counts["refused_jobs"]);
    vec![
        cell(&account["name"]),
        cell(&account["plan"]),
        bar,
        attempts,
        free,
        next,
        of(&account["jobs"]["live"], &account["jobs"]["limit"]),
        cell(&account["waiting"]),
        of(&budget["used"], &budget["limit"]),
        sum(&counts["retries"]).to_string(),
        refused.to_string(),
    ]
}

/// What somebody should look into.
fn notes(status: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    let upstream = &status["upstream"];
    if upstream["circuit"] != "closed" {
        notes.push(format!("the upstream cannot be reached: {} waiting for a connection", upstream["waiting"]));
    }
    for account in list(&status["accounts"]) {
        let name = cell(&account["name"]);
        if account["paced"] == true {
            notes.push(format!("{name}: attempts are evenly spaced, by setting or since a 429"));
        }
        if number(&account["drift"]) > 0 {
            notes.push(format!(
                "{name}: somebody else spends the same key, {} attempts in the window",
                account["drift"]
            ));
        }
        if !account["same_key_as"].is_null() {
            notes.push(format!("{name}: the same key as {}, and one quota", cell(&account["same_key_as"])));
        }
    }
    match number(&status["jobs_uncertain"]) {
        0 => {}
        1 => notes.push("1 slot is held by a create of unknown outcome".to_owned()),
        held => notes.push(format!("{held} slots are held by creates of unknown outcome")),
    }
    notes
}

/// What has been counted, where anything has.
fn counts(status: &Value) -> Vec<String> {
    let counted = [("jobs ended", &status["jobs_ended"]), ("refused here", &status["rejections"])];
    let line = |(title, counts): (&str, &Value)| {
        let counts = counts.as_object().filter(|counts| !counts.is_empty())?;
        let words: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        Some(format!("{title}: {}", words.join(", ")))
    };
    counted.into_iter().filter_map(line).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().into_iter().flatten().map(|(_, count)| number(count)).sum()
}

/// `3/5`; `3` where there is no limit.
fn of(used: &Value, limit: &Value) -> String {
    if limit.is_null() { cell(used) } else { format!("{}/{}", cell(used), cell(limit)) }
}

fn bar(used: &Value, limit: &Value) -> String {
    let filled = (usize::try_from(number(used)).unwrap_or(usize::MAX).saturating_mul(BAR))
        .checked_div(usize::try_from(number(limit)).unwrap_or(usize::MAX))
        .unwrap_or(BAR)
        .min(BAR);
    // The first of many shows too.
    let filled = if number(used) > 0 { filled.max(1) } else { filled };
    format!("[{}{}]", "#".repeat(filled), ".".repeat(BAR - filled))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::picture::Frame;

    #[test]
    fn accounts_clients_and_what_is_strange_are_shown() {
        let account = json!({"name": "main", "plan": "free", "same_key_as": null, "attempts": 40,
            "requests": {"limit": 60, "window_secs": 60.0, "used": 42, "remaining": 18, "next_in_secs": 3.25},
            "jobs": {"live": 5, "limit": 5}, "waiting": 7, "paced": true, "drift": 2,
            "counts": {"retries": {"5xx": 2, "429": 1}, "refused_window": 1, "refused_jobs": 0}});
        let open = json!({"name": "open", "plan": "open", "same_key_as": null, "attempts": 3, "requests": null,
            "jobs": {"live": 0, "limit": null}, "waiting": 0, "paced": false, "drift": 0,
            "counts": {"retries": {}, "refused_window": 0, "refused_jobs": 0}});
        let status = json!({"version": "0.1.0", "ready": true, "uptime_secs": 75.0, "in_flight": 8, "listen": ["127.0.0.1:8787"],
            "jobs_uncertain": 0, "jobs_ended": {"succeeded": 3}, "rejections": {}, "upstream": {"circuit": "closed", "waiting": 0},
            "accounts": [account, open], "clients": [{"name": "local", "account": "main", "waiting": 7, "jobs_live": 5}],
            "credits": {"accounts": [{"name": "main", "used": 12.5, "limit": 50}]}});
        let expected = "\
sluicegate 0.1.0 on 127.0.0.1:8787: ready, up 1 min 15 s, 8 in flight

account  plan  window        attempts  free  next in  jobs  waiting  credits  retries  429s
main     free  [#######...]     42/60    18    3.3 s   5/5        7  12.5/50        3     1
open     open  no limit             3     -        -     0        0        -        0     0

client  account  waiting  live jobs
local   main           7          5

main: attempts are evenly spaced, by setting or since a 429
main: somebody else spends the same key, 2 attempts in the window
jobs ended: 3 succeeded";
        assert_eq!(draw(&status).lines(Frame::default()).join("\n"), expected);
    }

    #[test]
    fn held_slots_are_counted_in_words() {
        let told = |held: u32| notes(&json!({"upstream": {"circuit": "closed"}, "jobs_uncertain": held}));
        assert_eq!(told(0), [""; 0]);
        assert_eq!(told(1), ["1 slot is held by a create of unknown outcome"]);
        assert_eq!(told(2), ["2 slots are held by creates of unknown outcome"]);
    }

    #[test]
    fn a_bar_tells_none_from_few_and_never_breaks() {
        for (used, limit, filled) in [(0, 60, 0), (1, 60, 1), (30, 60, 5), (60, 60, 10), (70, 60, 10), (0, 0, 10)] {
            assert_eq!(bar(&json!(used), &json!(limit)).matches('#').count(), filled, "{used} of {limit}");
        }
    }

    #[test]
    fn an_answer_of_another_shape_is_no_panic() {
        for status in [json!({"accounts": 1}), json!({"accounts": [1], "clients": "a", "listen": []})] {
            assert!(!draw(&status).lines(Frame::default()).is_empty());
        }
    }
}
