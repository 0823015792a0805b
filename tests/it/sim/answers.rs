//! What the upstream's answers said, read where they reach the proxy.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A whole answer that reached a proxy alive.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub at: Instant,
    pub status: u16,
    /// The job that it is about.
    pub job: Option<String>,
    /// The job's state.
    pub state: Option<String>,
}

/// All of them, in order.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<Vec<Arrived>>>);

impl Answers {
    /// Reads one connection of a proxy that lives as long as `life`.
    pub fn reader(&self, life: CancellationToken) -> Reader {
        Reader { to: self.clone(), life, bytes: Vec::new() }
    }

    pub fn all(&self) -> Vec<Arrived> {
        self.0.lock().expect("no panics").clone()
    }
}

/// Reads the answers of one connection.
pub struct Reader {
    to: Answers,
    life: CancellationToken,
    bytes: Vec<u8>,
}

impl Reader {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let Some((status, body, length)) = first(&self.bytes) {
            let json: Value = serde_json::from_slice(body).unwrap_or_default();
            let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
            let arrived = Arrived {
                at: Instant::now(),
                status,
                job: text("job_id").or_else(|| text("id")),
                state: text("status"),
            };
            if !self.life.is_cancelled() {
                self.to.0.lock().expect("no panics").push(arrived);
            }
            self.bytes.drain(..length);
        }
    }
}

/// The first answer, if it is here whole: its status, its body and its length.
fn first(bytes: &[u8]) -> Option<(u16, &[u8], usize)> {
    let head_length = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_length]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return chunks(&bytes[head_length..]).map(|length| (status, &[][..], head_length + length));
    }
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let end = head_length + length.unwrap_or(0_usize);
    Some((status, bytes.get(head_length..end)?, end))
}

/// The length of a chunked body, once it is here whole: a stream, which tells nothing about a job.
fn chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        at += line + 2 + size + 2;
        if size == 0 {
            return (at <= bytes.len()).then_some(at);
        }
    }
}
