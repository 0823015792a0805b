//! The keys that `proxy.toml` may have.
//!
//! One list serves three readers: the check for unknown keys, the environment variables, and the test that docs/configuration.md
//! names every key. `*` stands for a name that the operator chooses; the tables of a list are not numbered.

/// How the text of an environment variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it stands: text, durations, words to choose from.
    Text,
    /// Whole or fractional numbers, and sizes.
    Number,
    /// `true` or `false`.
    Bool,
    /// Comma-separated texts.
    Texts,
    /// Comma-separated numbers.
    Numbers,
}

use Kind::{Bool, Number, Numbers, Text, Texts};

/// Every key that is accepted, in the order of `proxy.toml`.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("account", Text),
    ("server.listen", Texts),
    ("server.allow_open", Bool),
    ("server.threads", Number),
    ("server.allowed_hosts", Texts),
    ("server.allowed_origins", Texts),
    ("server.max_body", Number),
    ("server.buffer", Number),
    ("server.header_timeout", Text),
    ("server.body_timeout", Text),
    ("server.drain_timeout", Text),
    ("server.reload_interval", Text),
    ("server.max_connections", Number),
    ("admin.listen", Text),
    ("admin.health_listen", Text),
    ("upstream.url", Text),
    ("upstream.allow_plain_http", Bool),
    ("upstream.protocol", Text),
    ("upstream.connect_timeout", Text),
    ("upstream.attempt_timeout", Text),
    ("upstream.total_timeout", Text),
    ("upstream.idle_timeout", Text),
    ("upstream.http2", Text),
    ("routes.prefix", Text),
    ("routes.auth", Text),
    ("accounts.*.description", Text),
    ("accounts.*.plan", Text),
    ("accounts.*.key.env", Text),
    ("accounts.*.key.file", Text),
    ("accounts.*.key.command", Texts),
    ("accounts.*.substitute.*", Text),
    ("accounts.*.caps.*", Number),
    ("accounts.*.deny_models", Texts),
    ("accounts.*.allow_models", Texts),
    ("plans.*.requests_per_minute", Number),
    ("plans.*.requests", Number),
    ("plans.*.per", Text),
    ("plans.*.concurrent_jobs", Number),
    ("plans.*.pacing", Text),
    ("plans.*.jitter", Text),
    ("plans.*.llm", Text),
    ("plans.*.credits_per_day", Number),
    ("clients.name", Text),
    ("clients.token.env", Text),
    ("clients.token.file", Text),
    ("clients.token.command", Texts),
    ("clients.account", Text),
    ("clients.plan", Text),
    ("clients.weight", Number),
    ("queue.max_wait", Text),
    ("queue.max_waiting", Number),
    ("retry.max_attempts", Number),
    ("retry.initial_backoff", Text),
    ("retry.max_backoff", Text),
    ("retry.statuses", Numbers),
    ("retry.creates", Text),
    ("retry.budget", Number),
    ("retry.budget_floor", Number),
    ("jobs.max_age", Text),
    ("jobs.uncertain", Text),
    ("jobs.result_ttl", Text),
    ("jobs.hold", Text),
    ("jobs.shared", Bool),
    ("models.*.poll", Text),
    ("webhooks.secret.env", Text),
    ("webhooks.secret.file", Text),
    ("webhooks.secret.command", Texts),
    ("webhooks.listen", Text),
    ("webhooks.public_url", Text),
    ("webhooks.allow", Texts),
    ("models.*.credits", Number),
    ("models.*.credits_per_1k_tokens", Number),
    ("credits.utc_offset", Text),
    ("credits.refund", Texts),
    ("protocols.*.create", Texts),
    ("protocols.*.upload", Texts),
    ("protocols.*.status", Texts),
    ("protocols.*.cancel", Texts),
    ("protocols.*.about", Texts),
    ("protocols.*.id", Texts),
    ("protocols.*.wrapper", Text),
    ("protocols.*.state", Text),
    ("protocols.*.run_time", Texts),
    ("protocols.*.began_at", Texts),
    ("protocols.*.ended_at", Texts),
    ("protocols.*.succeeded", Texts),
    ("protocols.*.failed", Texts),
    ("protocols.*.cancelled", Texts),
    ("protocols.*.model", Texts),
    ("protocols.*.auth", Text),
    ("protocols.*.llm_auth", Text),
    ("protocols.*.headers.*", Text),
    ("protocols.*.rewrite", Texts),
    ("protocols.*.wait", Text),
    ("protocols.*.wait_text", Text),
    ("protocols.*.prefer_wait", Bool),
    ("protocols.*.not_found", Text),
    ("protocols.*.webhook", Text),
    ("protocols.*.webhook_events", Text),
    ("protocols.*.webhook_signature", Text),
    ("state.store", Text),
    ("state.path", Text),
    ("state.redis.url", Texts),
    ("state.redis.cluster", Bool),
    ("state.redis.replicas", Number),
    ("state.redis.user", Text),
    ("state.redis.password.env", Text),
    ("state.redis.password.file", Text),
    ("state.redis.password.command", Texts),
    ("log.format", Text),
    ("log.level", Text),
];

/// Every key that `proxy.toml` may have, as a dotted path; `*` stands for a name of the operator's choice.
pub fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(path, _)| *path)
}

/// The names that may stand below `pattern` (empty: at the top).
pub(super) fn names_below(pattern: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = keys()
        .filter_map(|path| if pattern.is_empty() { Some(path) } else { path.strip_prefix(pattern)?.strip_prefix('.') })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.dedup();
    names
}

/// Whether nothing stands below `pattern`: it holds a value of its own.
pub(super) fn is_value(pattern: &str) -> bool {
    keys().any(|path| path == pattern)
}

/// The sections, `[name]` as one writes them, that have a key of this name.
pub(super) fn home_of(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    keys().filter(|path| !path.contains('*')).find_map(|path| {
        let (section, last) = path.rsplit_once('.')?;
        (last == name && !section.contains('.')).then_some(section)
    })
}

/// The keys whose value is a list of tables.
pub(super) const LISTS: [&str; 2] = ["routes", "clients"];

/// The environment variable of a key; `None` where the key lies below a name or in a list of tables.
pub(super) fn variable(path: &str) -> Option<String> {
    let listed = path.contains('*') || LISTS.iter().any(|list| path.starts_with(list));
    (!listed).then(|| format!("SLUICEGATE_{}", path.replace('.', "_").to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_below_their_section() {
        assert_eq!(names_below("accounts.*.key"), ["env", "file", "command"]);
        assert_eq!(names_below("accounts"), ["*"]);
        assert!(names_below("").contains(&"server"));
        assert_eq!(home_of("listen"), Some("server"));
    }

    #[test]
    fn only_fixed_keys_have_a_variable() {
        assert_eq!(variable("queue.max_wait").as_deref(), Some("SLUICEGATE_QUEUE_MAX_WAIT"));
        assert_eq!(variable("account").as_deref(), Some("SLUICEGATE_ACCOUNT"));
        assert_eq!(variable("plans.*.pacing"), None);
        assert_eq!(variable("clients.weight"), None);
    }
}
