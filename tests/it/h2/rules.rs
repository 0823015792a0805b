//! What RFC 9113 and RFC 7541 require of a server, section by section: bytes after the preface, and what has to come back.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use super::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, MINUTE, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, nobody_else_notices,
};
use crate::support::{Setup, Site};

const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const PADDED: u8 = 8;
const ACK: u8 = 1;
const WITH_PRIORITY: u8 = 0x20;
const WHOLE: u8 = END_HEADERS | END_STREAM;

const PROTOCOL: u32 = 1;
const FLOW: u32 = 3;
const CLOSED: u32 = 5;
const SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;

/// What has to come back.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// The whole answer on stream 1.
    Answer,
    /// The connection works on: a ping is answered.
    Works,
    /// The connection ends, unanswered; a GOAWAY before it has one of these codes, or `PROTOCOL_ERROR`, which the library says of whatever
    /// it cannot read, though the RFC names closer ones.
    End(&'static [u32]),
    /// The stream ends with one of these codes, or the connection does.
    Reset(&'static [u32]),
    /// One byte of the answer, for the window is no larger.
    OneByte,
    /// So many octets answer the first ping.
    Pong([u8; 8]),
}

/// A thing to do, in turn.
enum Step {
    Send(Vec<u8>),
    /// Wait for the end of the answer on stream 1.
    Answered,
}

/// What has come back so far.
#[derive(Debug, Default)]
struct Seen {
    goaway: Option<u32>,
    resets: Vec<u32>,
    pongs: Vec<Vec<u8>>,
    settings_acks: usize,
    heads: usize,
    data: usize,
    answered: bool,
    closed: bool,
}

struct Talk {
    reading: ReadHalf<DuplexStream>,
    writing: WriteHalf<DuplexStream>,
    seen: Seen,
}

impl Talk {
    fn on(site: &Site) -> Self {
        let (reading, writing) = split(site.connect());
        Self { reading, writing, seen: Seen::default() }
    }

    /// The proxy may have ended the connection before.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = self.writing.write_all(bytes).await;
    }

    /// One frame of the proxy's.
    async fn next(&mut self) {
        let mut head = [0; 9];
        if self.reading.read_exact(&mut head).await.is_err() {
            self.seen.closed = true;
            return;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if self.reading.read_exact(&mut payload).await.is_err() {
            self.seen.closed = true;
            return;
        }
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four octets"));
        let (kind, flags) = (head[3], head[4]);
        match kind {
            GOAWAY => self.seen.goaway = self.seen.goaway.or(Some(code(4)).filter(|code| *code != 0)),
            RST_STREAM => self.seen.resets.push(code(0)),
            PING if flags & ACK != 0 => self.seen.pongs.push(payload),
            SETTINGS if flags & ACK != 0 => self.seen.settings_acks += 1,
            SETTINGS => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
            HEADERS => self.seen.heads += 1,
            DATA => self.seen.data += payload.len(),
            _ => {}
        }
        self.seen.answered |= matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
    }

    async fn until(&mut self, enough: impl Fn(&Seen) -> bool) -> bool {
        let wait = async {
            while !enough(&self.seen) && !self.seen.closed {
                self.next().await;
            }
        };
        let _ = timeout(MINUTE, wait).await;
        enough(&self.seen)
    }

    /// Whether what was wanted comes.
    async fn gets(&mut self, want: Want) -> bool {
        match want {
            Want::Answer => self.until(|seen| seen.answered).await && self.seen.resets.is_empty(),
            Want::Works => {
                self.send(&frame(PING, 0, 0, b"still on")).await;
                self.until(|seen| seen.pongs.iter().any(|pong| pong == b"still on")).await
            }
            Want::End(codes) => {
                self.until(|seen| seen.closed).await;
                self.seen.closed
                    && self.seen.goaway.is_none_or(|code| code == PROTOCOL || codes.contains(&code))
                    && !self.seen.answered
            }
            Want::Reset(codes) => {
                let met = |seen: &Seen| seen.goaway.iter().chain(&seen.resets).any(|code| codes.contains(code));
                self.until(|seen| met(seen) || seen.closed).await
            }
            Want::OneByte => {
                self.until(|seen| seen.data == 1).await && {
                    self.send(&frame(PING, 0, 0, b"and then")).await;
                    self.until(|seen| !seen.pongs.is_empty()).await && self.seen.data == 1
                }
            }
            Want::Pong(octets) => self.until(|seen| !seen.pongs.is_empty()).await && self.seen.pongs[0] == octets,
        }
    }
}

struct Case {
    name: &'static str,
    steps: Vec<Step>,
    want: Want,
}

fn case(name: &'static str, want: Want, frames: &[Vec<u8>]) -> Case {
    Case { name, steps: vec![Step::Send(frames.concat())], want }
}

/// The frames of `then` are sent once stream 1 has its answer.
fn after_answer(name: &'static str, want: Want, first: &[Vec<u8>], then: &[Vec<u8>]) -> Case {
    Case { name, steps: vec![Step::Send(first.concat()), Step::Answered, Step::Send(then.concat())], want }
}

/// A field as a literal that no table keeps (RFC 7541 §6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        field.push(u8::try_from(text.len()).expect("short"));
        field.extend(text.as_bytes());
    }
    field
}

fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    all.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/v1/echo"), (":authority", "localhost")];

fn get() -> Vec<u8> {
    fields(&GET)
}

/// A GET with more at its end.
fn get_and(more: &[(&str, &str)]) -> Vec<u8> {
    [get(), fields(more)].concat()
}

/// A GET without one of its pseudo fields.
fn get_without(name: &str) -> Vec<u8> {
    fields(&GET.into_iter().filter(|field| field.0 != name).collect::<Vec<_>>())
}

fn post(more: &[(&str, &str)]) -> Vec<u8> {
    let head = [(":method", "POST"), (":scheme", "http"), (":path", "/v1/echo"), (":authority", "localhost")];
    [fields(&head), fields(more)].concat()
}

/// A request whole in one frame.
fn request(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, block)
}

/// A head whose body follows.
fn open(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, block)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &setting(id, value))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// A frame with a payload that is padded by `pad` octets, more than there are where the case wants that.
fn padded(kind: u8, flags: u8, stream: u32, payload: &[u8], pad: u8, there: usize) -> Vec<u8> {
    frame(kind, flags | PADDED, stream, &[&[pad], payload, &vec![0; there]].concat())
}

/// A priority: what it depends on, and a weight.
fn depends(on: u32) -> Vec<u8> {
    [&on.to_be_bytes()[..], &[15]].concat()
}

fn fill(octets: usize) -> Vec<u8> {
    vec![b'a'; octets]
}

fn framing() -> Vec<Case> {
    use Want::{Answer, End, Pong, Reset, Works};
    let two = |first: Vec<u8>, second: Vec<u8>| vec![first, second];
    vec![
        case("3.4 a request after the preface", Answer, &[request(1, &get())]),
        case("4.1 a frame of an unknown kind is ignored", Works, &[frame(0x16, 0, 0, &[0; 8])]),
        case("4.1 undefined flags are ignored", Pong(*b"whatever"), &[frame(PING, 0x16, 0, b"whatever")]),
        case("4.1 the reserved bit is ignored", Pong(*b"reserved"), &[frame(PING, 0, 1 << 31, b"reserved")]),
        case("4.2 DATA of the largest size", Answer, &[open(1, &post(&[])), frame(DATA, END_STREAM, 1, &fill(16_384))]),
        case("4.2 DATA over it", Reset(&[SIZE]), &[open(1, &post(&[])), frame(DATA, END_STREAM, 1, &fill(16_385))]),
        case("4.2 a head over it", End(&[SIZE]), &[request(1, &[get(), fill(16_385)].concat())]),
        case("4.2 SETTINGS over it", End(&[SIZE]), &[frame(SETTINGS, 0, 0, &setting(0xff, 0).repeat(2_732))]),
        case("4.3 a block that cannot be read", End(&[COMPRESSION]), &[request(1, &[0x82, 0x40])]),
        case(
            "4.3 PRIORITY within a block",
            End(&[PROTOCOL]),
            &two(frame(HEADERS, 1, 1, &get()), frame(PRIORITY, 0, 1, &depends(0))),
        ),
        case(
            "4.3 HEADERS of another stream within a block",
            End(&[PROTOCOL]),
            &two(frame(HEADERS, 1, 1, &get()), request(3, &get())),
        ),
        case(
            "5.5 a frame of an unknown kind within a block",
            End(&[PROTOCOL]),
            &two(frame(HEADERS, 1, 1, &get()), frame(0x16, 0, 0, &[0; 8])),
        ),
        case("5.5 an unknown setting", Works, &[settings(0xff, 1)]),
        case("6.1 DATA of no stream", End(&[PROTOCOL]), &two(open(1, &post(&[])), frame(DATA, END_STREAM, 0, b"x"))),
        case("6.1 DATA padded", Answer, &two(open(1, &post(&[])), padded(DATA, END_STREAM, 1, b"abc", 4, 4))),
        case(
            "6.1 DATA padded by more than there is",
            End(&[PROTOCOL]),
            &two(open(1, &post(&[])), padded(DATA, END_STREAM, 1, b"abc", 9, 4)),
        ),
        case("6.2 HEADERS of no stream", End(&[PROTOCOL]), &[request(0, &get())]),
        case("6.2 HEADERS padded", Answer, &[padded(HEADERS, WHOLE, 1, &get(), 4, 4)]),
        case(
            "6.2 HEADERS padded by more than there is",
            End(&[PROTOCOL]),
            &[padded(HEADERS, WHOLE, 1, &get(), 255, 0)],
        ),
        case(
            "6.2 HEADERS with a priority",
            Answer,
            &[frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[depends(0), get()].concat())],
        ),
        case("6.3 PRIORITY of an idle stream", Answer, &two(frame(PRIORITY, 0, 5, &depends(0)), request(1, &get()))),
        case("6.3 PRIORITY of no stream", End(&[PROTOCOL]), &[frame(PRIORITY, 0, 0, &depends(0))]),
        case("6.3 PRIORITY of another size", Reset(&[SIZE]), &two(open(1, &post(&[])), frame(PRIORITY, 0, 1, &[0; 4]))),
        case("6.4 RST_STREAM of no stream", End(&[PROTOCOL]), &[reset(0)]),
        case("6.4 RST_STREAM of an idle stream", End(&[PROTOCOL]), &[reset(1)]),
        case(
            "6.4 RST_STREAM of another size",
            End(&[SIZE]),
            &two(open(1, &post(&[])), frame(RST_STREAM, 0, 1, &[0; 3])),
        ),
    ]
}

fn control() -> Vec<Case> {
    use Want::{Answer, End, Pong, Reset, Works};
    let two = |first: Vec<u8>, second: Vec<u8>| vec![first, second];
    vec![
        case("6.5 an acknowledgement with a payload", End(&[SIZE]), &[frame(SETTINGS, ACK, 0, &[0])]),
        case("6.5 SETTINGS of a stream", End(&[PROTOCOL]), &[frame(SETTINGS, 0, 1, &setting(3, 100))]),
        case("6.5 SETTINGS of a size that 6 does not divide", End(&[SIZE]), &[frame(SETTINGS, 0, 0, &[0; 3])]),
        case("6.5.2 push neither on nor off", End(&[PROTOCOL]), &[settings(2, 2)]),
        case("6.5.2 a window over 2^31-1", End(&[FLOW]), &[settings(4, 1 << 31)]),
        case("6.5.2 frames smaller than allowed", End(&[PROTOCOL]), &[settings(5, 16_383)]),
        case("6.5.2 frames larger than allowed", End(&[PROTOCOL]), &[settings(5, 1 << 24)]),
        case("6.7 a ping is answered", Pong(*b"12345678"), &[frame(PING, 0, 0, b"12345678")]),
        case("6.7 the answer to no ping is ignored", Works, &[frame(PING, ACK, 0, b"12345678")]),
        case("6.7 PING of a stream", End(&[PROTOCOL]), &[frame(PING, 0, 1, b"12345678")]),
        case("6.7 PING of another size", End(&[SIZE]), &[frame(PING, 0, 0, b"123456")]),
        case("6.8 GOAWAY of a stream", End(&[PROTOCOL]), &[frame(GOAWAY, 0, 1, &[0; 8])]),
        case("6.9 a window that grows by nothing", End(&[PROTOCOL]), &[frame(WINDOW_UPDATE, 0, 0, &[0; 4])]),
        case(
            "6.9 a stream's window that grows by nothing",
            Reset(&[PROTOCOL]),
            &two(open(1, &post(&[])), frame(WINDOW_UPDATE, 0, 1, &[0; 4])),
        ),
        case("6.9 WINDOW_UPDATE of another size", End(&[SIZE]), &[frame(WINDOW_UPDATE, 0, 0, &[0; 3])]),
        case("6.9.1 the window is kept", Want::OneByte, &two(settings(4, 1), request(1, &get()))),
        case(
            "6.9.1 a connection's window over 2^31-1",
            End(&[FLOW]),
            &[frame(WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes()).repeat(2)],
        ),
        case(
            "6.9.1 a stream's window over 2^31-1",
            Reset(&[FLOW]),
            &two(open(1, &post(&[])), frame(WINDOW_UPDATE, 0, 1, &i32::MAX.to_be_bytes()).repeat(2)),
        ),
        case("6.9.2 a window opened later", Want::OneByte, &[settings(4, 0), request(1, &get()), settings(4, 1)]),
        case(
            "6.9.2 a window that became negative",
            Want::OneByte,
            &[settings(4, 3), settings(4, 0), request(1, &get()), frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())],
        ),
        case(
            "6.10 a head in three pieces",
            Answer,
            &[
                frame(HEADERS, END_STREAM, 1, &get()[..10]),
                frame(CONTINUATION, 0, 1, &get()[10..20]),
                frame(CONTINUATION, END_HEADERS, 1, &get()[20..]),
            ],
        ),
        case(
            "6.10 another frame between the pieces",
            End(&[PROTOCOL]),
            &[
                frame(HEADERS, END_STREAM, 1, &get()),
                frame(CONTINUATION, 0, 1, &literal("x", "y")),
                frame(DATA, END_STREAM, 1, b"x"),
            ],
        ),
        case(
            "6.10 a piece of no stream",
            End(&[PROTOCOL]),
            &two(frame(HEADERS, END_STREAM, 1, &get()), frame(CONTINUATION, END_HEADERS, 0, &[])),
        ),
        case(
            "6.10 a piece after a whole head",
            End(&[PROTOCOL]),
            &two(open(1, &post(&[])), frame(CONTINUATION, END_HEADERS, 1, &literal("x", "y"))),
        ),
        case(
            "6.10 a piece after the last piece",
            End(&[PROTOCOL]),
            &[
                frame(HEADERS, 0, 1, &post(&[])),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ],
        ),
        case(
            "6.10 a piece after DATA",
            End(&[PROTOCOL]),
            &[open(1, &post(&[])), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &[])],
        ),
        case(
            "7 RST_STREAM with an unknown code",
            Works,
            &two(open(1, &post(&[])), frame(RST_STREAM, 0, 1, &0xff_u32.to_be_bytes())),
        ),
        case(
            "8.4 PUSH_PROMISE from a client",
            End(&[PROTOCOL]),
            &two(
                open(1, &post(&[])),
                frame(PUSH_PROMISE, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], &get()].concat()),
            ),
        ),
    ]
}

fn streams() -> Vec<Case> {
    use Want::{Answer, End, Reset, Works};
    let whole = || request(1, &get());
    let half = || open(1, &post(&[]));
    let data = || frame(DATA, END_STREAM, 1, b"x");
    let piece = || frame(CONTINUATION, END_HEADERS, 1, &literal("x", "y"));
    let grows = |stream| frame(WINDOW_UPDATE, 0, stream, &100_u32.to_be_bytes());
    let many = (0..400_u32).map(|number| open(number * 2 + 1, &post(&[]))).collect::<Vec<_>>();
    vec![
        case("5.1 idle: DATA", End(&[PROTOCOL, CLOSED]), &[data()]),
        case("5.1 idle: WINDOW_UPDATE", End(&[PROTOCOL]), &[grows(1)]),
        case("5.1 idle: CONTINUATION", End(&[PROTOCOL]), &[piece()]),
        case(
            "5.1 half closed: WINDOW_UPDATE and PRIORITY",
            Answer,
            &[whole(), grows(1), frame(PRIORITY, 0, 1, &depends(0))],
        ),
        case("5.1 half closed: DATA", Reset(&[CLOSED, PROTOCOL]), &[whole(), data()]),
        case("5.1 half closed: HEADERS", Reset(&[CLOSED, PROTOCOL]), &[whole(), whole()]),
        case("5.1 half closed: CONTINUATION", End(&[CLOSED, PROTOCOL]), &[whole(), piece()]),
        case("5.1 reset: DATA", Reset(&[CLOSED, PROTOCOL]), &[half(), reset(1), data()]),
        case("5.1 reset: HEADERS", Reset(&[CLOSED, PROTOCOL]), &[half(), reset(1), whole()]),
        case("5.1 reset: CONTINUATION", Reset(&[CLOSED, PROTOCOL]), &[half(), reset(1), piece()]),
        case("5.1 reset: PRIORITY", Works, &[half(), reset(1), frame(PRIORITY, 0, 1, &depends(0))]),
        after_answer("5.1 closed: DATA", Reset(&[CLOSED, PROTOCOL]), &[whole()], &[data()]),
        after_answer("5.1 closed: HEADERS", Reset(&[CLOSED, PROTOCOL]), &[whole()], &[whole()]),
        after_answer("5.1 closed: CONTINUATION", Reset(&[CLOSED, PROTOCOL]), &[whole()], &[piece()]),
        after_answer(
            "5.1 closed: PRIORITY and WINDOW_UPDATE",
            Works,
            &[whole()],
            &[frame(PRIORITY, 0, 1, &depends(0)), grows(1)],
        ),
        after_answer("5.1 the next stream", Works, &[whole()], &[request(3, &get())]),
        case("5.1.1 a stream of an even number", End(&[PROTOCOL]), &[request(2, &get())]),
        case(
            "5.1.1 a number smaller than the last",
            End(&[PROTOCOL, CLOSED]),
            &[request(5, &get()), request(3, &get())],
        ),
        case("5.1.2 more streams than allowed", Reset(&[PROTOCOL, REFUSED]), &many),
        case(
            "5.3.1 a head that depends on itself",
            Reset(&[PROTOCOL]),
            &[frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[depends(1), get()].concat())],
        ),
        case(
            "5.3.1 a priority that depends on itself",
            Reset(&[PROTOCOL]),
            &[half(), frame(PRIORITY, 0, 1, &depends(1))],
        ),
    ]
}

fn messages() -> Vec<Case> {
    use Want::{Answer, Reset};
    const MALFORMED: Want = Reset(&[PROTOCOL]);
    let trailers = |block: &[u8]| [open(1, &post(&[])), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE, 1, block)];
    let late = fields(&[GET[0], GET[1], GET[2], ("x-late", "1"), GET[3]]);
    let twice = |name: &'static str, value: &'static str| request(1, &[fields(&[(name, value)]), get()].concat());
    let length = |said: &str, parts: &[&[u8]]| {
        let (last, before) = parts.split_last().expect("a part");
        let mut frames = vec![open(1, &post(&[("content-length", said)]))];
        frames.extend(before.iter().map(|part| frame(DATA, 0, 1, part)));
        frames.push(frame(DATA, END_STREAM, 1, last));
        frames
    };
    vec![
        case("8.1 POST", Answer, &[open(1, &post(&[])), frame(DATA, END_STREAM, 1, b"test")]),
        case("8.1 trailers", Answer, &trailers(&literal("x-end", "1"))),
        case("8.1 a second head that ends nothing", MALFORMED, &[open(1, &post(&[])), open(1, &literal("x-end", "1"))]),
        case("8.1.1 a length of one and a body of four", MALFORMED, &length("1", &[b"test"])),
        case("8.1.1 a length of one and two bodies of four", MALFORMED, &length("1", &[b"test", b"test"])),
        case("8.1.1 a length that is met", Answer, &length("8", &[b"test", b"test"])),
        case("8.2.1 a name in upper case", MALFORMED, &[request(1, &get_and(&[("X-TEST", "ok")]))]),
        case("8.2.2 connection", MALFORMED, &[request(1, &get_and(&[("connection", "keep-alive")]))]),
        case("8.2.2 keep-alive", MALFORMED, &[request(1, &get_and(&[("keep-alive", "timeout=5")]))]),
        case("8.2.2 proxy-connection", MALFORMED, &[request(1, &get_and(&[("proxy-connection", "close")]))]),
        case("8.2.2 transfer-encoding", MALFORMED, &[request(1, &get_and(&[("transfer-encoding", "chunked")]))]),
        case("8.2.2 upgrade", MALFORMED, &[request(1, &get_and(&[("upgrade", "h2c")]))]),
        case("8.2.2 te other than trailers", MALFORMED, &[request(1, &get_and(&[("te", "trailers, deflate")]))]),
        case("8.2.2 te trailers", Answer, &[request(1, &get_and(&[("te", "trailers")]))]),
        case("8.3 an unknown pseudo field", MALFORMED, &[twice(":test", "ok")]),
        case("8.3 a pseudo field of answers", MALFORMED, &[twice(":status", "200")]),
        case("8.3 a pseudo field in trailers", MALFORMED, &trailers(&literal(":method", "GET"))),
        case("8.3 a pseudo field after others", MALFORMED, &[request(1, &late)]),
        case("8.3.1 an empty path", MALFORMED, &[request(1, &[get_without(":path"), literal(":path", "")].concat())]),
        case("8.3.1 no method", MALFORMED, &[request(1, &get_without(":method"))]),
        case("8.3.1 no scheme", MALFORMED, &[request(1, &get_without(":scheme"))]),
        case("8.3.1 no path", MALFORMED, &[request(1, &get_without(":path"))]),
        case("8.3.1 two methods", MALFORMED, &[twice(":method", "GET")]),
        case("8.3.1 two schemes", MALFORMED, &[twice(":scheme", "http")]),
        case("8.3.1 two paths", MALFORMED, &[twice(":path", "/")]),
    ]
}

/// RFC 7541.
fn compression() -> Vec<Case> {
    use Want::{Answer, End, Works};
    const UNREADABLE: Want = End(&[COMPRESSION]);
    let with = |more: &[u8]| [request(1, &[get(), more.to_vec()].concat())];
    // `:authority` in place of a name: 0x41, and a value in Huffman's code.
    let huffman = |octets: &[u8]| {
        let length = 0x80 | u8::try_from(octets.len()).expect("short");
        [request(1, &[get_without(":authority"), vec![0x41, length], octets.to_vec()].concat())]
    };
    vec![
        case("2.3.3 a field of an index that has none", UNREADABLE, &with(&[0xc6])),
        case("2.3.3 a name of an index that has none", UNREADABLE, &with(&[0x7f, 0x07, 1, b'x'])),
        case("4.2 a table resized at the end of a block", UNREADABLE, &with(&[0x20])),
        case("4.2 a table resized at the start of a block", Answer, &[request(1, &[vec![0x20], get()].concat())]),
        case("5.2 Huffman's code", Answer, &huffman(&[0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09])),
        case("5.2 padded by more than seven bits", UNREADABLE, &huffman(&[0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09, 0xff])),
        case("5.2 padded by other bits than EOS", UNREADABLE, &huffman(&[0x1c, 0x64, 0x00])),
        case("5.2 with EOS in it", UNREADABLE, &huffman(&[0x1c, 0x64, 0xff, 0xff, 0xff, 0xff])),
        case("6.1 the index nought", UNREADABLE, &with(&[0x80])),
        case("6.2.1 a literal for the table, and its index", Answer, &with(&[0x40, 1, b'x', 1, b'y', 0xbe])),
        case("6.2.3 a literal that is never indexed", Answer, &with(&[0x10, 1, b'x', 1, b'y'])),
        case(
            "6.3 a table larger than was allowed",
            UNREADABLE,
            &[request(1, &[vec![0x3f, 0xff, 0xff, 0x7f], get()].concat())],
        ),
        case("6.3 our own table made smaller", Works, &[settings(1, 0), request(1, &get())]),
    ]
}

#[tokio::test(start_paused = true)]
async fn every_rule_of_the_protocol_is_kept() {
    let cases: Vec<Case> = [framing(), control(), streams(), messages(), compression()].into_iter().flatten().collect();
    let (mut broken, total) = (Vec::new(), cases.len());
    for Case { name, steps, want } in cases {
        let site = Setup::default().memory();
        let mut talk = Talk::on(&site);
        talk.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        for step in steps {
            match step {
                Step::Send(bytes) => talk.send(&bytes).await,
                Step::Answered => assert!(talk.until(|seen| seen.answered).await, "{name}: {:?}", talk.seen),
            }
        }
        if !talk.gets(want).await {
            broken.push(format!("{name}: wanted {want:?}, got {:?}", talk.seen));
        }
        drop(talk);
        nobody_else_notices(&site).await;
    }
    assert!(broken.is_empty(), "{} of {total}:\n{}", broken.len(), broken.join("\n"));
    assert!(total >= 110, "{total}");
}
