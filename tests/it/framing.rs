//! The framing corpus: bytes of a client, and what must come of them (`tests/framing/*.toml`).
//!
//! `send` is written to a new connection, whole and in another run byte by byte, and the answer must be the same. In it and in what the
//! upstream must get, `\r \n \t \\ \xHH` are bytes, and `\{text*n}` is `text` n times. `answers` are the statuses in their order, with the
//! code where the answer must be ours (one `400 bad_request` where nothing is said); `closes` says whether the proxy ends the connection
//! (it does after what it refuses); `upstream` lists the requests that the upstream must get: no other, with no other fields, and no
//! other body. Where `whole` is false, it may have got a piece of one, but never all of it. `eof` ends our side after the last byte;
//! `wait_secs` is for how long the proxy may keep silent before the connection counts as open.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluicegate::connect::Connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::time::timeout;

use crate::support::config::Scratch;
use crate::support::recorder::{Raw, RawUpstream};
use crate::support::{FREE, KEY, connect};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    case: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[expect(dead_code, reason = "for the reader")]
    rfc: String,
    send: Text,
    #[serde(default = "refused")]
    answers: Vec<String>,
    closes: Option<bool>,
    #[serde(default)]
    eof: bool,
    #[serde(default = "patience")]
    wait_secs: u64,
    #[serde(default)]
    upstream: Vec<Expected>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    line: String,
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    body: String,
    #[serde(default = "yes")]
    whole: bool,
}

fn refused() -> Vec<String> {
    vec!["400 bad_request".into()]
}

fn patience() -> u64 {
    5
}

fn yes() -> bool {
    true
}

/// The bytes that an escaped text stands for.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let (escape, after) = rest[at + 1..].split_at(1);
        rest = after;
        match escape {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "\\" => bytes.push(b'\\'),
            "x" => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hexadecimal digits"));
                rest = &rest[2..];
            }
            "{" => {
                let (inner, after) = rest.split_once('}').expect("a closing brace");
                let (inner, times) = inner.rsplit_once('*').expect("a factor");
                bytes.extend(self::bytes(inner).repeat(times.parse().expect("a number")));
                rest = after;
            }
            other => panic!("\\{other} in {text:?}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// One answer: its status, and its code if it is ours.
#[derive(Debug)]
struct Answer {
    status: String,
    code: Option<String>,
    head: String,
}

/// Cuts what came into answers.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = vec![];
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_ascii_lowercase();
        bytes = &bytes[end..];
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        // Answers to HEAD have a length but no body.
        let length: usize = if bytes.is_empty() || bytes.starts_with(b"HTTP/1.") { 0 } else { length };
        let body: serde_json::Value = serde_json::from_slice(&bytes[..length]).unwrap_or_default();
        bytes = &bytes[length..];
        let status = head.split(' ').nth(1).expect("a status").to_owned();
        answers.push(Answer { status, code: body["code"].as_str().map(Into::into), head });
    }
    answers
}

/// What came of a case.
struct Outcome {
    received: Vec<u8>,
    closed: bool,
    upstream: Vec<Raw>,
}

async fn run(case: &Case, piece_bytes: usize) -> Outcome {
    let scratch = Scratch::new();
    let upstream = Arc::new(RawUpstream::default());
    let proxy = scratch.proxy(FREE, "", Arc::clone(&upstream) as Arc<dyn Connect>);
    let (mut reading, mut writing) = split(connect(&proxy));
    let sent = match &case.send {
        Text::One(text) => bytes(text),
        Text::Many(lines) => lines.iter().flat_map(|line| bytes(line)).collect(),
    };
    let eof = case.eof;
    let writer = tokio::spawn(async move {
        for piece in sent.chunks(piece_bytes) {
            // The proxy may have closed before it read all of it.
            if writing.write_all(piece).await.is_err() {
                break;
            }
            if piece_bytes < sent.len() {
                // Time stands still until the proxy has read this piece and waits for the next.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if eof {
            writing.shutdown().await.expect("open");
        }
        writing
    });
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    let closed = loop {
        match timeout(Duration::from_secs(case.wait_secs), reading.read(&mut buffer)).await {
            Ok(Ok(n @ 1..)) => received.extend_from_slice(&buffer[..n]),
            Ok(_) => break true,
            Err(_) => break false,
        }
    };
    drop((writer.await, reading));
    Outcome { received, closed, upstream: upstream.seen() }
}

/// What is wrong with an outcome.
fn verdict(case: &Case, outcome: &Outcome) -> String {
    let mut wrong = String::new();
    let got = answers(&outcome.received);
    let as_expected = got.len() == case.answers.len()
        && got.iter().zip(&case.answers).all(|(got, expected)| match expected.split_once(' ') {
            Some((status, code)) => got.status == status && got.code.as_deref() == Some(code),
            None => got.status == *expected,
        });
    if !as_expected {
        let got: Vec<_> =
            got.iter().map(|got| format!("{} {}", got.status, got.code.as_deref().unwrap_or(""))).collect();
        let _ = write!(wrong, "\n  answered {got:?}, not {:?}", case.answers);
    }
    let good = case.answers.last().is_some_and(|last| last.starts_with('2'));
    let closes = case.closes.unwrap_or(!good);
    if outcome.closed != closes {
        let _ = write!(wrong, "\n  closed: {}", outcome.closed);
    }
    if let Some(last) = got.last() {
        // HTTP/1.0 closes without a word.
        let says = |what: &str| last.head.contains(&format!("\r\nconnection: {what}\r\n"));
        let told = says("close") || last.head.starts_with("http/1.0 ") && !says("keep-alive");
        let idle = case.answers.last().is_some_and(|last| last == "200") && case.wait_secs > 60;
        if told != closes && !idle {
            let _ = write!(wrong, "\n  closing was not told rightly: {:?}", last.head);
        }
    }
    for answer in got.iter().filter(|answer| answer.status != "100") {
        if !answer.head.contains("\r\nx-request-id: ") || !answer.head.contains("\r\nserver-timing: ") {
            let _ = write!(wrong, "\n  an answer without id or timings: {:?}", answer.head);
        }
    }
    let mut seen = outcome.upstream.iter();
    for expected in &case.upstream {
        match seen.next() {
            Some(raw) if is_as_expected(raw, expected) => {}
            None if !expected.whole => {}
            raw => {
                let _ = write!(wrong, "\n  the upstream got {}, not {expected:?}", raw.map_or("nothing".into(), shown));
            }
        }
    }
    for raw in seen {
        let _ = write!(wrong, "\n  the upstream also got {}", shown(raw));
    }
    wrong
}

fn shown(raw: &Raw) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let fields: Vec<_> = raw.fields.iter().map(|field| text(field)).collect();
    format!("{} {fields:?} {:?} whole: {}", text(&raw.line), text(&raw.body), raw.whole)
}

fn is_as_expected(raw: &Raw, expected: &Expected) -> bool {
    if !expected.whole {
        return !raw.whole;
    }
    let mut fields: Vec<Vec<u8>> = vec![b"host: localhost:1".to_vec(), format!("x-api-key: {KEY}").into_bytes()];
    for field in &expected.fields {
        let text = bytes(field);
        let lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec());
        fields.extend(lines.filter(|line| !line.is_empty()));
    }
    let mut got = raw.fields.clone();
    fields.sort();
    got.sort();
    raw.whole && raw.line == bytes(&expected.line) && got == fields && raw.body == bytes(&expected.body)
}

async fn file(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/framing").join(name).with_extension("toml");
    let text = std::fs::read_to_string(&path).expect("a file of the corpus");
    let corpus: Corpus = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut wrong = String::new();
    for case in &corpus.case {
        let long = matches!(&case.send, Text::One(text) if text.contains("\\{")) || matches!(case.send, Text::Many(_));
        for piece_bytes in [usize::MAX, if long { 509 } else { 1 }] {
            let found = verdict(case, &run(case, piece_bytes).await);
            if !found.is_empty() {
                let way = if piece_bytes == usize::MAX { "whole" } else { "in pieces" };
                let _ = write!(wrong, "\n{name}: {} ({way}){found}", case.name);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

macro_rules! corpus {
    ($($test:ident: $file:literal,)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $test() {
                file($file).await;
            }
        )*

        #[test]
        fn every_file_of_the_corpus_is_run() {
            let mut files: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/framing"))
                .expect("the corpus")
                .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").display().to_string())
                .collect();
            let mut run = vec![$($file),*];
            files.sort();
            run.sort_unstable();
            assert_eq!(files, run);
        }
    };
}

corpus! {
    request_lines: "request-line",
    targets: "target",
    hosts: "host",
    field_lines: "fields",
    content_length: "content-length",
    transfer_encoding: "transfer-encoding",
    chunked_bodies: "chunked",
    fields_of_one_connection: "connection",
    expectations: "expect",
    several_requests: "pipelining",
    sizes_and_clocks: "limits",
    http_1_0: "http10",
}
