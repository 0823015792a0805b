//! Callers over plain sockets, on one thread: raw bytes out, answers measured by their heads.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// No answer takes longer, or the bench has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request with its body, as bytes.
pub(crate) fn request(line: &str, body: &[u8]) -> Vec<u8> {
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let head = format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nx-api-key: placeholder\r\nuser-agent: bench\r\naccept: */*\r\n\
         {kind}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection that is asked again and again.
pub(crate) struct Caller {
    tcp: TcpStream,
    buffer: Vec<u8>,
}

impl Caller {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("connects");
        tcp.set_nodelay(true).expect("an option");
        Self { tcp, buffer: vec![0; 64 * 1024] }
    }

    /// Sends one request and reads its whole answer; gives the status.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> u16 {
        timeout(PATIENCE, async {
            self.tcp.write_all(request).await.expect("written");
            self.answer().await
        })
        .await
        .expect("an answer in time")
    }

    async fn answer(&mut self) -> u16 {
        let mut filled = 0;
        let head = loop {
            let read = self.tcp.read(&mut self.buffer[filled..]).await.expect("an answer");
            assert!(read > 0, "closed without an answer");
            filled += read;
            if let Some(head) = self.buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") {
                break head + 4;
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
        let status = text.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        if let Some(length) = length {
            let whole = head + length.trim().parse::<usize>().expect("a length");
            while filled < whole {
                filled += self.read_over(filled).await;
            }
        } else {
            let mut end = self.buffer[filled.saturating_sub(5).max(head)..filled].to_vec();
            while !end.ends_with(b"0\r\n\r\n") {
                let read = self.tcp.read(&mut self.buffer).await.expect("a body");
                assert!(read > 0, "closed within a body");
                end.extend_from_slice(&self.buffer[read.saturating_sub(5)..read]);
                end.drain(..end.len().saturating_sub(5));
            }
        }
        status
    }

    /// Reads on; what no longer fits overwrites the body.
    async fn read_over(&mut self, filled: usize) -> usize {
        let from = if filled < self.buffer.len() { filled } else { 0 };
        let read = self.tcp.read(&mut self.buffer[from..]).await.expect("a body");
        assert!(read > 0, "closed within a body");
        read
    }
}

/// `connections` callers, each asking `times` in a row; every status must be `expected`.
pub(crate) fn drive(address: SocketAddr, request: &[u8], connections: usize, times: usize, expected: u16) {
    block_on(async {
        let mut callers = JoinSet::new();
        for _ in 0..connections {
            let request = request.to_vec();
            callers.spawn(async move {
                let mut caller = Caller::connect(address).await;
                for _ in 0..times {
                    assert_eq!(caller.ask(&request).await, expected);
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.expect("no caller fails");
        }
    });
}

/// Runs on one thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
