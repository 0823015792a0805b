//! `sluicegate webhooks`: the ledger is the running proxy's alone, so this asks its admin port.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{Method, Response, StatusCode};
use serde_json::Value;

use crate::config::Flags;

use super::{ConfigFlags, Failure, client, glance, say, start};

/// For each question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `webhooks`.
#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// Ask the admin port at this address instead of the configured one
    #[arg(long, value_name = "HOST:PORT", global = true)]
    admin: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The newest webhooks, newest first: waiting for their job, due, delivered, dead
    List {
        #[command(flatten)]
        flags: ConfigFlags,
        /// Only those that were given up
        #[arg(long)]
        dead: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Try again now, with the same webhook-id
    Replay {
        #[command(flatten)]
        flags: ConfigFlags,
        /// A number from the list
        #[arg(required_unless_present = "all_dead", conflicts_with = "all_dead")]
        id: Option<u64>,
        /// All that were given up
        #[arg(long)]
        all_dead: bool,
    },
}

pub(super) async fn webhooks(args: WebhookArgs, above: ConfigFlags) -> Result<u8, Failure> {
    let WebhookArgs { flags, admin, what } = args;
    let admin = match admin {
        Some(admin) => admin,
        None => configured(sources(&what, flags, above))?,
    };
    match what {
        What::List { dead, json: true, .. } => {
            let answer = list(&admin, dead).await?;
            say(String::from_utf8_lossy(&answer));
        }
        What::List { dead, json: false, .. } => rows(&list(&admin, dead).await?).iter().for_each(show),
        What::Replay { id: Some(id), .. } => {
            replay(&admin, id).await?;
            say(format_args!("webhook {id} is tried again"));
        }
        What::Replay { id: None, .. } => {
            let dead: Vec<u64> = rows(&list(&admin, true).await?).iter().filter_map(|row| row["id"].as_u64()).collect();
            for id in &dead {
                replay(&admin, *id).await?;
            }
            say(format_args!("{} tried again", dead.len()));
        }
    }
    Ok(0)
}

/// Flags count wherever they stand; the last wins.
fn sources(what: &What, flags: ConfigFlags, above: ConfigFlags) -> Flags {
    let (What::List { flags: below, .. } | What::Replay { flags: below, .. }) = what;
    below.clone().over(flags).or(above)
}

fn configured(flags: Flags) -> Result<String, Failure> {
    let glance = glance::glance(&start::sources(flags)?).map_err(Failure::failed)?;
    let admin = glance.admin.ok_or_else(|| Failure::failed("admin.listen is off: there is nobody to ask"))?;
    Ok(admin.to_string())
}

async fn list(admin: &str, dead: bool) -> Result<Bytes, Failure> {
    let target = if dead { "/api/v1/webhooks?state=dead" } else { "/api/v1/webhooks" };
    ask(admin, Method::GET, target).await.map(Response::into_body)
}

async fn replay(admin: &str, id: u64) -> Result<(), Failure> {
    ask(admin, Method::POST, &format!("/api/v1/webhooks/{id}/replay")).await.map(drop)
}

async fn ask(admin: &str, method: Method, target: &str) -> Result<Response<Bytes>, Failure> {
    let place = format!("http://{admin}{target}");
    match tokio::time::timeout(PATIENCE, client::send(admin, method, target, None)).await {
        Ok(Ok(answer)) if answer.status().is_success() => Ok(answer),
        Ok(Ok(answer)) => {
            let text = String::from_utf8_lossy(answer.body());
            let line = text.lines().next().unwrap_or_default().chars().take(200).collect::<String>();
            if answer.status() == StatusCode::NOT_FOUND {
                return Err(Failure::failed(line));
            }
            Err(Failure::failed(format_args!("{place} answers {}: {line}", answer.status())))
        }
        Ok(Err(error)) => Err(Failure::failed(format_args!("{place} does not answer: {error}; is the proxy running?"))),
        Err(_) => Err(Failure::failed(format_args!("{place} does not answer within {} s", PATIENCE.as_secs()))),
    }
}

fn rows(answer: &[u8]) -> Vec<Value> {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    answer["webhooks"].as_array().cloned().unwrap_or_default()
}

/// One line: what a terminal does with control characters in a target is not for others to choose.
fn show(row: &Value) {
    let text = |name: &str| row[name].as_str().unwrap_or("-").escape_debug().to_string();
    let number = |name: &str| row[name].as_u64().unwrap_or_default();
    let error = row["error"].as_str().map(|error| format!("  ({})", error.escape_debug())).unwrap_or_default();
    say(format_args!(
        "{:>6}  {:<9}  {:<9}  {:>2} attempts  {}  {}{error}",
        number("id"),
        text("state"),
        text("ended"),
        number("attempts"),
        text("job"),
        text("target"),
    ));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn options_stand_on_either_side_of_what_is_asked() {
        for words in [
            ["--config", "f", "webhooks", "list"],
            ["webhooks", "--config", "f", "list"],
            ["webhooks", "list", "--config", "f"],
            ["webhooks", "--config=f", "replay", "7"],
            ["webhooks", "replay", "7", "--config=f"],
            ["webhooks", "--admin=a", "list", "--config=f"],
            ["webhooks", "list", "--admin=a", "--config=f"],
        ] {
            let cli = Cli::try_parse_from(["sluicegate"].into_iter().chain(words)).expect("it is understood");
            let Some(Command::Webhooks(args)) = cli.command else { panic!("webhooks") };
            let flags = sources(&args.what, args.flags, cli.flags);
            assert_eq!(flags.config.as_deref(), Some(std::path::Path::new("f")), "{words:?}");
        }
    }
}
