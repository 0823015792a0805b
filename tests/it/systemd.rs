//! What systemd is told, and sockets that it hands over.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use sluicegate::mock::Options;
use tokio::net::UnixDatagram;
use tokio::process::Command;

use crate::support::patience::{PATIENCE, until};
use crate::support::program::{Place, Running, mock, run_by, send};

const ECHO: &str = "GET /v1/echo HTTP/1.1";

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn new(place: &Place) -> Self {
        Self(UnixDatagram::bind(place.join("notify")).expect("a socket"))
    }

    async fn hears(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = tokio::time::timeout(PATIENCE, self.0.recv(&mut bytes)).await.expect("in time").expect("heard");
        String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned).collect()
    }

    /// The next message with this line, but for the watchdog's.
    async fn hears_of(&self, line: &str) -> Vec<String> {
        loop {
            let message = self.hears().await;
            if message.iter().any(|heard| heard == line) {
                return message;
            }
            assert_eq!(message, ["WATCHDOG=1"], "before {line}");
        }
    }
}

fn write_config(place: &Place, limit: u32) {
    let text = format!(
        "[accounts.main]\nplan = \"main\"\nkey = {{ env = \"CORE_API_KEY\" }}\n[plans.main]\nrequests_per_minute = {limit}\n[state]\nstore = \"memory\"\n"
    );
    place.write("proxy.toml", &text);
}

#[tokio::test]
async fn the_manager_hears_of_start_reload_and_end() {
    let place = Place::new();
    write_config(&place, 60);
    let upstream = mock(Options::default()).await;
    let manager = Manager::new(&place);
    let mut command = place.proxy(&upstream, &["run", "--config", "proxy.toml"]);
    // Only on the signal: the test says when.
    command.env("SLUICEGATE_SERVER_RELOAD_INTERVAL", "0s");
    command.env("NOTIFY_SOCKET", place.join("notify")).env("WATCHDOG_USEC", "100000");
    let mut proxy = Running::start(&mut command);
    let ready = manager.hears_of("READY=1").await;
    let address = proxy.ready().await;
    assert!(ready.contains(&format!("STATUS=sluicegate ready on http://{address}")), "{ready:?}");
    write_config(&place, 61);
    proxy.signal(Signal::HUP);
    let reloading = manager.hears_of("RELOADING=1").await;
    let since = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("with the time");
    assert!(since.parse::<u64>().expect("a number") > 0);
    let ready = manager.hears_of("READY=1").await;
    assert!(ready.contains(&"STATUS=serving configuration 2".to_owned()), "{ready:?}");
    assert!(send(address, ECHO).await.to_ascii_lowercase().contains("x-ratelimit-limit: 61"));
    write_config(&place, 0);
    proxy.signal(Signal::HUP);
    manager.hears_of("RELOADING=1").await;
    let ready = manager.hears_of("READY=1").await;
    assert!(ready.iter().any(|line| line.contains("refused")), "{ready:?}");
    while manager.hears().await != ["WATCHDOG=1"] {}
    proxy.signal(Signal::TERM);
    manager.hears_of("STOPPING=1").await;
    assert_eq!(proxy.exit_code().await, Some(0), "{}", proxy.stderr().await);
}

/// Runs the program with these sockets as its descriptors 3, 4, … as systemd does.
fn with_sockets(command: &Command, sockets: &[&TcpListener], names: &str) -> Command {
    let descriptors = sockets.iter().zip(3..).map(|(socket, number)| {
        fcntl_setfd(socket, FdFlags::empty()).expect("inherited");
        format!("{number}<&{}", socket.as_raw_fd())
    });
    let descriptors: Vec<_> = descriptors.collect();
    let script = format!("LISTEN_PID=$$ LISTEN_FDS={} exec \"$0\" \"$@\" {}", sockets.len(), descriptors.join(" "));
    let mut shell = Command::new("bash");
    run_by(shell.arg("-c").arg(script), command);
    shell.env("LISTEN_FDNAMES", names);
    shell
}

#[tokio::test]
async fn sockets_that_are_handed_over_serve_and_outlive_the_process() {
    let place = Place::new();
    write_config(&place, 60);
    let upstream = mock(Options::default()).await;
    let (data, admin) =
        (TcpListener::bind("127.0.0.1:0").expect("a port"), TcpListener::bind("127.0.0.1:0").expect("a port"));
    let (address, operator) = (data.local_addr().expect("bound"), admin.local_addr().expect("bound"));
    let command = place.proxy(&upstream, &["run", "--config", "proxy.toml"]);
    let mut first = Running::start(&mut with_sockets(&command, &[&data, &admin], "data:admin"));
    assert_eq!(first.ready().await, address);
    assert!(send(address, ECHO).await.starts_with("HTTP/1.1 200 "));
    assert!(send(operator, "GET /readyz HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
    // A reload leaves them alone.
    write_config(&place, 61);
    first.signal(Signal::HUP);
    until("reloaded", || async {
        let status = send(operator, "GET /api/v1/status HTTP/1.1").await;
        (status.contains("\"generation\":2"), status)
    })
    .await;
    let metrics = send(operator, "GET /metrics HTTP/1.1").await;
    for line in
        ["reloads_total{result=\"taken\"} 1", "config_last_reload_successful 1", "window_limit{account=\"main\"} 61"]
    {
        assert!(metrics.contains(&format!("\nsluicegate_{line}\n")), "{line} is not in {metrics}");
    }
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code().await, Some(0), "{}", first.stderr().await);
    // Between two processes the system keeps who comes.
    let waits = tokio::spawn(send(address, ECHO));
    let mut second = Running::start(&mut with_sockets(&command, &[&data], "data"));
    assert_eq!(second.ready().await, address);
    assert!(waits.await.expect("no panic").starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_socket_for_everybody_needs_clients_and_every_socket_a_name() {
    let place = Place::new();
    write_config(&place, 60);
    let upstream = mock(Options::default()).await;
    let command = place.proxy(&upstream, &["run", "--config", "proxy.toml"]);
    let open = TcpListener::bind("0.0.0.0:0").expect("a port");
    let mut refused = Running::start(&mut with_sockets(&command, &[&open], "data"));
    assert_eq!(refused.exit_code().await, Some(2));
    assert!(refused.stderr().await.contains("[[clients]]"));
    let mut refused = Running::start(&mut with_sockets(&command, &[&open], "http"));
    assert_eq!(refused.exit_code().await, Some(2));
    assert!(refused.stderr().await.contains("FileDescriptorName"));
}
