//! A configuration of its own for each test, loaded as the program loads it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sluicegate::app::Proxy;
use sluicegate::clock::Clock;
use sluicegate::config::{self, Config, Sources, State};
use sluicegate::connect::Connect;

/// A directory that is removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        // Not by fastrand: tests that seed it would share their directories.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("sluicegate-it-{process}-{number}-{since}"));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// One account `main` with this plan, more tables as given, ports 0, nothing kept unless `toml` says otherwise.
    pub fn load(&self, plan: &str, toml: &str, upstream: &str) -> Config {
        let text = format!(
            "account = \"main\"\n[accounts.main]\nplan = \"main\"\nkey = {{ env = \"KEY\" }}\n[plans.main]\n{plan}\n{toml}\n"
        );
        let path = self.0.join("proxy.toml");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        let mut sources = Sources { cwd: self.0.clone(), ..Sources::default() };
        let mut set = |name: &str, value: &str| sources.env.insert(name.to_owned(), value.to_owned());
        set("KEY", super::KEY);
        set("SECOND_KEY", "cdt_second_key");
        set("WEB_TOKEN", "web-token");
        set("WEBHOOK_SECRET", super::WEBHOOK_SECRET);
        set("BATCH_TOKEN", "batch-token");
        set("HOME", &self.0.display().to_string());
        sources.flags.config = Some(path);
        sources.flags.upstream = Some(upstream.to_owned());
        let mut config = config::load(&sources).unwrap_or_else(|report| panic!("{report}")).config;
        let any = "127.0.0.1:0".parse().expect("an address");
        config.server.listen = vec![any];
        config.admin.listen = Some(any);
        config.server.threads = std::num::NonZeroUsize::new(2);
        if !toml.contains("[state]") {
            config.state = State::Memory;
        }
        config::prepare(&config).unwrap_or_else(|report| panic!("{report}"));
        config
    }

    /// A proxy with this configuration and this way upstream.
    pub fn proxy(&self, plan: &str, toml: &str, way: Arc<dyn Connect>) -> Proxy {
        let config = self.load(plan, toml, "http://localhost:1");
        Proxy::build(&config, Clock::tokio(), Some(way)).expect("a good configuration")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
