//! `sluicegate forecast`: when so many jobs would be done, asked of a running proxy's admin port.

use std::fmt::Write as _;

use clap::Args;
use http::{StatusCode, Uri};
use serde_json::Value;

use super::picture::span;
use super::{ConfigFlags, Failure, ask, say};

/// Arguments of `forecast`.
#[derive(Debug, Args)]
pub(super) struct ForecastArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// The model, as creates name it
    #[arg(long, value_name = "NAME")]
    model: String,
    /// How many jobs
    #[arg(short = 'n', long = "jobs", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: u32,
    /// Print what the admin port answers
    #[arg(long)]
    json: bool,
    /// Ask this URL instead of the configured admin port
    #[arg(long, value_name = "URL")]
    url: Option<Uri>,
}

pub(super) async fn forecast(args: ForecastArgs, above: ConfigFlags) -> Result<u8, Failure> {
    let flags = args.flags.or(above);
    let mut target = format!("/api/v1/forecast?model={}&n={}", encoded(&args.model), args.jobs);
    if let Some(account) = &flags.account {
        let _ = write!(target, "&account={}", encoded(account));
    }
    let (place, answer) = ask::ask(args.url, flags, &target).await?;
    if answer.status() == StatusCode::BAD_REQUEST {
        return Err(Failure::failed(String::from_utf8_lossy(answer.body()).trim()));
    }
    let forecast = serde_json::from_slice::<Value>(answer.body()).ok();
    let forecast = forecast.filter(|forecast| answer.status() == StatusCode::OK && forecast["known"].is_boolean());
    let Some(forecast) = forecast else {
        return Err(Failure::failed(format_args!("{place} answers {} and no forecast", answer.status())));
    };
    say(if args.json { forecast.to_string() } else { lines(&forecast).trim_end().to_owned() });
    Ok(0)
}

/// What cannot stand in a query as it is, percent-encoded.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// For people.
fn lines(forecast: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let [model, account] = [&forecast["model"], &forecast["account"]].map(word);
    let mut text = format!("{} of {model} on {account}, from now on\n\n", count(&forecast["n"], "job"));
    let mut line = |name: &str, words: String| {
        let _ = writeln!(text, "{name:<12}{words}");
    };
    let times = &forecast["run_time_secs"];
    line("done", done(forecast));
    line(
        "run time",
        match (times.is_null(), forecast["known"] == true) {
            (true, _) => "not known: no job of this model was seen to end, and models.NAME.poll is not set".to_owned(),
            (_, true) => format!("{} on average, nine of ten within {}", span(&times["mean"]), span(&times["p90"])),
            (_, false) => format!("nothing learned yet: {} assumed, by models.NAME.poll", span(&times["mean"])),
        },
    );
    line("attempts", format!("{}, as a job takes 2.1", forecast["attempts"]));
    let credits = &forecast["credits"];
    if !credits.is_null() {
        let left = if credits["left"].is_null() {
            "no budget".to_owned()
        } else {
            let more = if credits["enough"] == true { "" } else { ", not enough for all" };
            format!("{} left until {}{more}", credits["left"], moment(&credits["reset_at"]))
        };
        line("credits", format!("{}, {} each; {left}", credits["total"], credits["each"]));
    }
    let bottleneck = match forecast["bottleneck"].as_str() {
        Some("requests") => "requests: with more of them a minute it would be done sooner",
        Some("jobs") => "jobs: with more of them alive at once it would be done sooner",
        Some("credits") => "credits: the rest waits for the next day's budget",
        Some(_) => "run time: no limit holds these jobs up",
        None => "not known",
    };
    line("bottleneck", bottleneck.to_owned());
    text
}

fn done(forecast: &Value) -> String {
    if forecast["done_in_secs"].is_null() {
        let never = !forecast["run_time_secs"].is_null();
        return if never { "never: no day's budget holds one of them" } else { "not known" }.to_owned();
    }
    let first = span(&forecast["first_done_in_secs"]);
    format!("in {}, at {}; the first in {first}", span(&forecast["done_in_secs"]), moment(&forecast["done_at"]))
}

fn count(n: &Value, what: &str) -> String {
    if *n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `2026-11-24T07:50:12Z`.
fn moment(epoch_secs: &Value) -> String {
    let at = epoch_secs.as_i64().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
    at.map_or_else(|| epoch_secs.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_forecast_is_told_in_lines() {
        let forecast = json!({"model": "flux", "n": 50, "account": "main", "known": true, "attempts": 105,
            "run_time_secs": {"mean": 2.512, "p90": 2.6}, "done_in_secs": 72.5, "done_at": 1_795_506_612,
            "first_done_in_secs": 2.512, "bottleneck": "requests",
            "credits": {"each": 1, "total": 50, "left": 20, "enough": false, "reset_at": 1_795_564_800}});
        let expected = "\
50 jobs of flux on main, from now on

done        in 1 min 13 s, at 2026-11-24T07:50:12Z; the first in 2.5 s
run time    2.5 s on average, nine of ten within 2.6 s
attempts    105, as a job takes 2.1
credits     50, 1 each; 20 left until 2026-11-25T00:00:00Z, not enough for all
bottleneck  requests: with more of them a minute it would be done sooner
";
        assert_eq!(lines(&forecast), expected);
        let unknown = json!({"model": "new", "n": 1, "account": "main", "known": false, "attempts": 2,
            "run_time_secs": null, "done_in_secs": null, "credits": null, "bottleneck": null});
        assert!(lines(&unknown).starts_with("1 job of new on main, from now on\n\ndone        not known\n"));
    }

    #[test]
    fn any_name_can_be_asked_for() {
        assert_eq!(encoded("owner/flux-1.1"), "owner/flux-1.1");
        assert_eq!(encoded("a b&n=1%é"), "a%20b%26n%3D1%25%C3%A9");
    }
}
