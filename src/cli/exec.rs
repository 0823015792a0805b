//! `sluicegate exec -- CMD`: a command with the proxy up, SDKs pointed at it, and no API key in its environment.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::config::{self, Config, Flags, Loaded};
use crate::server::Server;

use super::exports::{PLACEHOLDER, base_urls, sdk_keys};
use super::signals::{Signals, Stop};
use super::{ConfigFlags, Failure, base_url, glance, logging, private, start};

/// The variable that the vendor's own examples read the key from.
const VENDOR_KEY: &str = "CORE_API_KEY";
/// Keys shorter than this are only looked for as whole values.
const TELLING: usize = 8;

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) async fn exec(args: ExecArgs, above: ConfigFlags) -> Result<u8, Failure> {
    let exposed = private::keep_memory(true);
    let flags = args.flags.or(above);
    let keys = key_variables(&flags)?;
    let Loaded { mut config, warnings, .. } = start::load(flags)?;
    config::prepare(&config)?;
    logging::init(&config.log, level(&config));
    for warning in warnings.into_iter().chain(exposed) {
        tracing::warn!("{warning}");
    }
    if config.server.listen.iter().all(|address| address.port() == 0) {
        // Whoever takes a free port wants to stand beside another proxy.
        config.admin.listen.iter_mut().for_each(|address| address.set_port(0));
    }
    if !config.clients.is_empty() {
        tracing::warn!("callers need a token ([[clients]]): the command has to send its client's as its API key");
    }
    let mut signals = Signals::new()?;
    let server = start::start(&config).await?;
    let mut child = match spawn(args.command, &config, &server, &keys) {
        Ok(child) => child,
        Err(failure) => {
            server.drain().await;
            return Err(failure);
        }
    };
    let status = wait(&mut child, &mut signals).await?;
    let code = exit_code(status);
    let drained = start::drain(server, &mut signals).await;
    // The command's own failure tells more than ours.
    Ok(if code == 0 { drained } else { code })
}

/// The log shares stderr with the command: only what needs attention, unless the configuration says otherwise.
fn level(config: &Config) -> &str {
    match config.log.level.as_str() {
        "info" => "warn",
        level => level,
    }
}

/// Variables that accounts take their keys from, those not in use included.
fn key_variables(flags: &Flags) -> Result<Vec<String>, Failure> {
    let glance = glance::glance(&start::sources(flags.clone())?);
    // Mistakes are reported by `load`, with their places.
    let mut names = glance.map(|glance| glance.key_variables).unwrap_or_default();
    names.push(VENDOR_KEY.to_owned());
    Ok(names)
}

fn spawn(command: Vec<OsString>, config: &Config, server: &Server, keys: &[String]) -> Result<Child, Failure> {
    let mut words = command.into_iter();
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(&program);
    command.args(words);
    for (name, value) in std::env::vars_os() {
        if keys.iter().any(|key| name == key.as_str()) || holds_key(&value, config) {
            command.env_remove(name);
        }
    }
    let base = server.listen.first().map(|address| base_url(*address)).unwrap_or_default();
    let protocol = config.upstream.protocol.name.as_str();
    command.envs(base_urls(&base, protocol));
    if config.clients.is_empty() {
        command.envs(sdk_keys(protocol).chain([VENDOR_KEY]).map(|name| (name, PLACEHOLDER)));
    }
    command.spawn().map_err(|error| {
        // As shells say it: 127 not found, 126 found but not run.
        let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
        Failure { code, text: format!("error: {} cannot be run: {error}", program.to_string_lossy()) }
    })
}

/// Whether a value is, or has in it, the key of an account in use.
fn holds_key(value: &OsString, config: &Config) -> bool {
    let value = value.to_string_lossy();
    config.accounts.iter().any(|account| {
        let key = account.key.expose();
        value == key || (key.len() >= TELLING && value.contains(key))
    })
}

/// Waits for the command; signals to us go to it.
async fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus, Failure> {
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    loop {
        let stop = tokio::select! {
            status = child.wait() => return Ok(status?),
            stop = signals.next() => stop,
        };
        let signal = match stop {
            // Ctrl-C on a terminal reaches the whole group: sent again, it would count twice.
            Stop::Interrupt if std::io::stdin().is_terminal() => continue,
            Stop::Interrupt => Signal::INT,
            Stop::Terminate => Signal::TERM,
            Stop::Hangup => Signal::HUP,
        };
        if let Some(pid) = pid {
            // It may have ended just now; the next turn sees that.
            let _ = kill_process(pid, signal);
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }
}
