//! Callers over plain sockets, on one thread: raw bytes out, answers measured by their heads.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
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
    /// Where the last answer's body begins and what has arrived ends.
    body: Range<usize>,
}

impl Caller {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("connects");
        tcp.set_nodelay(true).expect("an option");
        Self { tcp, buffer: vec![0; 64 * 1024], body: 0..0 }
    }

    /// Sends one request and reads its whole answer; gives the status.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> u16 {
        self.try_ask(request).await.expect("an answer")
    }

    /// The same; fails where the connection is closed early or the answer does not come in time.
    pub(crate) async fn try_ask(&mut self, request: &[u8]) -> io::Result<u16> {
        timeout(PATIENCE, async {
            self.tcp.write_all(request).await?;
            self.answer().await
        })
        .await?
    }

    /// Sends one request, and leaves its answer to come.
    pub(crate) async fn send(&mut self, request: &[u8]) {
        self.tcp.write_all(request).await.expect("written");
    }

    /// Whether nothing has come since.
    pub(crate) async fn is_waiting(&self) -> bool {
        let mut byte = [0];
        timeout(Duration::from_millis(1), self.tcp.peek(&mut byte)).await.is_err()
    }

    /// The body of the last answer, where it was a short one with its length.
    pub(crate) fn body(&self) -> &[u8] {
        &self.buffer[self.body.clone()]
    }

    async fn answer(&mut self) -> io::Result<u16> {
        let mut filled = 0;
        let head = loop {
            filled += self.read(filled).await?;
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
                // What no longer fits overwrites the body.
                filled += self.read(if filled < self.buffer.len() { filled } else { 0 }).await?;
            }
            self.body = if whole <= self.buffer.len() { head..whole } else { 0..0 };
        } else {
            self.body = 0..0;
            let mut end = self.buffer[filled.saturating_sub(5).max(head)..filled].to_vec();
            while !end.ends_with(b"0\r\n\r\n") {
                let read = self.read(0).await?;
                end.extend_from_slice(&self.buffer[read.saturating_sub(5)..read]);
                end.drain(..end.len().saturating_sub(5));
            }
        }
        Ok(status)
    }

    /// Reads on, to `from` in the buffer.
    async fn read(&mut self, from: usize) -> io::Result<usize> {
        match self.tcp.read(&mut self.buffer[from..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
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
