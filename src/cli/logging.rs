//! The log, as `[log]` says, to stderr.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

use super::colours;

/// Starts the log of this process. `level` has been checked with the configuration.
pub(super) fn init(log: &Log, level: &str) {
    let text = match log.format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_env_filter(EnvFilter::new(level))
        .with_ansi(colours(&stderr()))
        // They would be told by `eprintln!`, which panics, in the middle of requests, once nobody reads stderr any more.
        .log_internal_errors(false);
    // An error means that there is a log already.
    let _ = if text { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}
