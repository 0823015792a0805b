//! `sluicegate doctor`: everything that has to be right, looked at from near to far: the configuration, this machine, the way to the
//! upstream, the key, the clocks, the limits, and what apps find in their environment. A line each, with the way out.
//!
//! It is bounded in time, prints no key and spends one request of each account in use, without credits; none with `--offline`.

use clap::Args;

use crate::app::Proxy;
use crate::clock::Clock;
use crate::config::{self, Config, Loaded, Sources, State};

use self::finding::{Finding, healthy};
use super::run::plan_text;
use super::{ConfigFlags, Failure, colours, glance, private, say, start};

// In the order of the lines.
mod finding;

mod machine;

mod reach;

mod attempt;

mod answer;

mod apps;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// Do not ask the upstream: no name is resolved, nothing is sent
    #[arg(long)]
    offline: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn doctor(args: DoctorArgs, above: ConfigFlags) -> Result<u8, Failure> {
    // Keys are read here too.
    let exposed = private::keep_memory(false);
    let sources = start::sources(args.flags.or(above))?;
    let mut findings = Vec::new();
    findings.extend(exposed.map(|what| Finding::warn("permissions", what, "ulimit -c 0")));
    let mut keys = Vec::new();
    if let Some(Loaded { config, path, .. }) = load(&sources, &mut findings) {
        let running = machine::ports(&config, &mut findings).await;
        findings.extend(machine::state(&config, running));
        findings.extend(machine::permissions(&config, path.as_deref()));
        if args.offline {
            findings.push(Finding::skip("upstream", "not asked: --offline"));
        } else {
            upstream(&config, running, &mut findings).await;
        }
        findings.extend(apps(&sources, Some(&config)));
        keys = secrets(&config);
    } else {
        findings.push(Finding::skip("upstream", "not asked: the configuration comes first"));
        findings.extend(apps(&sources, None));
    }
    for finding in &mut findings {
        redact(finding, &keys);
    }
    if args.json {
        say(finding::json(&findings));
    } else {
        say(finding::text(&findings, colours(&std::io::stdout())));
    }
    Ok(u8::from(!healthy(&findings)))
}

/// The configuration as `run` would take it.
fn load(sources: &Sources, findings: &mut Vec<Finding>) -> Option<Loaded> {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(report) => {
            let way_out = "`sluicegate check` looks at nothing else; all keys: docs/configuration.md";
            findings.push(Finding::fail("configuration", report.to_string(), way_out));
            return None;
        }
    };
    let Loaded { config, warnings, path } = &loaded;
    // What only shows when the parts are put together. Memory: the state directory may be a running proxy's.
    if let Err(error) = Proxy::build(&Config { state: State::Memory, ..config.clone() }, Clock::system(), None) {
        findings.push(Finding::fail("configuration", error.to_string(), "see docs/configuration.md"));
        return None;
    }
    let file = path.as_ref().map_or_else(|| "the built-in proxy.toml".to_owned(), |path| path.display().to_string());
    let accounts = config.accounts.iter();
    let accounts = accounts.map(|account| {
        format!("\n{}: plan {}; key from {}", account.name, plan_text(&account.plan), account.key_origin)
    });
    findings.push(Finding::ok("configuration", format!("{file} is valid{}", accounts.collect::<String>())));
    findings
        .extend(warnings.iter().map(|warning| Finding::warn("configuration", warning, "see docs/configuration.md")));
    Some(loaded)
}

/// The way to the upstream, then one request for each key.
async fn upstream(config: &Config, running: bool, findings: &mut Vec<Finding>) {
    let mut reached = reach::reach(&config.upstream, findings).await;
    let reachable = reached.is_some();
    for (index, account) in config.accounts.iter().enumerate() {
        if config.accounts.iter().take(index).any(|other| other.key == account.key) {
            continue;
        }
        if running {
            findings.extend(attempt::through(config, index, account).await);
            continue;
        }
        // The first account takes the connection that is there.
        let connection = match reached.take() {
            Some(connection) => Some(connection),
            None if reachable => reach::reach(&config.upstream, &mut Vec::new()).await,
            None => None,
        };
        match connection {
            Some(connection) => findings.extend(attempt::directly(config, account, connection).await),
            None => {
                findings.push(Finding::skip("key", format!("account {}: the upstream is not reached", account.name)));
            }
        }
    }
}

fn apps(sources: &Sources, config: Option<&Config>) -> Vec<Finding> {
    let Ok(glance) = glance::glance(sources) else {
        return vec![Finding::skip("apps", "where the proxy would listen is not known")];
    };
    let keys = config.into_iter().flat_map(|config| &config.accounts).map(|account| {
        let variable = account.key_origin.strip_prefix("environment variable ").map(str::to_owned);
        (account.key.expose(), variable)
    });
    let proxy = apps::Proxy { listen: glance.listen, protocol: &glance.protocol, keys: keys.collect() };
    apps::look(&sources.env, &proxy)
}

fn secrets(config: &Config) -> Vec<config::Secret> {
    let keys = config.accounts.iter().map(|account| account.key.clone());
    keys.chain(config.clients.iter().map(|client| client.token.clone())).collect()
}

/// No check shows a key; errors of others might quote what they were given.
fn redact(finding: &mut Finding, keys: &[config::Secret]) {
    for text in [Some(&mut finding.said), finding.way_out.as_mut()].into_iter().flatten() {
        for key in keys {
            // Short ones are words of their own.
            if key.expose().len() >= 8 && text.contains(key.expose()) {
                *text = text.replace(key.expose(), "[redacted]");
            }
        }
    }
}
