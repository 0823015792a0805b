//! A real redis-server of the test's own, and a fleet of replicas that share it. Time is real: windows are short, and waits end with events.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use sluicegate::mock::{Mock, Options};

use super::config::Scratch;
use super::patience::until;
use super::{KEY, Setup, Site};

/// A server that keeps nothing: what is killed comes back empty. `None` of it is on disk but a directory of its own.
pub struct Redis {
    child: Option<Child>,
    pub port: u16,
    directory: Scratch,
    more: Vec<String>,
    /// Variables for the next start.
    pub environment: Vec<(String, String)>,
}

impl Redis {
    pub async fn start() -> Self {
        Self::with(Vec::new()).await
    }

    /// With more settings, as on the command line.
    pub async fn with(more: Vec<String>) -> Self {
        let mut redis =
            Self { child: None, port: free_port(), directory: Scratch::new(), more, environment: Vec::new() };
        redis.up().await;
        redis
    }

    /// Starts it, empty, and waits until it answers.
    pub async fn up(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(&self.directory.0).args(&self.more);
        command.envs(self.environment.iter().cloned());
        let child = command.stdout(Stdio::null()).spawn();
        self.child = Some(child.expect("redis-server is installed: `apt-get install redis-server`"));
        until("answered by redis-server", || async {
            let connected = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await;
            (connected.is_ok(), connected.err())
        })
        .await;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is ours");
            child.wait().expect("it ends");
        }
    }

    /// Runs one command, as an operator would.
    pub async fn run(&self, words: &[&str]) -> redis::Value {
        self.try_run(words).await.expect("redis answers")
    }

    pub async fn try_run(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await
    }

    /// How often scripts were called since the last `CONFIG RESETSTAT`.
    pub async fn calls(&self) -> u64 {
        let info: String = redis::from_redis_value(self.run(&["INFO", "commandstats"]).await).expect("text");
        let calls = |line: &str| {
            let rest = line.strip_prefix("cmdstat_evalsha:calls=")?;
            rest.split(',').next()?.parse().ok()
        };
        info.lines().find_map(calls).unwrap_or(0)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// What the fleet is made of.
pub struct Fleet {
    pub mock: Arc<Mock>,
    pub plan: &'static str,
    pub replicas: usize,
    /// More keys of `state.redis`.
    pub login: &'static str,
    /// More tables.
    pub more: &'static str,
}

impl Fleet {
    pub fn new(mock: Options, plan: &'static str, replicas: usize) -> Self {
        let mock = Arc::new(Mock::in_memory(Options { keys: vec![KEY.into()], ..mock }));
        Self { mock, plan, replicas, login: "", more: "" }
    }

    /// One replica, with a state directory of its own.
    pub fn replica(&self, url: &str) -> Site {
        self.replica_in(Scratch::new(), url)
    }

    pub fn replica_in(&self, scratch: Scratch, url: &str) -> Site {
        let toml = format!(
            "{}\n[state]\nstore = \"redis\"\nredis = {{ url = [\"{url}\"], {}replicas = {} }}",
            self.more, self.login, self.replicas
        );
        // As long as the test process: settings of tests are written down in place.
        let setup = Setup { plan: self.plan, toml: toml.leak(), ..Setup::default() };
        setup.proxy_to(Arc::clone(&self.mock), scratch)
    }

    /// All of them, members and past the hold that a new store begins with.
    pub async fn start(&self, url: &str) -> Vec<Arc<Site>> {
        let sites: Vec<_> = (0..self.replicas).map(|_| Arc::new(self.replica(url))).collect();
        for site in &sites {
            wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
        }
        sites
    }
}

/// Waits until the first account's `shared` status is as `what` says.
pub async fn wait_for(site: &Site, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    until(what, || async {
        let shared = site.proxy.status()["accounts"][0]["shared"].take();
        (is(&shared), shared)
    })
    .await;
}
