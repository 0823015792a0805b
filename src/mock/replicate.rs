//! The mock as `api.replicate.com`: three ways to create, `Prefer: wait`, absolute URLs, `POST` to cancel, problems with a `detail`.
//!
//! Its words and URLs are its own: what it says of the proxy must not rest on the proxy's code. One count of requests stands for
//! Replicate's two.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::handler::{Call, Cut};
use super::jobs::{Ending, Job, NewJob};
use super::predictions::{ending, run_time, start_new};
use super::reply::{Reply, event_list, json_reply};
use super::routes::{ok, query, read_json};

/// The one version that every model has.
const VERSION: &str = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa";
/// `Prefer: wait` without a number, and the most that it may ask for.
const WAIT_SECS: u64 = 60;
/// Predictions in a list.
const PAGE: usize = 100;

/// Carries out a request that was let in.
pub(super) async fn route(call: &Call, path: &[&str], body: Incoming) -> Result<Response<Reply>, Cut> {
    match (call.method.as_str(), path) {
        ("POST", ["v1", "predictions"]) => create(call, None, body).await,
        ("POST", ["v1", "models" | "deployments", owner, name, "predictions"]) => {
            create(call, Some(format!("{owner}/{name}")), body).await
        }
        ("GET", ["v1", "predictions"]) => Ok(list(call)),
        ("GET", ["v1", "predictions", id]) => Ok(with_job(call, id, |job| ok(&prediction(call, job, None)))),
        ("POST", ["v1", "predictions", id, "cancel"]) => Ok(cancel(call, id)),
        ("GET", ["v1", "streams", id]) => Ok(stream(call, id).await),
        ("GET", ["v1", "account"]) => Ok(ok(&json!({ "type": "user", "username": "mock", "name": "The mock" }))),
        ("GET", ["v1", "models", owner, name]) => Ok(ok(&model(call, owner, name))),
        ("GET", ["v1", "models", _, _, "versions"]) => {
            Ok(ok(&json!({ "previous": null, "next": null, "results": [version(call, VERSION)] })))
        }
        ("GET", ["v1", "models", _, _, "versions", id]) => Ok(ok(&version(call, id))),
        _ => Ok(problem(StatusCode::NOT_FOUND, "The requested resource could not be found.")),
    }
}

/// An error: RFC 7807, as Replicate writes it.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response<Reply> {
    let title = status.canonical_reason().unwrap_or_default();
    let mut answer = json_reply(status, &json!({ "title": title, "detail": detail, "status": status.as_u16() }));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    answer
}

/// The refusal for the rate: how long to wait stands in the text alone.
pub(super) fn throttled(wait: Duration) -> Response<Reply> {
    let seconds = super::epoch::ceil_secs(wait).max(1);
    problem(
        StatusCode::TOO_MANY_REQUESTS,
        &format!("Request was throttled. Your rate limit for creating predictions resets in ~{seconds}s."),
    )
}

async fn create(call: &Call, model: Option<String>, body: Incoming) -> Result<Response<Reply>, Cut> {
    let body = match read_json(body).await? {
        Ok(body) => body,
        Err(answer) => return Ok(answer),
    };
    let invalid = |detail| Ok(problem(StatusCode::UNPROCESSABLE_ENTITY, detail));
    if !body["input"].is_object() {
        return invalid("- input: input is required");
    }
    // `owner/name:hash`, or the hash alone.
    let asked =
        body["version"].as_str().or(body["model"].as_str()).map(|text| text.split_once(':').unwrap_or(("", text)));
    let (model, version) = match (model, asked) {
        (Some(model), _) => (model, VERSION),
        (None, Some((model, version))) if model.contains('/') => (model.to_owned(), version),
        (None, Some((_, version))) if version.contains('/') => (version.to_owned(), VERSION),
        (None, Some((_, version))) => ("mock/model".to_owned(), version),
        (None, None) => return invalid("- version: version is required"),
    };
    let new = NewJob {
        model,
        version: version.to_owned(),
        origin: origin(call),
        input: body["input"].clone(),
        run_time: Duration::ZERO,
        ending: ending(&body["input"]),
        watched: true,
    };
    let job = match start_new(call, &body, new, run_time(&body["input"])) {
        Ok(job) => job,
        Err(status) => return Ok(problem(status, "You have reached your limit of predictions that run at once.")),
    };
    let status = StatusCode::from_u16(call.shared.options.create_status).unwrap_or(StatusCode::CREATED);
    let wait = wait(&call.headers);
    let until = Instant::now() + wait.unwrap_or_default();
    let job = ended(call, &job.id, until).await.unwrap_or(job);
    // Whatever it does by then: SDKs take any other word for the end.
    let word = (!job.finished(Instant::now())).then_some("starting");
    let mut answer = json_reply(status, &prediction(call, &job, word));
    if wait.is_some() {
        answer.headers_mut().insert("preference-applied", HeaderValue::from_static("wait"));
    }
    Ok(answer)
}

/// How long the caller lets its answer be held.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let preferred = headers.get("prefer")?.to_str().ok()?.split(',').map(str::trim);
    preferred.into_iter().find_map(|preference| {
        let seconds = match preference.strip_prefix("wait")? {
            "" => WAIT_SECS,
            value => value.strip_prefix('=')?.parse().ok()?,
        };
        Some(Duration::from_secs(seconds.clamp(1, WAIT_SECS)))
    })
}

/// Waits for a job's end, but not beyond `until`; the job as it is then.
async fn ended(call: &Call, id: &str, until: Instant) -> Option<Job> {
    let look = || call.shared.peek(|books| books.jobs.get(id).cloned());
    loop {
        let job = look()?;
        let now = Instant::now();
        if job.finished(now) || now >= until {
            return Some(job);
        }
        let moved = async {
            match &job.moved {
                Some(moved) => moved.notified().await,
                None => std::future::pending().await,
            }
        };
        let _ = timeout_at(until.min(job.ends), moved).await;
    }
}

fn with_job(call: &Call, id: &str, answer: impl FnOnce(&Job) -> Response<Reply>) -> Response<Reply> {
    match call.shared.books(|books| books.job(call.ticket, id)) {
        Some(job) => answer(&job),
        None => problem(StatusCode::NOT_FOUND, "The requested resource could not be found."),
    }
}

/// One that has ended stays as it is.
fn cancel(call: &Call, id: &str) -> Response<Reply> {
    with_job(call, id, |_| match call.shared.books(|books| books.end(id, Some(Ending::Cancelled))) {
        Some(job) => ok(&prediction(call, &job, None)),
        None => problem(StatusCode::NOT_FOUND, "The requested resource could not be found."),
    })
}

fn list(call: &Call) -> Response<Reply> {
    let jobs = call.shared.peek(|books| {
        let ids = books.jobs.ids();
        let jobs = ids.iter().rev().filter_map(|id| books.job(call.ticket, id));
        jobs.take(PAGE).collect::<Vec<_>>()
    });
    let results: Vec<Value> = jobs.iter().map(|job| prediction(call, job, None)).collect();
    let cursor = query(&call.uri, "cursor");
    let previous = cursor.map(|_| format!("{}/v1/predictions", origin(call)));
    ok(&json!({ "previous": previous, "next": null, "results": results }))
}

/// Waits for the end, then tells the output as events.
async fn stream(call: &Call, id: &str) -> Response<Reply> {
    let forever = Instant::now() + Duration::from_secs(86_400);
    let Some(job) = ended(call, id, forever).await.filter(|job| job.book == call.ticket.book()) else {
        return problem(StatusCode::NOT_FOUND, "The requested resource could not be found.");
    };
    sleep_until(job.ends).await;
    let output = prediction(call, &job, None)["output"].as_array().cloned().unwrap_or_default();
    let output = output.iter().filter_map(|item| Some(("output", item.as_str()?)));
    // SDKs drop events without an id.
    let event =
        |(at, (name, data)): (usize, (&str, &str))| Bytes::from(format!("event: {name}\nid: {at}:0\ndata: {data}\n\n"));
    let events: VecDeque<Bytes> = output.chain([("done", "{}")]).enumerate().map(event).collect();
    event_list(&call.shared, events)
}

fn prediction(call: &Call, job: &Job, word: Option<&str>) -> Value {
    let mut body = job.body(Instant::now(), &call.shared.epoch, call.shared.options.dialect);
    if let Some(word) = word {
        body["status"] = word.into();
    }
    body
}

/// Where the caller sees the mock: in its answers it knows itself by the name it was called.
fn origin(call: &Call) -> String {
    let host = call.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or(call.uri.authority().map(http::uri::Authority::as_str)).unwrap_or("localhost");
    format!("{}://{host}", call.shared.scheme)
}

fn model(call: &Call, owner: &str, name: &str) -> Value {
    json!({
        "url": format!("https://replicate.com/{owner}/{name}"), "owner": owner, "name": name,
        "description": "A model of the mock", "visibility": "public", "github_url": null, "paper_url": null,
        "license_url": null, "run_count": 1, "cover_image_url": null, "default_example": null,
        "latest_version": version(call, VERSION),
    })
}

fn version(call: &Call, id: &str) -> Value {
    let uri = json!({ "type": "string", "format": "uri" });
    json!({
        "id": id,
        "created_at": call.shared.epoch.timestamp(Instant::now()),
        "cog_version": "0.9.0",
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": { "title": "Cog", "version": "0.1.0" },
            "paths": {},
            "components": { "schemas": {
                "Input": { "type": "object", "properties": { "prompt": { "type": "string" } } },
                "Output": { "type": "array", "items": uri },
            } },
        },
    })
}
