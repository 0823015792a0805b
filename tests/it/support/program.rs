//! The program in a directory of its own, as its users meet it: for tests of commands and of what is shipped around them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sluicegate::mock::{Mock, Options};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use super::config::Scratch;
use super::patience::PATIENCE;

/// As accounts have it.
pub const KEY: &str = "cdt_upstream_key_1234567890";
/// Where it lies.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sluicegate");

/// A directory that is removed at the end.
pub struct Place(Scratch);

impl Place {
    pub fn new() -> Self {
        Self(Scratch::new())
    }

    pub fn path(&self) -> &Path {
        &self.0.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file that only its owner can touch, whatever the umask, in one step: a proxy that watches it sees the old or the new text.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (aside, path) = (self.join(&format!("{name}.new")), self.join(name));
        fs::write(&aside, text).expect("written");
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).expect("ours");
        fs::rename(aside, &path).expect("moved");
        path
    }

    /// A program here, with an environment of its own, and ours first among the programs that it finds.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let ours = Path::new(PROGRAM).parent().expect("a directory");
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

    /// Ours, as somebody has it who has set up nothing; its admin port is a free one.
    pub fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(PROGRAM, arguments);
        command.env("SLUICEGATE_ADMIN_LISTEN", "127.0.0.1:0");
        command
    }

    /// Ours, with the key in the variable where it is looked for, and no fixed port.
    pub fn sluicegate(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(arguments);
        command.env("CORE_API_KEY", KEY).env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0");
        command
    }

    /// The same, before a mock.
    pub fn proxy(&self, mock: &Mock, arguments: &[&str]) -> Command {
        let mut command = self.sluicegate(arguments);
        command.env("SLUICEGATE_UPSTREAM_URL", mock.url());
        command
    }

    /// What `bare` comes to.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.bare(arguments)).await
    }
}

/// Has another program run this command, with its environment and directory: a shell, a network of its own.
pub fn run_by(outer: &mut Command, command: &Command) {
    let command = command.as_std();
    outer.arg(command.get_program()).args(command.get_args()).env_clear();
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer.current_dir(command.get_current_dir().expect("set")).stdin(Stdio::null());
    outer.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
}

/// What a run left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: status.code(), out: text(stdout), err: text(stderr) }
    }
}

pub async fn ended(command: &mut Command) -> Ended {
    timeout(PATIENCE, command.output()).await.expect("ends").expect("runs").into()
}

/// A run that goes on, until it is dropped.
pub struct Running {
    pub child: Child,
    out: Lines<BufReader<ChildStdout>>,
    /// `None` where it is not kept.
    log: Option<BufReader<ChildStderr>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("starts");
        let out = BufReader::new(child.stdout.take().expect("piped")).lines();
        let log = child.stderr.take().map(BufReader::new);
        Self { child, out, log }
    }

    /// Starts it with an admin port; returns it when it is ready, with where its two ports are.
    pub async fn with_admin(command: &mut Command) -> (Self, SocketAddr, SocketAddr) {
        loop {
            let admin = free_port();
            let mut running = Self::start(command.env("SLUICEGATE_ADMIN_LISTEN", admin.to_string()));
            match running.try_line(READY).await {
                Ok(data) => return (running, data.parse().expect("an address"), admin),
                // Somebody was faster.
                Err(log) if log.contains("the admin port cannot listen") => {}
                Err(log) => panic!("it was never ready: {log}"),
            }
        }
    }

    /// Waits for the line that begins like this and returns the rest of it; the log where it ends without it.
    pub async fn try_line(&mut self, beginning: &str) -> Result<String, String> {
        let wait = async {
            while let Some(line) = self.out.next_line().await.expect("text") {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return Some(rest.to_owned());
                }
            }
            None
        };
        match timeout(PATIENCE, wait).await.expect("the line comes in time") {
            Some(rest) => Ok(rest),
            None => Err(self.stderr().await),
        }
    }

    /// The same, where it must come.
    pub async fn line(&mut self, beginning: &str) -> String {
        let line = self.try_line(beginning).await;
        line.unwrap_or_else(|log| panic!("it ended without `{beginning}`: {log}"))
    }

    /// Waits for the ready line and returns where it listens.
    pub async fn ready(&mut self) -> SocketAddr {
        self.line(READY).await.parse().expect("an address")
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("ends").expect("waited for").code()
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Waits for a line of its log with this in it.
    pub async fn logs(&mut self, part: &str) {
        let log = self.log.as_mut().expect("piped");
        let mut line = String::new();
        let wait = async {
            while !line.contains(part) {
                line.clear();
                assert!(log.read_line(&mut line).await.expect("text") > 0, "it ended without `{part}`");
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never `{part}`"));
    }

    /// The rest of its log, to its end.
    pub async fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(log) = &mut self.log {
            log.read_to_string(&mut text).await.expect("text");
        }
        text
    }

    /// Closes the reading ends of all that it says.
    pub fn stop_listening(self) -> Child {
        let Self { child, out, log } = self;
        drop((out, log));
        child
    }
}

const READY: &str = "sluicegate ready on http://";

pub fn send_signal(child: &Child, signal: Signal) {
    let id = child.id().expect("it runs");
    kill_process(Pid::from_raw(i32::try_from(id).expect("an id")).expect("an id"), signal).expect("sent");
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

/// One request over a connection of its own, as lines and a body; the whole answer as text.
pub async fn send(to: SocketAddr, request: &str) -> String {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let head = head.replace('\n', "\r\n");
    let length = body.len();
    let mut tcp = TcpStream::connect(to).await.expect("the port is open");
    let text = format!("{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    tcp.write_all(text.as_bytes()).await.expect("written");
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.expect("text");
    answer
}
