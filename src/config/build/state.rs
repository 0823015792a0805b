//! `[state]` and `[log]`.

use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::Context;
use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text};
use crate::config::{Log, LogFormat, State, suggest};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Local,
    Memory,
    Redis,
}

/// `None` where there is no directory to keep state in, which is a problem by then.
pub(super) fn read(root: &Section<'_>, context: &mut Context<'_>) -> Option<State> {
    let section = root.section("state");
    let stores = [("local", Store::Local), ("memory", Store::Memory), ("redis", Store::Redis)];
    let store = section.choice("store", &stores);
    let path = section.read("path", |value| match text(value)? {
        "" => Err(Complaint::new("names no directory")),
        path => Ok(context.surroundings.directory.join(path)),
    });
    if section.has("redis") && store != Some(Store::Redis) {
        let complaint = Complaint::new("is of no use without store = \"redis\"");
        section.complain("redis", complaint.help("write store = \"redis\", or remove it"));
    }
    if store == Some(Store::Memory) {
        return Some(State::Memory);
    }
    let path = path.or_else(|| default_directory(context));
    match &path {
        None => {
            let complaint = Complaint::new("has no default here: HOME is not set");
            section.complain("path", complaint.help("set state.path, or state.store = \"memory\""));
        }
        Some(path) if path.exists() && !path.is_dir() => {
            section.complain("path", Complaint::new(format!("= {} is not a directory", path.display())));
        }
        Some(_) => {}
    }
    if store == Some(Store::Redis) {
        return super::redis::read(&section, path?, context);
    }
    path.map(State::Local)
}

/// systemd's `StateDirectory=`, else the platform's place for state.
fn default_directory(context: &Context<'_>) -> Option<PathBuf> {
    let get = |name: &str| context.surroundings.env.get(name).filter(|value| !value.is_empty());
    let absolute = |name: &str| get(name).map(Path::new).filter(|path| path.is_absolute());
    // With several directories systemd separates them by colons.
    if let Some(directory) = get("STATE_DIRECTORY").and_then(|all| all.split(':').find(|one| !one.is_empty())) {
        return Some(PathBuf::from(directory));
    }
    if cfg!(target_os = "macos") {
        return Some(absolute("HOME")?.join("Library/Application Support/sluicegate"));
    }
    let base = absolute("XDG_STATE_HOME").map(Path::to_path_buf);
    Some(base.or_else(|| Some(absolute("HOME")?.join(".local/state")))?.join("sluicegate"))
}

pub(super) fn log(root: &Section<'_>) -> Log {
    let section = root.section("log");
    let words = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        format: section.choice("format", &words).unwrap_or(LogFormat::Auto),
        level: section.read("level", level).unwrap_or_else(|| "info".to_owned()),
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter in `tracing`'s words. It takes a misspelled level for a module's name, so lone words are checked here.
fn level(value: &Value) -> Result<String, Complaint> {
    let filter = text(value)?;
    let lone = |part: &&str| !part.contains(['=', ':', '[']) && !part.starts_with("sluicegate");
    for word in filter.split(',').map(str::trim).filter(lone) {
        if !LEVELS.contains(&word.to_ascii_lowercase().as_str()) {
            let complaint =
                Complaint::new("must be off, error, warn, info, debug, trace or a filter like \"sluicegate=debug\"");
            return Err(
                complaint.maybe_help(suggest::nearest(word, LEVELS).map(|near| format!("did you mean \"{near}\"?")))
            );
        }
    }
    match EnvFilter::try_new(filter) {
        Ok(_) => Ok(filter.to_owned()),
        Err(error) => Err(Complaint::new(format!("is not a log filter: {error}"))),
    }
}
