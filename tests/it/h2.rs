//! HTTP/2 from hostile clients (RFC 9113 §10.5): the connection ends, others notice nothing, and what goes upstream stays within the plan.

mod rules;

use std::time::Duration;

use sluicegate::mock::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::support::{NOTHING, Setup, Site, get};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const MINUTE: Duration = Duration::from_secs(60);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET /v1/echo` at `localhost` in HPACK, without the dynamic table.
fn block() -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (index, value) in [(4, "/v1/echo"), (1, "localhost")] {
        block.push(index);
        block.push(u8::try_from(value.len()).expect("short"));
        block.extend(value.as_bytes());
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn integer(mut value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).expect("small")];
    }
    let mut bytes = vec![127];
    value -= 127;
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).expect("small") | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).expect("small"));
    bytes
}

struct Attack {
    writing: WriteHalf<DuplexStream>,
    /// What the proxy sent, up to its end.
    reading: JoinHandle<Vec<u8>>,
}

impl Attack {
    /// A connection whose answers are read as they come.
    async fn on(site: &Site) -> Self {
        let (mut reading, mut writing) = split(site.connect());
        writing.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("written");
        let reading = tokio::spawn(async move {
            let mut bytes = Vec::new();
            let _ = reading.read_to_end(&mut bytes).await;
            bytes
        });
        Self { writing, reading }
    }

    /// How many of these were taken before the proxy would have no more.
    async fn send(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> usize {
        let mut sent = 0;
        for frame in frames {
            match timeout(MINUTE, self.writing.write_all(&frame)).await {
                Ok(Ok(())) => sent += 1,
                _ => break,
            }
        }
        sent
    }

    /// The proxy ends the connection, and says why.
    async fn ends_with_goaway(self) -> u32 {
        let bytes = timeout(MINUTE, self.reading).await.expect("the connection ends").expect("no panic");
        let mut rest = bytes.as_slice();
        let mut code = None;
        while let [a, b, c, kind, _, _, _, _, _, payload @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if *kind == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().expect("four bytes")));
            }
            rest = &payload[length.min(payload.len())..];
        }
        code.expect("a GOAWAY")
    }
}

async fn nobody_else_notices(site: &Site) {
    let answer =
        timeout(Duration::from_secs(70), site.send(get("/v1/echo"))).await.expect("in this window or the next");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(site.settled().await, NOTHING);
    let stats = site.mock.stats();
    assert!(stats.max_in_window <= 60 && stats.refused_rate_429 == 0, "{stats:?}");
}

const PROTOCOL_ERROR: u32 = 1;
const CALM: u32 = 11;

#[tokio::test(start_paused = true)]
async fn streams_opened_and_reset_at_once() {
    let site = Setup::default().memory();
    let mut attack = Attack::on(&site).await;
    let pairs = (0..5_000_u32).map(|number| {
        let stream = number * 2 + 1;
        let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block());
        [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    attack.send(pairs).await;
    assert_eq!(attack.ends_with_goaway().await, CALM);
    nobody_else_notices(&site).await;
}

/// CVE-2025-8671: the client has the server reset its own streams, by windows that overflow.
#[tokio::test(start_paused = true)]
async fn streams_that_we_are_made_to_reset() {
    let site = Setup::default().memory();
    let mut attack = Attack::on(&site).await;
    let pairs = (0..5_000_u32).map(|number| {
        let stream = number * 2 + 1;
        let open = frame(HEADERS, END_HEADERS, stream, &block());
        [open, frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
    });
    attack.send(pairs).await;
    assert_eq!(attack.ends_with_goaway().await, CALM);
    nobody_else_notices(&site).await;
}

#[tokio::test(start_paused = true)]
async fn data_on_streams_that_have_ended() {
    let site = Setup::default().memory();
    let mut attack = Attack::on(&site).await;
    let pairs = (0..5_000_u32).map(|number| {
        let stream = number * 2 + 1;
        let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block());
        [open, frame(DATA, 0, stream, b"more")].concat()
    });
    attack.send(pairs).await;
    assert_eq!(attack.ends_with_goaway().await, PROTOCOL_ERROR);
    nobody_else_notices(&site).await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends() {
    let site = Setup::default().memory();
    let mut attack = Attack::on(&site).await;
    attack.send([frame(HEADERS, 0, 1, &block())].into_iter()).await;
    // A literal that is never indexed, again and again.
    let field = [&[0x10, 1, b'x', 100][..], &[b'y'; 100]].concat();
    let piece = frame(CONTINUATION, 0, 1, &field.repeat(100));
    let sent = attack.send((0..10_000).map(|_| piece.clone())).await;
    assert!(sent < 100, "{sent} pieces of 10 KiB");
    assert_eq!(attack.ends_with_goaway().await, CALM);
    nobody_else_notices(&site).await;
}

#[tokio::test(start_paused = true)]
async fn empty_pieces_of_a_head() {
    let site = Setup::default().memory();
    let mut attack = Attack::on(&site).await;
    attack.send([frame(HEADERS, 0, 1, &block())].into_iter()).await;
    let sent = attack.send((0..100_000).map(|_| frame(CONTINUATION, 0, 1, &[]))).await;
    assert!(sent < 20_000, "{sent}");
    assert_eq!(attack.ends_with_goaway().await, CALM);
    nobody_else_notices(&site).await;
}

/// Some 16 KiB on the wire stand for 48 MB of fields.
#[tokio::test(start_paused = true)]
async fn a_head_that_unpacks_to_megabytes() {
    let site = Setup::default().memory();
    let mut attack = Attack::on(&site).await;
    let value = [b'y'; 4_000];
    let mut bomb = block();
    // Into the dynamic table, then taken from it by one byte each.
    bomb.extend([0x40, 1, b'x']);
    bomb.extend(integer(value.len()));
    bomb.extend(value);
    bomb.extend([0xbe; 12_000]);
    let sent = attack.send([frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)].into_iter()).await;
    assert_eq!(sent, 1);
    nobody_else_notices(&site).await;
    assert_eq!(site.mock.stats().attempts, 1, "only the other client's");
}

#[tokio::test(start_paused = true)]
async fn pings_and_settings_whose_answers_nobody_reads() {
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let site = Setup::default().memory();
        let (_unread, mut writing): (ReadHalf<_>, WriteHalf<DuplexStream>) = split(site.connect());
        writing.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("written");
        let mut sent = 0;
        // No clock of ours runs here: it is the proxy that gives up.
        while writing.write_all(&flood).await.is_ok() {
            sent += 1;
            assert!(sent < 100_000, "taken without end");
        }
        nobody_else_notices(&site).await;
    }
}

/// A client that never opens a window for its answers, but answers pings.
#[tokio::test(start_paused = true)]
async fn a_window_that_never_opens_does_not_hold_an_answer_for_ever() {
    let site = Setup::default().memory();
    let (mut reading, mut writing) = split(site.connect());
    let closed_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let open = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block());
    writing.write_all(&[PREFACE, &closed_window, &open].concat()).await.expect("written");
    let begun = Instant::now();
    let mut head = [0; 9];
    while reading.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        reading.read_exact(&mut payload).await.expect("a whole frame");
        if head[3] == PING && head[4] == 0 {
            let _ = writing.write_all(&frame(PING, 1, 0, &payload)).await;
        }
        if head[3] == RST_STREAM {
            break;
        }
    }
    assert!(begun.elapsed() < 2 * MINUTE, "{:?}", begun.elapsed());
    nobody_else_notices(&site).await;
}

#[tokio::test(start_paused = true)]
async fn many_streams_are_answered_by_one_connection() {
    let site = Setup::default().memory();
    site.mock.fault_next("GET", "/v1/echo", Fault::SlowHead { delay: Duration::from_secs(1) });
    let mut attack = Attack::on(&site).await;
    let streams = (0..20_u32).map(|number| frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block()));
    assert_eq!(attack.send(streams).await, 20);
    site.mock.wait_until(|stats| stats.attempts == 20).await;
    drop(attack.writing);
    nobody_else_notices(&site).await;
}
