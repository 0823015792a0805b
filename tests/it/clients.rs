//! Clients that are slow, greedy or deaf: what they hold is bounded in bytes and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluicegate::connect::{Connect, Connected, Connecting};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::config::Scratch;
use crate::support::{FREE, NOTHING, PIPE_BYTES, Setup};

const GET: &[u8] = b"GET /v1/echo HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// An upstream whose answer is a gigabyte long. Counts what was taken, and notes when it was left.
#[derive(Default)]
struct Gigabyte {
    taken: Arc<AtomicUsize>,
    left: Arc<AtomicUsize>,
}

impl Connect for Gigabyte {
    fn connect(&self) -> Connecting<'_> {
        let (near, mut far) = duplex(PIPE_BYTES);
        let (taken, left) = (Arc::clone(&self.taken), Arc::clone(&self.left));
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let _ = far.read(&mut request).await;
            let _ = far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
            while let Ok(n @ 1..) = far.write(&[b'x'; 16 * 1024]).await {
                taken.fetch_add(n, Ordering::SeqCst);
            }
            left.fetch_add(1, Ordering::SeqCst);
        });
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_holds_little_and_not_for_long() {
    let scratch = Scratch::new();
    let upstream = Arc::new(Gigabyte::default());
    let proxy = scratch.proxy(FREE, "", Arc::clone(&upstream) as Arc<dyn Connect>);
    let (mut near, far) = duplex(PIPE_BYTES);
    let served = tokio::spawn(proxy.serve(far));
    near.write_all(GET).await.expect("written");
    let begun = Instant::now();
    // Some is taken, then nothing more.
    let mut some = [0; 10_000];
    near.read_exact(&mut some).await.expect("the beginning");
    // Longer than any clock but that of the write: whenever it is polled, a connection fills its buffer.
    sleep(Duration::from_secs(15)).await;
    let taken = upstream.taken.load(Ordering::SeqCst);
    assert!(taken < 1_500_000, "{taken} bytes were read ahead of the client");
    timeout(Duration::from_secs(120), served).await.expect("cut off").expect("no panic");
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(upstream.left.load(Ordering::SeqCst), 1, "the upstream's connection is closed");
    assert_eq!(upstream.taken.load(Ordering::SeqCst), taken, "and nothing was read in the meantime");
    assert_eq!(proxy.usage(), NOTHING);
}

/// The client writes all of its body before it reads: a reset on its way must not eat the answer.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_writes_on() {
    let live = Setup::default().loopback().await;
    for head in [
        "POST /v1/predictions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 68000000\r\n\r\n",
        "POST /v1/predictions HTTP/1.1\r\nhost: evil.test\r\ncontent-length: 9000000\r\n\r\n",
        "POST /v1/predictions HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\ncontent-length: 9000000\r\n\r\n",
    ] {
        let mut stream = live.connect().await;
        stream.write_all(head.as_bytes()).await.expect("written");
        for _ in 0..800 {
            stream.write_all(&[b'x'; 10_000]).await.expect("the proxy takes it");
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("no reset");
        assert!(answer.starts_with("HTTP/1.1 4") && answer.trim_end().ends_with('}'), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    live.stop().await;
}

/// What a port answers to bytes; the connection must end.
async fn raw(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

#[tokio::test]
async fn the_other_ports_are_as_strict() {
    let live = Setup::default().loopback().await;
    let admin = live.server.admin.expect("an admin port");
    for bad in [
        "GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
        "POST /api/v1/webhooks/1/replay HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /livez\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = raw(TcpStream::connect(admin).await.expect("open"), bad.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"bad_request\""), "{answer}");
    }
    let proxy = live.server.proxy();
    let (near, far) = duplex(PIPE_BYTES);
    let served = tokio::spawn(proxy.serve_webhooks(far));
    let answer =
        raw(near, b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    served.await.expect("no panic");
    live.stop().await;
}

/// No page that a browser can be led to changes anything there.
#[tokio::test]
async fn no_get_changes_state_at_the_admin_port() {
    let live = Setup::default().loopback().await;
    assert_eq!(live.admin("/api/v1/webhooks/1/replay").await.status, 405);
    let admin = live.server.admin.expect("an admin port");
    let post = b"POST /api/v1/webhooks/1/replay HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.test\r\nconnection: close\r\n\r\n";
    let answer = raw(TcpStream::connect(admin).await.expect("open"), post).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    live.stop().await;
}

/// Beyond `server.max_connections` clients wait, and are served when others have left.
#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let setup = Setup { toml: "[server]\nmax_connections = 2", ..Setup::default() };
    let live = setup.loopback().await;
    let (mut first, mut second) = (live.connect().await, live.connect().await);
    let mut head = [0; 12];
    for held in [&mut first, &mut second] {
        held.write_all(GET).await.expect("written");
        held.read_exact(&mut head).await.expect("answered");
    }
    let mut third = live.connect().await;
    third.write_all(GET).await.expect("written");
    assert!(timeout(Duration::from_millis(300), third.read_exact(&mut head)).await.is_err(), "it was served");
    drop(first);
    timeout(Duration::from_secs(10), third.read_exact(&mut head)).await.expect("in time").expect("answered");
    assert_eq!(&head, b"HTTP/1.1 200");
    drop((second, third));
    live.stop().await;
}
