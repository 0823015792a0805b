//! A real redis-server for tests.

use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;

use crate::config;

use super::server::Server;

/// Ends with the test.
pub(crate) struct Store {
    child: Child,
    directory: PathBuf,
    port: u16,
}

/// A row of the members.
pub(super) struct Member {
    pub(super) id: &'static str,
    pub(super) life: &'static str,
    /// Since its last call: by the server's clock, and by the account's age.
    pub(super) silent: Duration,
    pub(super) aged: Duration,
}

impl Member {
    /// It has just called.
    pub(super) fn called(id: &'static str, life: &'static str) -> Self {
        Self { id, life, silent: Duration::ZERO, aged: Duration::ZERO }
    }
}

impl Store {
    pub(crate) async fn start() -> Self {
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("free").port();
        let directory = std::env::temp_dir().join(format!("sluicegate-store-{port}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        Self { child: Self::launch(port, &directory).await, directory, port }
    }

    async fn launch(port: u16, directory: &Path) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).arg("--dir").arg(directory);
        let child = command.stdout(Stdio::null()).spawn().expect("redis-server is installed");
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
        child
    }

    /// As by `kill -9`; it comes back empty.
    pub(crate) async fn kill_and_empty(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("it ends");
        self.child = Self::launch(self.port, &self.directory).await;
    }

    /// One command.
    pub(crate) async fn run(&self, words: &[&str]) {
        self.asked::<redis::Value>(words).await;
    }

    /// One command and its answer.
    pub(crate) async fn asked<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.settings().urls[0].as_str()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.expect("done")
    }

    /// As `call.lua` would have left it: an account whose last call is so long ago by the server's clock, and its members.
    pub(super) async fn knows(&self, ago: Duration, members: &[Member]) {
        /// The account's age.
        const AGE: Duration = Duration::from_secs(100_000);
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let before = |time: Duration, ago: &Duration| (time.as_micros() - ago.as_micros()).to_string();
        self.run(&["DEL", "{x}:account", "{x}:members"]).await;
        self.run(&["HSET", "{x}:account", "age", &before(AGE, &Duration::ZERO), "last", &before(wall, &ago)]).await;
        for Member { id, life, silent, aged } in members {
            let (at, age) = (before(wall, silent), before(AGE, aged));
            self.run(&["HSET", "{x}:members", id, &format!("{life} 1 {at} {at} {age} {age}")]).await;
        }
    }

    /// The way to it.
    pub(super) fn server(&self) -> Server {
        Server::new(&self.settings(), Duration::from_secs(5)).expect("a URL")
    }

    pub(crate) fn settings(&self) -> config::Redis {
        let urls = vec![format!("redis://127.0.0.1:{}", self.port)];
        config::Redis { urls, cluster: false, user: None, password: None, replicas: NonZeroU32::MIN }
    }
}

/// The script of another version.
pub(super) fn doctored(script: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(script.to_owned(), |script, (from, to)| {
        assert!(script.contains(from), "no longer in the script: {from}");
        script.replace(from, to)
    })
}

impl Drop for Store {
    fn drop(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("it ends");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
