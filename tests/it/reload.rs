//! Another configuration while requests run, and keys that change under them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sluicegate::app::Proxy;
use sluicegate::clock::Clock;
use sluicegate::config::{self, Attempt, Flags, Sources};
use sluicegate::reload::{Refused, Reloading};
use tokio::time::timeout;

use crate::support::config::Scratch;
use crate::support::server::Way;
use crate::support::vault::Vault;
use crate::support::{Answer, client, connect, get};

/// Plans.
mod limits;

/// Who and whose.
mod names;

/// What is not taken.
mod refusals;

/// When it is read.
mod noticed;

/// Keys and secrets.
mod keys;

/// At full load.
mod load;

/// Replicas that share.
mod redis;

const WINDOW: Duration = Duration::from_secs(60);
const OLD: &str = "cdt_old_canary";
const NEW: &str = "cdt_new_canary";
const WEB: &str = "[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n";
const BATCH: &str = "[[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }\nplan = \"main\"\n";
const KEY_FILE: &str = "key = { file = \"key\" }";
const FREE: &str = "requests_per_minute = 60\nconcurrent_jobs = 5";

/// A proxy whose configuration is a file, in front of a vault.
struct Gate {
    proxy: Proxy,
    reloading: Reloading,
    vault: Arc<Vault>,
    scratch: Scratch,
}

/// One account `main`, whose key is in the file `key`, with this plan, and more tables.
fn toml(plan: &str, more: &str) -> String {
    let memory = if more.contains("[state]") { "" } else { "[state]\nstore = \"memory\"\n" };
    format!("account = \"main\"\n[accounts.main]\nplan = \"main\"\n{KEY_FILE}\n[plans.main]\n{plan}\n{memory}{more}\n")
}

fn write(path: &Path, text: &str) {
    // By another name first: never half there.
    let aside = path.with_extension("aside");
    fs::write(&aside, text).expect("written");
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::rename(aside, path).expect("moved");
}

fn sources(directory: &Path) -> Sources {
    let env = [("WEB_TOKEN", "web-token"), ("BATCH_TOKEN", "batch-token"), ("PATH", "/usr/bin:/bin")];
    let flags = Flags {
        config: Some(directory.join("proxy.toml")),
        upstream: Some("http://localhost:1".to_owned()),
        ..Flags::default()
    };
    Sources {
        cwd: directory.to_owned(),
        flags,
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

impl Gate {
    fn new(plan: &str, more: &str) -> Self {
        Self::at(plan, more, Vault::new(&[OLD], WINDOW, Duration::from_millis(20)), Scratch::new())
    }

    fn at(plan: &str, more: &str, vault: Arc<Vault>, scratch: Scratch) -> Self {
        if !scratch.0.join("key").exists() {
            write(&scratch.0.join("key"), OLD);
        }
        write(&scratch.0.join("proxy.toml"), &toml(plan, more));
        Self::of(sources(&scratch.0), vault, scratch)
    }

    fn of(sources: Sources, vault: Arc<Vault>, scratch: Scratch) -> Self {
        let Attempt { loaded, watch } = config::load_watched(&sources);
        let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
        config::prepare(&loaded.config).expect("a place for state");
        let way = Arc::new(Way(Arc::clone(&vault)));
        let proxy = Proxy::build(&loaded.config, Clock::tokio(), Some(way)).expect("a good configuration");
        let reloading = proxy.reloading(sources, loaded.path, watch);
        Self { proxy, reloading, vault, scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    /// Writes the file anew and has it read.
    async fn reload(&mut self, plan: &str, more: &str) -> Result<u64, Refused> {
        write(&self.path("proxy.toml"), &toml(plan, more));
        self.reloading.reload().await.map(|reloaded| reloaded.generation)
    }

    /// Sends one request over a connection of its own.
    fn send(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + Send + use<> {
        client::exchange(connect(&self.proxy), request)
    }

    async fn statuses(&self, times: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..times {
            statuses.push(self.send(get("/v1/echo")).await.status.as_u16());
        }
        statuses
    }

    fn waiting(&self) -> usize {
        self.proxy.usage().waiting
    }
}

/// Waits for a change and reads it.
async fn notice(gate: &mut Gate) {
    let changed = gate.reloading.changed();
    timeout(Duration::from_secs(30), changed).await.expect("noticed");
    gate.reloading.reload().await.expect("taken");
}
