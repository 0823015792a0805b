use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Heads passed, bytes passed, and what came after them.
type Verdict = (u64, usize, Then);

fn whole(bytes: &[u8]) -> Verdict {
    let mut scanner = Scanner::default();
    let seen = scanner.feed(bytes);
    (scanner.heads(), seen.passed, seen.then)
}

/// As the gate does it: what has been passed is gone, a piece of a head stays.
fn in_pieces(bytes: &[u8], cuts: &[usize]) -> Verdict {
    let mut scanner = Scanner::default();
    let (mut passed, mut end) = (0, 0);
    let cuts = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]);
    let mut then = Then::More;
    for cut in cuts {
        if cut <= end {
            continue;
        }
        end = cut;
        let seen = scanner.feed(&bytes[passed..end]);
        passed += seen.passed;
        then = seen.then;
        if matches!(then, Then::BadHead(_) | Then::BadBody) {
            break;
        }
    }
    (scanner.heads(), passed, then)
}

fn is_bad(text: &str) -> bool {
    matches!(whole(text.as_bytes()).2, Then::BadHead(_) | Then::BadBody)
}

/// What hyper makes of bytes.
#[derive(Debug)]
struct Parsed {
    requests: u64,
    /// Their bodies did not come whole.
    broken: usize,
    /// hyper has refused a head.
    refused: bool,
}

fn parsed_by_hyper(bytes: &[u8]) -> Parsed {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let (count, broken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, broke) = (Arc::clone(&count), Arc::clone(&broken));
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let broke = Arc::clone(&broke);
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                if request.into_body().collect().await.is_err() {
                    broke.fetch_add(1, Ordering::SeqCst);
                }
                Ok::<_, Infallible>(Response::new(Full::new(::bytes::Bytes::new())))
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.half_close(true).max_buf_size(1 << 18);
        let served = tokio::spawn(builder.serve_connection(TokioIo::new(far), service));
        near.write_all(bytes).await.expect("room for all");
        near.shutdown().await.expect("open");
        let mut answers = Vec::new();
        near.read_to_end(&mut answers).await.expect("read");
        let _ = served.await;
        Parsed {
            requests: count.load(Ordering::SeqCst),
            broken: broken.load(Ordering::SeqCst),
            refused: answers.windows(10).any(|at| at == b"HTTP/1.1 4"),
        }
    })
}

/// Well-formed messages, to be spoilt.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("GET /v1/x?a=%20|{}^[]\\` HTTP/1.1\r\n"),
        Just("POST /v1/{a}|^[b]~;c=d HTTP/1.1\r\n"),
        Just("\r\nPUT http://localhost:8787/a?b HTTP/1.1\r\n"),
        Just("OPTIONS * HTTP/1.1\r\n"),
        Just("GET http://[::1]?q HTTP/1.1\r\n"),
        Just("DELETE / HTTP/1.1\r\n"),
    ];
    let field = prop_oneof![
        Just("accept: */*\r\n"),
        Just("x-empty:\r\n"),
        Just("x-tab: a\tb \t\r\n"),
        Just("x-high: \u{e9}\u{ff}\r\n"),
        Just("user-agent: someone/1.0 (a long one, so that words of eight bytes are filled)\r\n"),
        Just("expect: 100-continue\r\n"),
        Just("connection: keep-alive, x-hop\r\n"),
        Just("upgrade: h2c\r\n"),
    ];
    let body = prop_oneof![
        Just("\r\n"),
        Just("Content-Length: 5\r\n\r\nhello"),
        Just("content-length: 0\r\n\r\n"),
        Just("Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n00\r\n\r\n"),
        Just(
            "transfer-encoding: chunked\r\n\r\n1;a=b\r\nx\r\nA;c=\"d e\"\r\n0123456789\r\n0;z\r\nx-sum: 1\r\ny:\r\n\r\n"
        ),
    ];
    (line, prop::collection::vec(field, 0..4), body)
        .prop_map(|(line, fields, body)| format!("{line}Host: localhost\r\n{}{body}", fields.concat()).into_bytes())
}

fn spoilt() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"\r\n \t:;,0123456789abcdef\0\x7f\x80#\"*/".to_vec()),];
    let piece = prop::sample::select(vec![
        "\r\n",
        "\n",
        "\r\n ",
        "chunked",
        "Content-Length: 3\r\n",
        "Host: a\r\n",
        " ",
        "0\r\n\r\n",
    ]);
    let edit = prop_oneof![
        4 => (any::<prop::sample::Index>(), 0_usize..3, prop::collection::vec(byte, 0..3)),
        1 => (any::<prop::sample::Index>(), 0_usize..2, piece.prop_map(|piece| piece.as_bytes().to_vec())),
    ];
    (prop::collection::vec(message(), 1..4), prop::collection::vec(edit, 0..4)).prop_map(|(messages, edits)| {
        let mut bytes = messages.concat();
        for (at, remove, insert) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + remove).min(bytes.len());
            bytes.splice(at..end, insert);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_verdict_does_not_depend_on_how_reads_are_split(bytes in spoilt(), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(in_pieces(&bytes, &cuts), whole(&bytes));
        let each: Vec<_> = (0..bytes.len()).collect();
        prop_assert_eq!(in_pieces(&bytes, &each), whole(&bytes));
    }

    #[test]
    fn good_messages_are_passed(messages in prop::collection::vec(message(), 1..5)) {
        let bytes = messages.concat();
        prop_assert_eq!(whole(&bytes), (messages.len() as u64, bytes.len(), Then::More));
    }

    #[test]
    fn a_head_is_judged_as_if_none_had_been_before(message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut scanner = Scanner::default();
        for _ in 0..2 {
            prop_assert_eq!(scanner.feed(&message), Seen { passed: message.len(), then: Then::More });
        }
        let mut next = message;
        let at = at.index(next.len());
        next[at] = byte;
        let seen = scanner.feed(&next);
        prop_assert_eq!((scanner.heads() - 2, seen.passed, seen.then), whole(&next));
    }

    #[test]
    fn hyper_finds_the_same_messages_in_what_is_passed(bytes in spoilt()) {
        let mut scanner = Scanner::default();
        let passed = scanner.feed(&bytes).passed;
        let hyper = parsed_by_hyper(&bytes[..passed]);
        prop_assert!(!hyper.refused, "{hyper:?}");
        prop_assert_eq!(hyper.broken, usize::from(!scanner.between()), "{:?}", &hyper);
        // After an answer to HTTP/1.0 hyper closes.
        let closes = bytes.windows(9).any(|at| at == b" HTTP/1.0");
        prop_assert!(hyper.requests == scanner.heads() || closes && hyper.requests < scanner.heads(), "{hyper:?}");
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        whole(&bytes);
    }
}

#[test]
fn a_head_trickled_byte_by_byte_is_bounded() {
    let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {}", "y".repeat(70_000));
    assert!(matches!(whole(long.as_bytes()).2, Then::BadHead(Rejection::HeadTooLarge { .. })));
    let steps: Vec<_> = (0..long.len()).step_by(997).collect();
    assert_eq!(in_pieces(long.as_bytes(), &steps), whole(long.as_bytes()));
    let target = format!("GET /{}", "y".repeat(20_000));
    assert!(matches!(whole(target.as_bytes()).2, Then::BadHead(Rejection::TargetTooLong { .. })));
    assert!(is_bad(&"M".repeat(40)));
}

#[test]
fn chunked_bodies_are_read_strictly() {
    let with = |body: &str| format!("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    for good in ["0\r\n\r\n", "000\r\n\r\n", "a\r\n0123456789\r\n0\r\n\r\n", "1;x\r\na\r\n0;y=\"z\"\r\nt: 1\r\n\r\n"] {
        assert_eq!(whole(with(good).as_bytes()).2, Then::More, "{good:?}");
        assert!(whole(with(good).as_bytes()).1 == with(good).len());
    }
    for bad in [
        "\r\n",
        " 0\r\n\r\n",
        "0 \r\n\r\n",
        "0\n\r\n",
        "0x1\r\na\r\n",
        "+1\r\na\r\n",
        "g\r\n",
        "1\r\nab\r\n",
        "1\r\na\n0\r\n\r\n",
        "1\r\na\r0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "0\r\nbad trailer\r\n\r\n",
        "0\r\n folded\r\n\r\n",
        "0\r\n\n",
        "1;\r\na\r\n",
        "1;a\nb\r\n",
        "-1\r\n",
        "1 ;a\r\n",
    ] {
        assert!(is_bad(&with(bad)), "{bad:?}");
    }
    assert!(is_bad(&with(&format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(5_000)))));
    assert!(is_bad(&with(&format!("0\r\nt: {}\r\n\r\n", "e".repeat(9_000)))));
}

#[test]
fn too_many_fields_are_told_by_their_number() {
    let with = |fields: u32| format!("GET / HTTP/1.1\r\nhost: h\r\n{}\r\n", "x: y\r\n".repeat(fields as usize - 1));
    assert!(!matches!(whole(with(100).as_bytes()).2, Then::BadHead(_)));
    let Then::BadHead(refused) = whole(with(101).as_bytes()).2 else { panic!("refused") };
    assert_eq!(refused, Rejection::TooManyFields { limit_fields: 100 });
    assert_eq!((refused.status().as_u16(), refused.code()), (431, "head_too_large"));
    assert_eq!(refused.to_string(), "the request head has more than 100 fields");
}
