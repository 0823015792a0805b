//! `sluicegate run`: the proxy until a signal ends it.

use std::io::IsTerminal;

use crate::config::{self, Config, Flags, Loaded, Plan};
use crate::reload::{Reloaded, Reloading};
use crate::server::Server;

use super::signals::{Hangup, Signals, Stop};
use super::{Failure, base_url, complain, logging, private, say, start, systemd};

pub(super) async fn run(flags: Flags) -> Result<u8, Failure> {
    let exposed = private::keep_memory(false);
    let handed = systemd::sockets()?;
    let (Loaded { config, warnings, path }, again) = start::load_watched(flags)?;
    config::prepare(&config)?;
    logging::init(&config.log, &config.log.level);
    for warning in warnings.into_iter().chain(exposed) {
        tracing::warn!("{warning}");
    }
    let (mut signals, mut hangup) = (Signals::new()?, Hangup::new()?);
    let server = start::start_on(&config, handed).await?;
    if std::io::stderr().is_terminal() {
        let file = path.map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string());
        complain(banner(&config, &server, &file));
    }
    say(ready_line(&server));
    systemd::feed_watchdog();
    systemd::ready(&ready_line(&server));
    let stop = serve(again.reloading(&server), &mut signals, &mut hangup).await;
    let usage = server.proxy().usage();
    systemd::stopping("draining: finishing what is in flight");
    tracing::info!(
        signal = stop.name(),
        in_flight = usage.in_flight,
        waiting = usage.waiting,
        timeout_secs = server.drain_timeout().as_secs_f64(),
        "draining: no new work, finishing what is in flight; a second signal ends at once"
    );
    Ok(start::drain(server, &mut signals).await)
}

/// Reads the configuration again whenever that is due, until a signal asks for the end.
async fn serve(mut reloading: Reloading, signals: &mut Signals, hangup: &mut Hangup) -> Stop {
    loop {
        tokio::select! {
            biased;
            stop = signals.next() => return stop,
            hung = hangup.next() => if let Err(stop) = hung { return stop },
            () = reloading.changed() => {}
        }
        systemd::reloading();
        // Log, metrics and status tell what came of it, too.
        let status = tokio::select! {
            biased;
            stop = signals.next() => return stop,
            result = reloading.reload() => match result {
                Ok(Reloaded { generation, .. }) => format!("serving configuration {generation}"),
                Err(_) => "serving; the last configuration was refused, see the log".to_owned(),
            },
        };
        systemd::ready(&status);
    }
}

/// The one line that scripts wait for.
pub(super) fn ready_line(server: &Server) -> String {
    let urls: Vec<String> = server.listen.iter().map(|address| format!("http://{address}")).collect();
    format!("sluicegate ready on {}", urls.join(" "))
}

/// For people at a terminal, at most 8 lines.
fn banner(config: &Config, server: &Server, file: &str) -> String {
    let account = config.accounts.get(config.default_account);
    let (name, plan, key) = account.map_or(("", String::new(), ""), |account| {
        (account.name.as_str(), plan_text(&account.plan), account.key_origin.as_str())
    });
    let more = match config.accounts.len().saturating_sub(1) {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    let url = server.listen.first().map(|address| base_url(*address)).unwrap_or_default();
    let admin = server.admin.map_or_else(
        || "off".to_owned(),
        |address| format!("{}/ (dashboard; /metrics, `sluicegate status`)", base_url(address)),
    );
    let upstream = config.upstream.url.to_string();
    format!(
        "sluicegate {version}, configured by {file}\n\
         \x20 proxy    {url} -> {upstream}\n\
         \x20 plan     {plan} (account {name}{more})\n\
         \x20 key      from {key}\n\
         \x20 admin    {admin}\n\
         \x20 apps     export CORE_API_BASE={url}\n\
         \x20          export OPENAI_BASE_URL={url}/llm/openai/v1 OPENAI_API_KEY=sluicegate\n\
         \x20          others: `sluicegate env`; one command only: `sluicegate exec -- CMD`",
        version = env!("CARGO_PKG_VERSION"),
        upstream = upstream.trim_end_matches('/'),
    )
}

/// `free: 60 requests in any 60 s, 5 jobs at once`.
pub(super) fn plan_text(plan: &Plan) -> String {
    let requests = plan.requests.as_ref().map_or_else(
        || "requests without limit".to_owned(),
        |requests| format!("{} requests in any {} s", requests.limit, requests.window.as_secs_f64()),
    );
    let jobs =
        plan.concurrent_jobs.map_or_else(|| "jobs without limit".to_owned(), |jobs| format!("{jobs} jobs at once"));
    format!("{}: {requests}, {jobs}", plan.name)
}
