//! The program as its users meet it: arguments in, lines and exit codes out.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sluicegate::mock::{Mock, Options};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};

/// Nothing that is waited for takes this long unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &str = "cdt_upstream_key_1234567890";

/// A directory of its own for one test, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluicegate-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The program in this directory, with an environment of its own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.0)
            .env("SLUICEGATE_ADMIN_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The same, before a mock, on a free port.
    pub fn proxy(&self, mock: &Mock, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command
            .env("CORE_API_KEY", KEY)
            .env("SLUICEGATE_UPSTREAM_URL", mock.url())
            .env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0");
        command
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.command(arguments)).await
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a run left.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn ended(command: &mut Command) -> Ended {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
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
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, out }
    }

    /// Waits for the line that begins like this and returns the rest of it.
    pub async fn line(&mut self, beginning: &str) -> String {
        let wait = async {
            while let Some(line) = self.out.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return Some(rest.to_owned());
                }
            }
            None
        };
        let line = tokio::time::timeout(PATIENCE, wait).await.expect("the line comes in time");
        match line {
            Some(line) => line,
            None => panic!("it ended without `{beginning}`: {}", self.stderr().await),
        }
    }

    /// Waits for the ready line and returns where it listens.
    pub async fn ready(&mut self) -> SocketAddr {
        self.line("sluicegate ready on http://").await.parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends").unwrap().code()
    }

    pub async fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }
}

pub async fn mock(options: Options) -> Mock {
    Mock::start(options, (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap()
}

/// One request over a connection of its own; the whole answer as text.
pub async fn send(to: SocketAddr, request: &str) -> String {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let head = head.replace('\n', "\r\n");
    let length = body.len();
    let mut tcp = TcpStream::connect(to).await.unwrap();
    let text = format!("{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer
}

const CREATE: &str =
    "POST /v1/predictions HTTP/1.1\nContent-Type: application/json\n\n{\"model\": \"flux\", \"input\": {}}";

// ---- Words ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn help_names_every_command_and_no_more() {
    let scratch = Scratch::new();
    let help = scratch.run(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    let commands = help.out.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = "run check init demo mock env exec healthcheck doctor webhooks status jobs usage forecast explain completions schema help";
    assert_eq!(names.join(" "), expected);
    for flag in ["--config <FILE>", "--account <NAME>", "--listen <ADDR>", "--upstream <URL>"] {
        assert!(help.out.contains(flag), "{flag}\n{}", help.out);
    }
    let version = scratch.run(&["--version"]).await;
    assert_eq!(version.out, format!("sluicegate {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_wrong_command_line_ends_with_2() {
    let scratch = Scratch::new();
    for arguments in
        [&["frobnicate"][..], &["--colour"], &["exec"], &["--config", "x.toml", "mock"], &["demo", "--n", "0"]]
    {
        let run = scratch.run(arguments).await;
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{arguments:?}: {}", run.err);
    }
}

#[tokio::test]
async fn explain_prints_a_section_lists_all_and_suggests() {
    let scratch = Scratch::new();
    let one = scratch.run(&["explain", "queue_timeout"]).await;
    assert_eq!(one.code, Some(0));
    assert!(one.out.starts_with("## queue_timeout\n\n429 "), "{}", one.out);
    assert_eq!(one.out.matches("## ").count(), 1, "{}", one.out);
    let all = scratch.run(&["explain"]).await;
    assert_eq!(all.code, Some(0));
    assert!(all.out.lines().count() > 15 && all.out.contains("outcome_unknown        502 "), "{}", all.out);
    let near = scratch.run(&["explain", "queue_timout"]).await;
    assert_eq!(near.code, Some(2));
    assert!(near.err.contains("did you mean queue_timeout?"), "{}", near.err);
}

#[tokio::test]
async fn completions_are_made_for_shells() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = scratch.run(&["completions", shell]).await;
        assert_eq!(run.code, Some(0));
        assert!(run.out.contains("healthcheck"), "{shell}");
    }
}

#[tokio::test]
async fn env_is_read_by_a_shell() {
    let scratch = Scratch::new();
    let run = scratch.run(&["env", "--listen", "127.0.0.1:9999"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    fs::write(scratch.path("env.sh"), &run.out).unwrap();
    let script =
        ". ./env.sh; echo $OPENAI_BASE_URL $ANTHROPIC_BASE_URL $GOOGLE_GEMINI_BASE_URL $CORE_API_BASE $OPENAI_API_KEY";
    let mut shell = Command::new("sh");
    let shell = ended(shell.args(["-c", script]).current_dir(&scratch.0).env_clear()).await;
    let base = "http://127.0.0.1:9999";
    let expected = format!("{base}/llm/openai/v1 {base}/llm/anthropic {base}/llm/gemini {base} sluicegate\n");
    assert_eq!((shell.out, shell.err.as_str()), (expected, ""));
    assert!(run.out.contains("v1beta"), "{}", run.out);
    let fish = scratch.run(&["env", "--shell", "fish"]).await;
    assert!(fish.out.contains("set -gx OPENAI_BASE_URL http://127.0.0.1:8787/llm/openai/v1\n"), "{}", fish.out);
}

// ---- Configuration ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn init_writes_what_check_accepts_and_never_overwrites() {
    let scratch = Scratch::new();
    let init = scratch.run(&["init"]).await;
    assert_eq!(init.code, Some(0), "{}", init.err);
    assert!(init.out.contains("sluicegate check"), "{}", init.out);
    let file = scratch.path("proxy.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o022, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), sluicegate::config::TEMPLATE);

    let check = ended(scratch.command(&["check"]).env("CORE_API_KEY", KEY)).await;
    assert_eq!(check.code, Some(0), "{}", check.err);
    assert!(check.out.contains("proxy.toml is valid: 1 account, 0 clients"), "{}", check.out);
    assert!(check.out.contains("60 requests in any 60 s") && !check.out.contains(KEY), "{}", check.out);

    fs::write(&file, "account = \"mine\"\n").unwrap();
    let again = scratch.run(&["init"]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("--force"), "{}", again.err);
    assert_eq!(fs::read_to_string(&file).unwrap(), "account = \"mine\"\n");
    assert_eq!(scratch.run(&["init", "--force", "."]).await.code, Some(0));
    assert_eq!(fs::read_to_string(&file).unwrap(), sluicegate::config::TEMPLATE);
    let mut left: Vec<_> = fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["proxy.schema.json", "proxy.toml"], "nothing else is left");
}

#[tokio::test]
async fn check_shows_all_mistakes_and_ends_with_2() {
    let scratch = Scratch::new();
    let file = scratch.path("proxy.toml");
    let text = sluicegate::config::TEMPLATE.replace("concurrent_jobs = 5", "concurrent_jobs = 0");
    fs::write(&file, text.replace("[queue]", "[queue]\nmax_wate = \"1s\"")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    for command in ["check", "run"] {
        let run = ended(scratch.command(&[command]).env("CORE_API_KEY", KEY)).await;
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""));
        for part in ["concurrent_jobs", "max_wate", "2 problems; nothing was started", "proxy.toml:"] {
            assert!(run.err.contains(part), "{part}\n{}", run.err);
        }
        assert!(!run.err.contains('\x1b'), "no colours without a terminal");
    }
    assert!(!scratch.path(".local").exists(), "nothing is created");
}

#[tokio::test]
async fn check_finds_what_only_shows_when_the_parts_are_built() {
    let scratch = Scratch::new();
    let text = "account = \"a\"\n[accounts.a]\nplan = \"free\"\nkey = { env = \"CORE_API_KEY\" }\n\
                [accounts.b]\nplan = \"pro\"\nkey = { env = \"CORE_API_KEY\" }\n\
                [plans.free]\nrequests_per_minute = 60\n[plans.pro]\nrequests_per_minute = 300\n\
                [[clients]]\nname = \"c\"\ntoken = { env = \"TOKEN\" }\naccount = \"b\"\n";
    fs::write(scratch.path("two.toml"), text).unwrap();
    fs::set_permissions(scratch.path("two.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = scratch.command(&["check", "--config", "two.toml"]);
    let check = ended(command.env("CORE_API_KEY", KEY).env("TOKEN", "token")).await;
    assert_eq!(check.code, Some(2), "{}", check.err);
    assert!(check.err.contains("same key but different plans"), "{}", check.err);
}

#[tokio::test]
async fn without_file_and_key_it_says_what_would_help() {
    let scratch = Scratch::new();
    let run = scratch.run(&[]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(2), ""));
    for way in ["sluicegate init", "CORE_API_KEY", "sluicegate demo"] {
        assert!(run.err.contains(way), "{}", run.err);
    }
}

// ---- Running ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_key_alone_starts_the_free_plan() {
    let scratch = Scratch::new();
    let mock = mock(Options { keys: vec![KEY.to_owned()], ..Options::default() }).await;
    let mut proxy = Running::start(&mut scratch.proxy(&mock, &[]));
    let address = proxy.ready().await;
    let answer = send(address, "GET /v1/echo HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nx-ratelimit-limit: 60\r\n"), "{answer}");
    proxy.signal(Signal::INT);
    assert_eq!(proxy.exit_code().await, Some(0));
    let log = proxy.stderr().await;
    assert!(!log.contains(KEY));
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("the log is JSON away from terminals");
        assert!(event["message"].is_string(), "{line}");
    }
    assert!(log.contains("\"signal\":\"SIGINT\""), "{log}");
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let scratch = Scratch::new();
    let mock = mock(Options { answer_delay: Duration::from_millis(700), ..Options::default() }).await;
    let mut proxy = Running::start(&mut scratch.proxy(&mock, &["run"]));
    let address = proxy.ready().await;
    let answer = tokio::spawn(send(address, CREATE));
    mock.wait_until(|stats| stats.attempts == 1).await;
    proxy.signal(Signal::TERM);
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(proxy.exit_code().await, Some(0), "{}", proxy.stderr().await);
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn what_outlasts_the_drain_timeout_ends_it_with_1() {
    let scratch = Scratch::new();
    let mock = mock(Options { answer_delay: PATIENCE * 2, ..Options::default() }).await;
    let mut command = scratch.proxy(&mock, &["run"]);
    let mut proxy = Running::start(command.env("SLUICEGATE_SERVER_DRAIN_TIMEOUT", "100ms"));
    let address = proxy.ready().await;
    let request = tokio::spawn(send(address, "GET /v1/echo HTTP/1.1"));
    mock.wait_until(|stats| stats.attempts == 1).await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(1));
    assert!(proxy.stderr().await.contains("server.drain_timeout"));
    request.abort();
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let scratch = Scratch::new();
    let mock = mock(Options { answer_delay: PATIENCE * 2, ..Options::default() }).await;
    let mut proxy = Running::start(&mut scratch.proxy(&mock, &["run"]));
    let address = proxy.ready().await;
    let request = tokio::spawn(send(address, "GET /v1/echo HTTP/1.1"));
    mock.wait_until(|stats| stats.attempts == 1).await;
    let mut log = BufReader::new(proxy.child.stderr.take().unwrap()).lines();
    proxy.signal(Signal::TERM);
    let draining = async { while !log.next_line().await.unwrap().expect("a line").contains("draining") {} };
    tokio::time::timeout(PATIENCE, draining).await.expect("it drains");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(143));
    request.abort();
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_harms_no_request() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut scratch.proxy(&mock, &[]));
    let address = proxy.ready().await;
    drop((proxy.child.stderr.take(), proxy.out));
    for _ in 0..3 {
        let answer = send(address, "GET /v1/echo HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let pid = Pid::from_raw(i32::try_from(proxy.child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, proxy.child.wait()).await.expect("ends");
    assert_eq!(status.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_way_out() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = scratch.command(&["--listen", &address]);
    let run = ended(command.env("CORE_API_KEY", KEY)).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    for part in [address.as_str(), "--listen or server.listen"] {
        assert!(run.err.contains(part), "{}", run.err);
    }
    let run = ended(&mut scratch.command(&["mock", "--listen", &address])).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains(&address) && run.err.contains("--listen"), "{}", run.err);
}

#[tokio::test]
async fn a_second_proxy_on_the_same_state_is_refused() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let mut first = Running::start(&mut scratch.proxy(&mock, &[]));
    first.ready().await;
    let second = ended(&mut scratch.proxy(&mock, &[])).await;
    assert_eq!((second.code, second.out.as_str()), (Some(1), ""));
    assert!(second.err.contains("state.path"), "{}", second.err);
}

#[tokio::test]
async fn mock_has_a_ready_line_and_ends_by_signal() {
    let scratch = Scratch::new();
    let mut mock = Running::start(&mut scratch.command(&["mock", "--listen", "127.0.0.1:0", "--requests", "1"]));
    let address = mock.line("sluicegate mock ready on http://").await.parse().unwrap();
    let answer = send(address, "GET /v1/echo HTTP/1.1\nX-API-Key: any").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    mock.signal(Signal::TERM);
    assert_eq!(mock.line("1 requests").await, ", 0 jobs; refused 0 for the rate, 0 for the job limit");
    assert_eq!(mock.exit_code().await, Some(0));
}

#[tokio::test]
async fn healthcheck_needs_no_key() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = free.local_addr().unwrap().to_string();
    drop(free);
    let check = || {
        let mut command = scratch.command(&["healthcheck"]);
        command.env("SLUICEGATE_ADMIN_LISTEN", &admin);
        command
    };
    let before = ended(&mut check()).await;
    assert_eq!(before.code, Some(1));
    assert!(before.err.contains(&admin), "{}", before.err);

    let mut proxy = Running::start(scratch.proxy(&mock, &[]).env("SLUICEGATE_ADMIN_LISTEN", &admin));
    let data = proxy.ready().await;
    let during = ended(&mut check()).await;
    assert_eq!((during.code, during.out.as_str()), (Some(0), "ready\n"), "{}", during.err);
    let url = format!("http://{admin}");
    assert_eq!(scratch.run(&["healthcheck", "--url", &url]).await.code, Some(0));
    let wrong = format!("http://{data}/nothing/here");
    let other = scratch.run(&["healthcheck", "--url", &wrong]).await;
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("404"), "{}", other.err);
}

#[tokio::test]
async fn usage_asks_the_running_proxy() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = free.local_addr().unwrap().to_string();
    drop(free);
    let url = format!("http://{admin}");
    assert_eq!(scratch.run(&["usage", "--url", &url]).await.code, Some(1));
    let mut proxy = Running::start(scratch.proxy(&mock, &[]).env("SLUICEGATE_ADMIN_LISTEN", &admin));
    proxy.ready().await;
    let shown = scratch.run(&["usage", "--url", &url]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert!(shown.out.contains("budgets renew in") && shown.out.contains("account"), "{}", shown.out);
    let json = scratch.run(&["usage", "--json", "--url", &url]).await;
    assert!(json.out.contains("\"last_30_days\":[]"), "{}", json.out);

    let forecast = scratch.run(&["forecast", "--model", "new one", "-n", "3", "--url", &url]).await;
    assert_eq!(forecast.code, Some(0), "{}", forecast.err);
    assert!(forecast.out.starts_with("3 jobs of new one on"), "{}", forecast.out);
    let json = scratch.run(&["forecast", "--model", "new one", "-n", "3", "--json", "--url", &url]).await;
    assert!(json.out.contains("\"known\":false"), "{}", json.out);
    let nobody = ["forecast", "--model", "m", "-n", "3", "--account", "nobody", "--url", &url];
    let nobody = scratch.run(&nobody).await;
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("there is no account \"nobody\""), "{}", nobody.err);
    assert_eq!(scratch.run(&["forecast", "--model", "m", "-n", "0", "--url", &url]).await.code, Some(2));
}

#[tokio::test]
async fn healthcheck_gives_up_on_a_port_that_never_answers() {
    let scratch = Scratch::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let begun = tokio::time::Instant::now();
    let run = scratch.run(&["healthcheck", "--url", &url]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("within 2 s"), "{}", run.err);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn exec_gives_the_command_everything_but_the_key() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let mut command = scratch.proxy(&mock, &["exec", "--", "sh", "-c", "env; exit 7"]);
    command
        .env("CORE_STAGING_API_KEY", "another-key-of-the-file")
        .env("HIDDEN", format!("Bearer {KEY}"))
        .env("OPENAI_API_KEY", KEY)
        .env("OTHER", "kept");
    let run = ended(&mut command).await;
    assert_eq!(run.code, Some(7), "{}", run.err);
    assert!(!run.out.contains(KEY) && !run.out.contains("another-key-of-the-file"), "{}", run.out);
    let value = |name: &str| {
        let beginning = format!("{name}=");
        run.out.lines().find_map(|line| line.strip_prefix(&beginning).map(str::to_owned))
    };
    assert_eq!(value("OTHER").as_deref(), Some("kept"));
    assert_eq!(value("HIDDEN"), None);
    assert_eq!(value("OPENAI_API_KEY").as_deref(), Some("sluicegate"));
    assert_eq!(value("CORE_API_KEY").as_deref(), Some("sluicegate"));
    let base = value("CORE_API_BASE").unwrap();
    assert!(base.starts_with("http://127.0.0.1:") && !base.ends_with(":0"), "{base}");
    assert_eq!(value("OPENAI_BASE_URL").unwrap(), format!("{base}/llm/openai/v1"));
    assert!(!run.out.contains("sluicegate ready"), "stdout is the command's");
}

/// Of a process, soft and hard.
#[cfg(target_os = "linux")]
fn core_limit(pid: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_core_of_the_proxy_is_dumped_and_a_command_keeps_its_right_to_one() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut scratch.proxy(&mock, &[]));
    proxy.ready().await;
    assert_eq!(core_limit(&proxy.child.id().unwrap().to_string()), "0 0");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    let run = ended(&mut scratch.proxy(&mock, &["exec", "--", "cat", "/proc/self/limits"])).await;
    let line = run.out.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let inherited = line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(inherited, core_limit("self"));
}

/// The environment has the key; the kernel keeps it from other processes of the same user, but for root's.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn others_of_the_same_user_cannot_read_the_proxy_s_environment() {
    const NOBODY: u32 = 65_534;
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let program = scratch.path("sluicegate");
    fs::copy(env!("CARGO_BIN_EXE_sluicegate"), &program).unwrap();
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o755)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let as_somebody = |command: &mut Command| {
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
    };
    let mut command = Command::new(&program);
    command.current_dir("/").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).env("CORE_API_KEY", KEY).env("SLUICEGATE_STATE_STORE", "memory");
    command.env("SLUICEGATE_ADMIN_LISTEN", "off").env("SLUICEGATE_UPSTREAM_URL", mock.url());
    command.env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0");
    as_somebody(&mut command);
    let mut proxy = Running::start(&mut command);
    proxy.ready().await;
    let mut plain = Command::new("sleep");
    plain.arg("60").env_clear().env("CORE_API_KEY", KEY).kill_on_drop(true);
    as_somebody(&mut plain);
    let plain = plain.spawn().unwrap();
    let read = async |pid: Option<u32>| {
        let mut command = Command::new("cat");
        command.arg(format!("/proc/{}/environ", pid.unwrap()));
        as_somebody(&mut command);
        ended(&mut command).await.out.contains(KEY)
    };
    while !read(plain.id()).await {
        tokio::task::yield_now().await; // it has not become `sleep` yet
    }
    assert!(!read(proxy.child.id()).await, "the proxy's is closed");
}

#[tokio::test]
async fn exec_serves_its_command_and_passes_signals_on() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let script = "trap 'echo got it; exit 5' TERM; echo base $CORE_API_BASE; while :; do sleep 0.05; done";
    let mut run = Running::start(&mut scratch.proxy(&mock, &["exec", "sh", "-c", script]));
    let base = run.line("base http://").await;
    let answer = send(base.parse().unwrap(), CREATE).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    run.signal(Signal::TERM);
    run.line("got it").await;
    assert_eq!(run.exit_code().await, Some(5));
}

#[tokio::test]
async fn exec_of_a_missing_command_ends_with_127() {
    let scratch = Scratch::new();
    let mock = mock(Options::default()).await;
    let run = ended(&mut scratch.proxy(&mock, &["exec", "--", "no-such-command"])).await;
    assert_eq!(run.code, Some(127));
    assert!(run.err.contains("no-such-command cannot be run"), "{}", run.err);
}

#[tokio::test]
async fn the_demo_loses_nothing_and_is_never_refused() {
    let scratch = Scratch::new();
    // The demo takes the usual ports if it can, and others if it cannot.
    let run = scratch.run(&["demo", "--once"]).await;
    assert_eq!(run.code, Some(0), "{}\n{}", run.out, run.err);
    for part in [
        "ten times the real speed",
        "sluicegate ready on http://127.0.0.1:",
        "50 predictions done, 0 lost",
        "the best possible is 7.0 s",
        "0 answers 429",
    ] {
        assert!(run.out.contains(part), "{part}\n{}", run.out);
    }
    let time = run.out.lines().find_map(|line| line.trim().strip_prefix("time")).unwrap();
    let seconds: f64 = time.split_whitespace().next().unwrap().parse().unwrap();
    assert!(seconds < 30.0, "{time}");
    assert!(!Path::new(&scratch.path(".local")).exists(), "it keeps no state");
}

#[tokio::test]
async fn the_demo_stays_up_until_it_is_ended() {
    let scratch = Scratch::new();
    let mut demo = Running::start(&mut scratch.command(&["demo", "--n", "2"]));
    let address = demo.ready().await;
    demo.line("it stays up").await;
    let answer = send(address, CREATE).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    demo.signal(Signal::INT);
    assert_eq!(demo.exit_code().await, Some(0));
}
