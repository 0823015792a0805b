//! The program in a directory of its own: for tests of commands and of what is shipped around them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sluicegate::mock::{Mock, Options};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support;

/// Nothing that is waited for takes this long unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// As accounts have it.
pub const KEY: &str = "cdt_upstream_key_1234567890";

/// A directory that is removed at the end.
pub struct Place(support::config::Scratch);

impl Place {
    pub fn new() -> Self {
        Self(support::config::Scratch::new())
    }

    pub fn path(&self) -> &Path {
        &self.0.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file that only its owner can touch, whatever the umask.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        path
    }

    /// A program here, with an environment of its own, and ours first among the programs that it finds.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let ours = Path::new(env!("CARGO_BIN_EXE_sluicegate")).parent().expect("a directory");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", ours.display()))
            .env("HOME", self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Ours, with the key in the variable where it is looked for, and no fixed port.
    pub fn sluicegate(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_sluicegate"), arguments);
        command
            .env("CORE_API_KEY", KEY)
            .env("SLUICEGATE_ADMIN_LISTEN", "127.0.0.1:0")
            .env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0");
        command
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub async fn ended(command: &mut Command) -> Ended {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("ends").expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let Output { status, stdout, stderr } = output;
    Ended { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A run that goes on.
pub struct Running {
    pub child: Child,
    out: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("starts");
        let out = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, out }
    }

    /// Waits for the ready line and returns where it listens.
    pub async fn ready(&mut self) -> SocketAddr {
        let wait = async {
            while let Some(line) = self.out.next_line().await.expect("text") {
                if let Some(address) = line.strip_prefix("sluicegate ready on http://") {
                    return address.parse().expect("an address");
                }
            }
            panic!("it ended before it was ready")
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("it gets ready")
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        kill_process(Pid::from_raw(i32::try_from(id).expect("an id")).expect("an id"), signal).expect("sent");
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends").expect("waited for").code()
    }
}

/// A mock on a free port, that accepts only this key.
pub async fn mock(options: Options) -> Mock {
    let options = Options { keys: vec![KEY.to_owned()], ..options };
    Mock::start(options, (Ipv4Addr::LOCALHOST, 0).into()).await.expect("a port")
}

/// A port that is free now.
pub fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}
