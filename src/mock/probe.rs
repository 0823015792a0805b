//! Routes the service does not have, for tests: what arrived, bodies of any size, timed events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::handler::{Call, Cut};
use super::reply::{Reply, error, event_list, events, typed};
use super::routes::{describe, ok, query};
use super::webhook::hex;

/// Longest gap between two events.
const GAP_MS: u64 = 3_600_000;

/// `/v1/echo`: method, path, headers as received, length and SHA-256 of the body.
pub(super) async fn echo(call: &Call, mut body: Incoming) -> Result<Response<Reply>, Cut> {
    let (mut length, mut hash) = (0_usize, digest::Context::new(&digest::SHA256));
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len();
            hash.update(&data);
        }
    }
    let mut answer = describe(&call.method, &call.uri, &call.headers);
    answer["body_bytes"] = length.into();
    answer["body_sha256"] = hex(hash.finish().as_ref()).into();
    Ok(ok(&answer))
}

/// `/v1/bytes/{n}`: a body of `n` zeroes.
pub(super) fn bytes(n: &str) -> Response<Reply> {
    match n.parse() {
        Ok(n) => typed(StatusCode::OK, "application/octet-stream", Reply::zeroes(n)),
        Err(_) => error(StatusCode::NOT_FOUND, "not found"),
    }
}

/// `/v1/sse?events=N&gap_ms=G`: each event says its number and when it was sent.
pub(super) fn sse(call: &Call) -> Response<Reply> {
    let number = |name: &str, default: u64| query(&call.uri, name).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (count, gap) = (number("events", 10), Duration::from_millis(number("gap_ms", 0).min(GAP_MS)));
    if count == 0 {
        return event_list(&call.shared, VecDeque::new());
    }
    let (mut n, epoch) = (0, call.shared.epoch);
    events(&Arc::clone(&call.shared), gap, move || {
        n += 1;
        (n <= count).then(|| {
            let sent = epoch.micros(Instant::now());
            Bytes::from(format!("data: {{\"n\":{n},\"sent_us\":{sent}}}\n\n"))
        })
    })
}
