//! An upstream that keeps what it gets byte by byte, and reads requests by a parser of its own: it must not rest on the one under test.

use std::sync::{Arc, Mutex};

use sluicegate::connect::{Connect, Connected, Connecting};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::PIPE_BYTES;

/// A request as it came, well-formed or not.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    pub line: Vec<u8>,
    /// `name: value`, names in lower case, in their order.
    pub fields: Vec<Vec<u8>>,
    pub body: Vec<u8>,
    /// It came to its end.
    pub whole: bool,
}

/// Answers every request with 200 and keeps them all.
#[derive(Default)]
pub struct RawUpstream {
    seen: Arc<Mutex<Vec<Raw>>>,
}

impl RawUpstream {
    /// What came so far, in the order in which requests began.
    pub fn seen(&self) -> Vec<Raw> {
        self.seen.lock().expect("no panics").clone()
    }
}

impl Connect for RawUpstream {
    fn connect(&self) -> Connecting<'_> {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(connection(far, Arc::clone(&self.seen)));
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}

async fn connection(mut io: DuplexStream, seen: Arc<Mutex<Vec<Raw>>>) {
    let mut bytes = Vec::new();
    loop {
        // One place for each request from its first byte on.
        while bytes.is_empty() {
            if !more(&mut io, &mut bytes).await {
                return;
            }
        }
        let place = {
            let mut seen = seen.lock().expect("no panics");
            seen.push(Raw::default());
            seen.len() - 1
        };
        let note = |raw: &Raw| seen.lock().expect("no panics")[place] = raw.clone();
        loop {
            let (raw, length) = read(&bytes);
            note(&raw);
            if raw.whole {
                bytes.drain(..length);
                break;
            }
            if !more(&mut io, &mut bytes).await {
                return;
            }
        }
        let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    }
}

async fn more(io: &mut DuplexStream, bytes: &mut Vec<u8>) -> bool {
    matches!(io.read_buf(bytes).await, Ok(1..))
}

/// As much of a request as there is, and its length if it is whole.
fn read(bytes: &[u8]) -> (Raw, usize) {
    let mut raw = Raw::default();
    let Some(head) = find(bytes, b"\r\n\r\n") else {
        raw.line = bytes.to_vec();
        return (raw, 0);
    };
    let text: Vec<u8> = bytes[..head].to_vec();
    let mut lines = split(&text);
    raw.line = lines.remove(0);
    raw.fields = lines;
    for field in &mut raw.fields {
        let colon = field.iter().position(|byte| *byte == b':').unwrap_or(0);
        field[..colon].make_ascii_lowercase();
    }
    let value = |name: &str| {
        let prefix = format!("{name}: ").into_bytes();
        raw.fields.iter().find_map(|field| field.strip_prefix(prefix.as_slice()).map(<[u8]>::to_vec))
    };
    let mut at = head + 4;
    if value("transfer-encoding").is_some() {
        loop {
            let Some(end) = find(&bytes[at..], b"\r\n") else { return (raw, 0) };
            let size = std::str::from_utf8(&bytes[at..at + end]).expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a size without extensions");
            at += end + 2;
            let Some(data) = bytes.get(at..at + size + 2) else { return (raw, 0) };
            assert_eq!(&data[size..], b"\r\n", "a chunk or the end of the body without trailers");
            raw.body.extend_from_slice(&data[..size]);
            at += size + 2;
            if size == 0 {
                raw.whole = true;
                return (raw, at);
            }
        }
    }
    let length = value("content-length")
        .map_or(0, |length| std::str::from_utf8(&length).expect("digits").parse::<usize>().expect("a length"));
    let end = bytes.len().min(at + length);
    raw.body = bytes[at..end].to_vec();
    raw.whole = end == at + length;
    (raw, end)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|at| at == what)
}

fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = vec![];
    let mut rest = text;
    while let Some(end) = find(rest, b"\r\n") {
        lines.push(rest[..end].to_vec());
        rest = &rest[end + 2..];
    }
    lines.push(rest.to_vec());
    lines
}
