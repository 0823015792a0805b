//! Whether what apps find in their environment leads them here. Pure: the environment is passed in.
//!
//! Values of variables are never shown whole: URLs may hold passwords, keys are keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::Uri;

use crate::cli::base_url;
use crate::cli::exports::base_urls;

use super::finding::Finding;

const CHECK: &str = "apps";
const EVAL: &str = "eval \"$(sluicegate env)\", or start the app with `sluicegate exec -- CMD`";
/// Variables by which most HTTP clients find a proxy for plain HTTP.
const HTTP_PROXY: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// What is known of the proxy.
pub(super) struct Proxy<'a> {
    pub(super) listen: SocketAddr,
    pub(super) protocol: &'a str,
    /// Keys of accounts, and the variables that they are meant to be in.
    pub(super) keys: Vec<(&'a str, Option<String>)>,
}

/// One finding a variable that leads elsewhere, or a single good one.
pub(super) fn look(env: &BTreeMap<String, String>, proxy: &Proxy<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = base_urls(&base_url(proxy.listen), proxy.protocol)
        .iter()
        .filter_map(|(name, ours)| base(env, name, ours, proxy.listen))
        .collect();
    findings.extend(swallowed(env));
    findings.extend(exposed(env, &proxy.keys));
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no variable here leads an app past the proxy"));
    }
    findings
}

fn set<'a>(env: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    env.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// A base URL that is not ours.
fn base(env: &BTreeMap<String, String>, name: &str, ours: &str, listen: SocketAddr) -> Option<Finding> {
    let value = set(env, name)?;
    let url: Option<Uri> = value.parse().ok();
    let host = url.as_ref().and_then(Uri::host).unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.as_ref().and_then(Uri::port_u16);
    let local =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == listen.ip());
    if local && (port == Some(listen.port()) || listen.port() == 0) {
        return None;
    }
    let whereto = match (host.as_str(), port) {
        ("", _) => "something that is no URL".to_owned(),
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let said =
        format!("{name} leads to {whereto}: apps started from here go past the proxy, which does not count them");
    Some(Finding::warn(CHECK, said, format!("export {name}={ours}; all of them: {EVAL}")))
}

/// A proxy for all of HTTP that also gets what is meant for this machine.
fn swallowed(env: &BTreeMap<String, String>) -> Option<Finding> {
    let name = HTTP_PROXY.into_iter().find(|name| set(env, name).is_some())?;
    let except = set(env, "no_proxy").or_else(|| set(env, "NO_PROXY")).unwrap_or_default();
    let spared = |entry: &str| matches!(entry.trim(), "*" | "localhost" | "127.0.0.1" | "127.0.0.0/8");
    if except.split(',').any(spared) {
        return None;
    }
    let said = format!(
        "{name} is set and NO_PROXY does not spare this machine: apps would call the proxy here through that one"
    );
    Some(Finding::warn(CHECK, said, "export NO_PROXY=localhost,127.0.0.1,::1 no_proxy=localhost,127.0.0.1,::1"))
}

/// Keys that apps would find too.
fn exposed<'a>(
    env: &'a BTreeMap<String, String>,
    keys: &'a [(&str, Option<String>)],
) -> impl Iterator<Item = Finding> + 'a {
    env.iter().filter_map(|(name, value)| {
        let (_, meant) = keys.iter().find(|(key, _)| value == key)?;
        if meant.as_deref() == Some(name.as_str()) || name == "CORE_API_KEY" {
            return None;
        }
        let said = format!("{name} holds an account's API key: an app that reads it needs no proxy to spend the quota");
        Some(Finding::warn(CHECK, said, format!("unset {name}; any text does as an app's key here")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn found(pairs: &[(&str, &str)]) -> Vec<Finding> {
        let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let keys = vec![("cdt_canary", Some("MY_KEY".to_owned()))];
        look(&env, &Proxy { listen: "127.0.0.1:8787".parse().expect("an address"), protocol: "core.today", keys })
    }

    #[test]
    fn what_leads_here_is_well() {
        let well = [
            ("OPENAI_BASE_URL", "http://127.0.0.1:8787/llm/openai/v1"),
            ("ANTHROPIC_BASE_URL", "http://localhost:8787/llm/anthropic"),
            ("MY_KEY", "cdt_canary"),
            ("HTTP_PROXY", "http://user:hunter2@corporate:3128"),
            ("NO_PROXY", ".internal, 127.0.0.1"),
            ("CORE_API_BASE", ""),
            ("REPLICATE_BASE_URL", "https://api.replicate.com"),
        ];
        let found = found(&well);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].verdict, Verdict::Ok);
    }

    #[test]
    fn what_leads_elsewhere_is_named_without_its_secrets() {
        let elsewhere = [
            ("OPENAI_BASE_URL", "https://user:hunter2@api.example.test/v1?key=hunter2"),
            ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9999"),
            ("GOOGLE_GEMINI_BASE_URL", "hunter2 is no URL"),
            ("https_proxy", "http://corporate:3128"),
            ("http_proxy", "http://user:hunter2@corporate:3128"),
            ("APP_KEY", "cdt_canary"),
        ];
        let found = found(&elsewhere);
        let all = format!("{found:?}");
        for part in ["leads to api.example.test:", "127.0.0.1:9999", "no URL", "http_proxy is set", "APP_KEY holds"] {
            assert!(all.contains(part), "{part}\n{all}");
        }
        assert!(!all.contains("hunter2") && !all.contains("cdt_canary"), "{all}");
        assert!(found.iter().all(|finding| finding.verdict == Verdict::Warn && finding.way_out.is_some()));
        assert_eq!(found.len(), 5);
    }
}
