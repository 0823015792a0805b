//! `run`: ports, signals, exit codes, and what other processes can see of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use sluicegate::mock::Options;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::CREATE;
use crate::support::patience::PATIENCE;
use crate::support::program::{KEY, PROGRAM, Place, Running, ended, mock, send, send_signal};

#[tokio::test]
async fn a_key_alone_starts_the_free_plan() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &[]));
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
    let place = Place::new();
    let mock = mock(Options { answer_delay: Duration::from_millis(700), ..Options::default() }).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &["run"]));
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
    let place = Place::new();
    let mock = mock(Options { answer_delay: PATIENCE * 2, ..Options::default() }).await;
    let mut command = place.proxy(&mock, &["run"]);
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
    let place = Place::new();
    let mock = mock(Options { answer_delay: PATIENCE * 2, ..Options::default() }).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &["run"]));
    let address = proxy.ready().await;
    let request = tokio::spawn(send(address, "GET /v1/echo HTTP/1.1"));
    mock.wait_until(|stats| stats.attempts == 1).await;
    proxy.signal(Signal::TERM);
    proxy.logs("draining").await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(143));
    request.abort();
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_harms_no_request() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &[]));
    let address = proxy.ready().await;
    let mut proxy = proxy.stop_listening();
    for _ in 0..3 {
        let answer = send(address, "GET /v1/echo HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    send_signal(&proxy, Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, proxy.wait()).await.expect("ends");
    assert_eq!(status.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_way_out() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = place.bare(&["--listen", &address]);
    let run = ended(command.env("CORE_API_KEY", KEY)).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    for part in [address.as_str(), "--listen or server.listen"] {
        assert!(run.err.contains(part), "{}", run.err);
    }
    let run = ended(&mut place.bare(&["mock", "--listen", &address])).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains(&address) && run.err.contains("--listen"), "{}", run.err);
}

#[tokio::test]
async fn a_second_proxy_on_the_same_state_is_refused() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut first = Running::start(&mut place.proxy(&mock, &[]));
    first.ready().await;
    let second = ended(&mut place.proxy(&mock, &[])).await;
    assert_eq!((second.code, second.out.as_str()), (Some(1), ""));
    assert!(second.err.contains("state.path"), "{}", second.err);
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
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &[]));
    proxy.ready().await;
    assert_eq!(core_limit(&proxy.child.id().unwrap().to_string()), "0 0");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    let run = ended(&mut place.proxy(&mock, &["exec", "--", "cat", "/proc/self/limits"])).await;
    let line = run.out.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let inherited = line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(inherited, core_limit("self"));
}

/// The environment has the key; the kernel keeps it from other processes of the same user, but for root's.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn others_of_the_same_user_cannot_read_the_proxy_s_environment() {
    const NOBODY: u32 = 65_534;
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let program = place.join("sluicegate");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
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
