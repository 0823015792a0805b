//! Memory of a connection that asks nothing, and of a request that waits.

use std::time::Duration;

use sluicegate::mock::{Options, RunTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::patience::until;
use crate::support::{Live, Setup};

const MANY: usize = 500;
const HEAD: &str = "host: localhost\r\nx-api-key: placeholder\r\nuser-agent: test\r\naccept: */*\r\n";
/// Of a connection between two requests, and of a request that waits on it, beside its body. What tests and mock take is in it.
const CONNECTION_KIB: f64 = 20.0;
const WAITER_KIB: f64 = 4.0;

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Sends a request and reads its answer.
async fn ask(connection: &mut TcpStream, request: &str) {
    connection.write_all(request.as_bytes()).await.expect("sent");
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = connection.read(&mut piece).await.expect("an answer");
        assert!(read > 0, "the answer broke off");
        answer.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if body.len() >= length.parse().expect("a number") {
            return assert!(head.starts_with("http/1.1 20"), "{text}");
        }
    }
}

async fn waiting(live: &Live) -> usize {
    let metrics = live.admin("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let lines = text.lines().filter(|line| line.starts_with("sluicegate_queue_waiting"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

/// What a connection and a waiter take, when all of `MANY` connections have asked once and then ask what has to wait.
async fn weigh(setup: Setup, request: &str) -> (f64, f64) {
    let live = setup.loopback().await;
    let get = format!("GET /v1/echo HTTP/1.1\r\n{HEAD}content-length: 0\r\n\r\n");
    let mut first = live.connect().await;
    ask(&mut first, &get).await;
    ask(&mut first, request).await;
    assert_eq!(waiting(&live).await, 0);
    let at_rest = resident_kib();
    let mut connections = Vec::new();
    for _ in 0..MANY {
        let mut connection = live.connect().await;
        ask(&mut connection, &get).await;
        connections.push(connection);
    }
    let connected = resident_kib();
    for connection in &mut connections {
        connection.write_all(request.as_bytes()).await.expect("sent");
    }
    until("waiting, all of them", || async {
        let waiting = waiting(&live).await;
        (waiting == MANY, waiting)
    })
    .await;
    let each = |kib: f64| kib / f64::from(u16::try_from(MANY).expect("small"));
    (each(connected - at_rest), each(resident_kib() - connected))
}

#[tokio::test]
async fn a_waiting_create_takes_four_kibibytes() {
    let run_time = RunTime::Fixed(Duration::from_secs(3600));
    let setup = Setup {
        mock: Options { requests: None, concurrent_jobs: None, run_time, ..Options::default() },
        plan: "concurrent_jobs = 1",
        ..Setup::default()
    };
    let body = r#"{"model":"flux-schnell","input":{"prompt":"a gate"}}"#;
    let create = format!(
        "POST /v1/predictions HTTP/1.1\r\n{HEAD}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (connection, waiter) = weigh(setup, &create).await;
    assert!(connection <= CONNECTION_KIB && waiter <= WAITER_KIB, "{connection:.1} and {waiter:.1} KiB");
}

#[tokio::test]
async fn a_get_that_waits_for_its_minute_takes_four_kibibytes() {
    let setup = Setup {
        mock: Options { requests: None, ..Options::default() },
        // As many as ask before the others wait.
        plan: "requests = 502\nper = \"1h\"\npacing = \"burst\"",
        toml: "[queue]\nmax_wait = \"3h\"",
        ..Setup::default()
    };
    let get = format!("GET /v1/templates HTTP/1.1\r\n{HEAD}content-length: 0\r\n\r\n");
    let (connection, waiter) = weigh(setup, &get).await;
    assert!(connection <= CONNECTION_KIB && waiter <= WAITER_KIB, "{connection:.1} and {waiter:.1} KiB");
}
