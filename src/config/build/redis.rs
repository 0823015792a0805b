//! `[state] redis`: where replicas share the plan, and what they cannot share.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::Context;
use super::accounts::{resolve, trusted};
use crate::config::reader::{Complaint, Section, text};
use crate::config::report::Place;
use crate::config::source::Source;
use crate::config::{self, Account, Client, Llm, Redis, State};
use crate::state::redis;

/// Reads `state.redis`; `directory` is where the rest of the state goes.
pub(super) fn read(state: &Section<'_>, directory: PathBuf, context: &mut Context<'_>) -> Option<State> {
    if !state.has("redis") {
        let help = "write redis = { url = \"redis://127.0.0.1:6379\", replicas = 4 }";
        state.complain("redis", Complaint::new("is missing, and store = \"redis\"").help(help));
        return None;
    }
    let section = state.section("redis");
    section.demand("url", "like \"redis://127.0.0.1:6379\"");
    let mut wrong = false;
    let urls = section.list("url", |value| text(value).and_then(url).inspect_err(|_| wrong = true));
    let cluster = section.flag("cluster");
    section
        .demand("replicas", "how many replicas share the plan at most, new ones beside old ones in an update included");
    let replicas = section.count("replicas", 1, 1..=1000);
    let user = section.read("user", |value| match text(value)? {
        "" => Err(Complaint::new("names nobody")),
        user => Ok(user.to_owned()),
    });
    let password = trusted(section.read("password", Source::parse), &section, "password", context);
    let password = resolve(password.as_ref(), &section, "password", context).map(|found| found.secret);
    if user.is_some() && !section.has("password") {
        section.demand("password", "write password = { env = \"REDIS_PASSWORD\" }");
    }
    let urls = urls?;
    if !wrong {
        fit_together(&urls, cluster, &section);
    }
    elsewhere(&urls, &section, password.is_some(), context);
    let replicas = u32::try_from(replicas).ok().and_then(NonZeroU32::new)?;
    Some(State::Redis(directory, Redis { urls, cluster, user, password, replicas }))
}

fn fit_together(urls: &[String], cluster: bool, section: &Section<'_>) {
    let complain = |text: &str, help: &str| section.complain("url", Complaint::new(text).help(help));
    let parts = |url: &String| {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        (scheme.to_owned(), rest.split_once('/').map_or("", |(_, database)| database).to_owned())
    };
    match urls {
        [] => complain("names no server", "like \"redis://127.0.0.1:6379\""),
        [_, _, ..] if !cluster => {
            complain("names several servers, and they are no cluster", "name one, or write cluster = true");
        }
        [first, others @ ..] if cluster => {
            if others.iter().any(|other| parts(other).0 != parts(first).0) {
                complain("mixes redis:// and rediss://", "a cluster has TLS at all nodes or at none");
            }
            if urls.iter().any(|url| !matches!(&*parts(url).1, "" | "0")) {
                complain("names a database, and a cluster has none but 0", "leave out what follows the port");
            }
        }
        _ => {}
    }
}

/// Complaints never quote the URL: it may hold a password.
fn url(text: &str) -> Result<String, Complaint> {
    let rest = text.strip_prefix("rediss://").or_else(|| text.strip_prefix("redis://"));
    let Some(rest) = rest else {
        return Err(Complaint::new("must start with redis://, or rediss:// for TLS"));
    };
    if rest.contains('@') {
        let complaint = Complaint::new("must not hold a user or password");
        return Err(complaint.help("write user = \"name\" and password = { env = \"REDIS_PASSWORD\" }"));
    }
    if rest.contains(['?', '#']) {
        return Err(Complaint::new("must not have a query or fragment").help("leave out what follows ? or #"));
    }
    if rest.is_empty() || rest.starts_with(['/', ':']) {
        return Err(Complaint::new("must name a host"));
    }
    redis::is_usable(text).map_err(|_| Complaint::new("is not a valid URL"))?;
    Ok(text.to_owned())
}

/// A file that only lay in the directory may not choose who counts, nor who gets a password.
fn elsewhere(urls: &[String], section: &Section<'_>, password: bool, context: &mut Context<'_>) {
    if urls.iter().all(|url| is_here(url)) {
        return;
    }
    if !context.trusted && matches!(section.place("url"), Place::File(_)) {
        let complaint = Complaint::new(
            "would have the plan kept by another machine, and this file was only found in the directory",
        );
        section.complain("url", complaint.help("if you trust the file, name it: --config proxy.toml"));
    } else if password && urls.iter().any(|url| url.starts_with("redis://")) {
        context
            .warnings
            .push("state.redis.password travels in the clear: use rediss:// outside of a trusted network".into());
    }
}

fn is_here(url: &str) -> bool {
    let host = url.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What replicas would each spend for themselves: better refused than exceeded.
pub(super) fn refuse_unshared(root: &Section<'_>, accounts: &[Account], clients: &[Client]) {
    let plans = root.named("plans");
    for account in accounts {
        let Some((_, plan)) = plans.iter().find(|(name, _)| *name == account.plan.name) else { continue };
        let config::Plan { requests, concurrent_jobs, credits_per_day, .. } = &*account.plan;
        if requests.is_none() && concurrent_jobs.is_none() && credits_per_day.is_none() {
            let complaint = Complaint::new(
                "is missing, as are concurrent_jobs and credits_per_day: without a limit nothing is shared, \
                 Idempotency-Keys included",
            );
            plan.complain("requests_per_minute", complaint.help("set one, or use state.store = \"local\""));
        }
        if account.plan.credits_per_day.is_some() && account.plan.llm == Llm::Unmetered {
            let complaint = Complaint::new("leaves calls out of the window, with which replicas share credits_per_day");
            plan.complain(
                "llm",
                complaint.help("remove it or credits_per_day, or use state.store = \"local\" with one process"),
            );
        }
    }
    for (section, client) in root.items("clients").into_iter().zip(clients) {
        let limited = |plan: &crate::config::Plan| {
            plan.requests.is_some() || plan.concurrent_jobs.is_some() || plan.credits_per_day.is_some()
        };
        if client.plan.as_deref().is_some_and(limited) {
            let complaint =
                Complaint::new("limits the client in each replica alone, and its replicas share the account");
            section.complain("plan", complaint.help("remove it, or use state.store = \"local\" with one process"));
        }
    }
}
