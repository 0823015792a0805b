//! Another configuration for a process that runs: what can take effect at once, what only after a restart, and what must not change.
//!
//! What decides *where* a key is sent, who can reach us and where state lies is never half taken: a file that changes any of it is refused
//! whole. What is only a size or a format waits for the next start, and the rest of the file takes effect.

use super::{Config, Plan, Secret, State};

/// Whether two agree in a key.
type Same = fn(&Config, &Config) -> bool;

/// The same, and how the first takes it from the second.
type Later = (Same, fn(&mut Config, &Config));

/// A change of any of these refuses the file.
const FIXED: [(&str, Same); 12] = [
    ("server.listen", |a, b| a.server.listen == b.server.listen),
    ("admin.listen", |a, b| a.admin.listen == b.admin.listen),
    ("admin.health_listen", |a, b| a.admin.health_listen == b.admin.health_listen),
    ("upstream.url", |a, b| a.upstream.url == b.upstream.url),
    ("upstream.protocol", |a, b| a.upstream.protocol.name == b.upstream.protocol.name),
    ("protocols", |a, b| {
        a.upstream.protocol.name != b.upstream.protocol.name || a.upstream.protocol == b.upstream.protocol
    }),
    ("upstream.http2", |a, b| a.upstream.http2 == b.upstream.http2),
    ("webhooks.listen", |a, b| inbound(a, |inbound| inbound.listen) == inbound(b, |inbound| inbound.listen)),
    ("webhooks.public_url", |a, b| {
        inbound(a, |inbound| inbound.public_url.clone()) == inbound(b, |inbound| inbound.public_url.clone())
    }),
    ("state", |a, b| a.state == b.state),
    // Replicas that live by different plans, or know an account by different keys, would not keep one plan together.
    ("accounts (shared through redis)", |a, b| !matches!(a.state, State::Redis(..)) || shared(a) == shared(b)),
    ("credits.utc_offset", |a, b| a.credits.utc_offset_secs == b.credits.utc_offset_secs),
];

/// A change of any of these waits for the next start.
const LATER: [(&str, Later); 8] = [
    ("server.threads", (|a, b| a.server.threads == b.server.threads, |a, b| a.server.threads = b.server.threads)),
    (
        "server.max_body",
        (
            |a, b| a.server.max_body_bytes == b.server.max_body_bytes,
            |a, b| a.server.max_body_bytes = b.server.max_body_bytes,
        ),
    ),
    (
        "server.buffer",
        (|a, b| a.server.buffer_bytes == b.server.buffer_bytes, |a, b| a.server.buffer_bytes = b.server.buffer_bytes),
    ),
    (
        "server.body_timeout",
        (|a, b| a.server.body_timeout == b.server.body_timeout, |a, b| a.server.body_timeout = b.server.body_timeout),
    ),
    (
        "server.max_connections",
        (
            |a, b| a.server.max_connections == b.server.max_connections,
            |a, b| a.server.max_connections = b.server.max_connections,
        ),
    ),
    (
        "upstream.connect_timeout",
        (
            |a, b| a.upstream.connect_timeout == b.upstream.connect_timeout,
            |a, b| a.upstream.connect_timeout = b.upstream.connect_timeout,
        ),
    ),
    ("log.format", (|a, b| a.log.format == b.log.format, |a, b| a.log.format = b.log.format)),
    ("log.level", (|a, b| a.log.level == b.log.level, |a, b| a.log.level.clone_from(&b.log.level))),
];

/// A change that can be made.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// What runs from now on.
    pub(crate) config: Config,
    /// Keys whose new values wait for the next start.
    pub(crate) pending: Vec<&'static str>,
}

/// From what runs to what is wanted.
///
/// # Errors
/// The keys that must not change while it runs.
pub(crate) fn change(running: &Config, wanted: Config) -> Result<Change, Vec<&'static str>> {
    let changed = |(key, same): &(&'static str, Same)| (!same(running, &wanted)).then_some(*key);
    let refused: Vec<_> = FIXED.iter().filter_map(changed).collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    let mut change = Change { config: wanted, pending: Vec::new() };
    for (key, (same, keep)) in LATER {
        if !same(running, &change.config) {
            keep(&mut change.config, running);
            change.pending.push(key);
        }
    }
    Ok(change)
}

/// The keys that refuse a file, and those that wait for the next start. All others take effect at once.
#[must_use]
pub fn bound_to_the_start() -> (Vec<&'static str>, Vec<&'static str>) {
    (FIXED.iter().map(|(key, _)| *key).collect(), LATER.iter().map(|(key, _)| *key).collect())
}

/// What replicas have to agree on, and what the store knows of this one.
fn shared(config: &Config) -> (Vec<(&str, &Secret, &Plan)>, Vec<&str>) {
    let accounts = config.accounts.iter().map(|account| (account.name.as_str(), &account.key, &*account.plan));
    (accounts.collect(), config.clients.iter().map(|client| client.name.as_str()).collect())
}

fn inbound<T>(config: &Config, part: impl FnOnce(&super::Inbound) -> T) -> Option<T> {
    config.webhooks.inbound.as_ref().map(part)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config(toml: &str) -> Config {
        let env =
            BTreeMap::from([("CORE_API_KEY".to_owned(), "cdt_key".to_owned()), ("HOME".into(), "/home/a".into())]);
        let text = format!(
            "account = \"a\"\n[accounts.a]\nplan = \"p\"\nkey = {{ env = \"CORE_API_KEY\" }}\n[plans.p]\nrequests_per_minute = 60\n{toml}"
        );
        crate::config::load_text(&text, &env).unwrap_or_else(|report| panic!("{report}"))
    }

    #[test]
    fn what_decides_where_a_key_goes_is_never_half_taken() {
        let running = config("");
        let wanted = config(
            "[server]\nlisten = \"127.0.0.1:9\"\nmax_connections = 7\n[upstream]\nurl = \"http://127.0.0.1:1\"\n[state]\nstore = \"memory\"",
        );
        let refused = change(&running, wanted).expect_err("refused");
        assert_eq!(refused, ["server.listen", "upstream.url", "state"]);
    }

    #[test]
    fn replicas_keep_the_plans_that_they_have_agreed_on() {
        let redis =
            "[state]\nstore = \"redis\"\npath = \"state\"\nredis = { url = \"redis://127.0.0.1:1\", replicas = 2 }";
        let running = config(redis);
        let mut wanted = config(&format!("[queue]\nmax_waiting = 7\n{redis}"));
        assert!(change(&running, wanted.clone()).is_ok());
        let mut plan = Plan::clone(&wanted.accounts[0].plan);
        plan.concurrent_jobs = std::num::NonZeroU32::new(3);
        wanted.accounts[0].plan = std::sync::Arc::new(plan);
        assert_eq!(change(&running, wanted).expect_err("refused"), ["accounts (shared through redis)"]);
    }

    #[test]
    fn sizes_wait_for_the_next_start_and_the_rest_does_not() {
        let running = config("");
        let wanted = config("[server]\nmax_connections = 7\ndrain_timeout = \"7s\"\n[log]\nlevel = \"debug\"");
        let Change { config, pending } = change(&running, wanted).expect("it can be made");
        assert_eq!(pending, ["server.max_connections", "log.level"]);
        assert_eq!(config.server.max_connections, running.server.max_connections);
        assert_eq!((config.server.drain_timeout.as_secs(), config.log.level.as_str()), (7, "info"));
    }
}
