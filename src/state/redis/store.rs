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

impl Store {
    pub(crate) async fn start() -> Self {
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("free").port();
        let directory = std::env::temp_dir().join(format!("sluicegate-store-{port}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        Self { child: Self::run(port, &directory).await, directory, port }
    }

    async fn run(port: u16, directory: &Path) -> Child {
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
        self.child = Self::run(self.port, &self.directory).await;
    }

    /// The way to it.
    pub(super) fn server(&self) -> Server {
        Server::new(&self.settings(), Duration::from_secs(5)).expect("a URL")
    }

    pub(crate) fn settings(&self) -> config::Redis {
        let urls = vec![format!("redis://127.0.0.1:{}", self.port)];
        config::Redis { urls, cluster: false, user: None, password: None, replicas: NonZeroU32::MIN }
    }

    /// One command, as an operator would give it; its answer as text.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("a URL");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut client.get_connection().expect("it answers")).expect("text")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("it ends");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
