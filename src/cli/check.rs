//! `sluicegate check`: the configuration as `run` would take it, without a port, a file or the network.

use crate::app::Proxy;
use crate::clock::Clock;
use crate::config::{Config, Flags, Loaded, State};

use super::run::plan_text;
use super::{Failure, complain, say, start};

/// Called on a runtime: building the parts starts what runs beside requests.
pub(super) fn check(flags: Flags) -> Result<u8, Failure> {
    let Loaded { config, warnings, path } = start::load(flags)?;
    for warning in &warnings {
        complain(format_args!("warning: {warning}"));
    }
    // What only shows when the parts are put together. Memory: the state directory may be a running proxy's.
    let without_state = Config { state: State::Memory, ..config.clone() };
    drop(Proxy::build(&without_state, Clock::system(), None)?);
    let file = path.map_or_else(|| "the built-in proxy.toml".to_owned(), |path| path.display().to_string());
    say(summary(&config, &file));
    Ok(0)
}

fn summary(config: &Config, file: &str) -> String {
    let count = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let listen: Vec<String> = config.server.listen.iter().map(ToString::to_string).collect();
    let mut lines = vec![format!(
        "{file} is valid: {}, {}, listening on {}",
        count(config.accounts.len(), "account"),
        count(config.clients.len(), "client"),
        listen.join(" and "),
    )];
    lines.extend(config.accounts.iter().map(|account| {
        format!("  {}: plan {}; key from {}", account.name, plan_text(&account.plan), account.key_origin)
    }));
    lines.join("\n")
}
