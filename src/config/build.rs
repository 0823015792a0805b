//! From the tree of values to `Config`: one file a part, each section read from its first key to its last.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::Section;
use super::report::Problems;
use super::source::Surroundings;
use super::{Config, State, Watch, document::Table};

mod accounts;
mod credits;
mod plans;
mod policy;
mod ports;
mod protocols;
mod redis;
mod rules;
mod state;
mod upstream;
mod webhooks;

/// What building needs beside the tree.
pub(super) struct Context<'a> {
    /// What secrets and paths are resolved against.
    pub(super) surroundings: Surroundings<'a>,
    /// Whether the operator named the file. One that only lay in the directory may not run commands or choose where a key is sent.
    pub(super) trusted: bool,
    /// Collects what stops nothing.
    pub(super) warnings: Vec<String>,
    /// Collects the files that secrets are in, readable or not.
    pub(super) watch: &'a mut Watch,
    /// The environment, to be kept with what is read from it again.
    pub(super) env: Arc<BTreeMap<String, String>>,
}

/// Builds all parts. `None` only where `problems` has the reason; problems may be there even with a `Config`.
pub(super) fn build(table: &Table, context: &mut Context<'_>, problems: &Problems) -> Option<Config> {
    let root = Section::root(table, problems);
    let plans = plans::read(&root);
    let server = ports::server(&root, context);
    let admin = ports::admin(&root, &server, context);
    let protocols = protocols::read(&root);
    let upstream = upstream::read(&root, &protocols, context);
    let routes = upstream::routes(&root);
    let accounts = accounts::read(&root, &plans, context);
    let queue = policy::queue(&root);
    let retry = policy::retry(&root);
    let jobs = policy::jobs(&root);
    let models = policy::models(&root);
    let webhooks = webhooks::read(&root, &server, &admin, context);
    let credits = credits::read(&root);
    let state = state::read(&root, context);
    let log = state::log(&root);
    let accounts = accounts?;
    if matches!(state, Some(State::Redis(..))) {
        redis::refuse_unshared(&root, &accounts.used, &accounts.clients);
    }
    Some(Config {
        default_account: accounts.default,
        server,
        admin,
        upstream,
        routes,
        accounts: accounts.used,
        clients: accounts.clients,
        queue,
        retry,
        jobs,
        models,
        webhooks,
        credits,
        state: state?,
        log,
    })
}
