//! The judge and the script over HTTP, below `/_mock/`: no key, not counted.

use std::sync::Arc;

use http::{Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::fault::Planned;
use super::handler::Cut;
use super::reply::{Reply, error};
use super::routes::{ok, query, read_json};
use super::server::Shared;
use super::stats::Seen;

/// Requests listed where no number is given.
const TAIL: usize = 50;

/// Answers a request below `/_mock/`.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    method: &Method,
    uri: &Uri,
    body: Incoming,
) -> Result<Response<Reply>, Cut> {
    match (method.as_str(), uri.path()) {
        ("GET", "/_mock/stats") => Ok(stats(shared)),
        ("GET", "/_mock/requests") => Ok(requests(shared, uri)),
        ("POST", "/_mock/reset") => {
            shared.books(super::books::Books::reset);
            Ok(ok(&json!({ "reset": true })))
        }
        ("POST", "/_mock/faults") => {
            let list = match read_json(body).await? {
                Ok(list) => list,
                Err(answer) => return Ok(answer),
            };
            Ok(match serde_json::from_value::<Vec<Planned>>(list) {
                Ok(faults) => {
                    let count = faults.len();
                    shared.books(|books| books.script.add(faults));
                    ok(&json!({ "added": count }))
                }
                Err(e) => error(StatusCode::UNPROCESSABLE_ENTITY, &e.to_string()),
            })
        }
        _ => Ok(error(StatusCode::NOT_FOUND, "not found")),
    }
}

fn stats(shared: &Shared) -> Response<Reply> {
    let (mut stats, _) = shared.peek(super::books::Books::stats);
    stats.keys = std::mem::take(&mut stats.keys).into_iter().map(|(key, stats)| (masked(&key), stats)).collect();
    match serde_json::to_value(&stats) {
        Ok(stats) => ok(&stats),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

fn requests(shared: &Shared, uri: &Uri) -> Response<Reply> {
    let tail = query(uri, "tail").and_then(|n| n.parse().ok()).unwrap_or(TAIL);
    let seen: Vec<Seen> = shared.peek(|books| {
        let log = books.log.iter();
        let skip = log.len().saturating_sub(tail);
        log.skip(skip).cloned().collect()
    });
    let line = |seen: &Seen| {
        json!({
            "at_us": shared.epoch.micros(seen.at), "method": seen.method.as_str(), "path": seen.path,
            "status": seen.status, "key": masked(&seen.key), "job": seen.job, "counted": seen.counted,
        })
    };
    ok(&Value::Array(seen.iter().map(line).collect()))
}

/// Someone may try the mock with a real key: only its last characters are shown.
fn masked(key: &str) -> String {
    match key.char_indices().rev().nth(3) {
        Some((tail, _)) if key.chars().count() > 12 => format!("...{}", &key[tail..]),
        _ => key.to_owned(),
    }
}
