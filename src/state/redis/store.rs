//! A real redis-server for tests of single scripts.

use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;

use crate::config;

use super::server::Server;

/// Ends with the test.
pub(super) struct Store {
    child: Child,
    directory: PathBuf,
    url: String,
}

impl Store {
    pub(super) async fn start() -> Self {
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("free").port();
        let directory = std::env::temp_dir().join(format!("sluicegate-store-{port}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).arg("--dir").arg(&directory);
        let child = command.stdout(Stdio::null()).spawn().expect("redis-server is installed");
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
        Self { child, directory, url: format!("redis://127.0.0.1:{port}") }
    }

    /// The way to it.
    pub(super) fn server(&self) -> Server {
        let urls = vec![self.url.clone()];
        let settings = config::Redis { urls, cluster: false, user: None, password: None, replicas: NonZeroU32::MIN };
        Server::new(&settings, Duration::from_secs(5)).expect("a URL")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("it ends");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
