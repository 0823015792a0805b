//! Jobs over HTTP: create (JSON and multipart), status, cancel.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::handler::{Call, Cut};
use super::jobs::{Ending, Job, NewJob};
use super::multipart::Multipart;
use super::reply::{Reply, error, json_reply};
use super::routes::read_json;
use super::webhook;

/// `POST /v1/predictions`.
pub(super) async fn create(call: &Call, body: Incoming) -> Result<Response<Reply>, Cut> {
    Ok(match read_json(body).await? {
        Ok(body) => start(call, &body),
        Err(answer) => answer,
    })
}

/// `POST /v1/predictions/upload`: a form with `model`, `input` and any number of `file:<key>` parts, read as it comes.
pub(super) async fn upload(call: &Call, mut body: Incoming) -> Result<Response<Reply>, Cut> {
    let content_type = call.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(mut form) = Multipart::of(content_type) else {
        return Ok(error(StatusCode::UNPROCESSABLE_ENTITY, "multipart/form-data with a boundary is required"));
    };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            form.feed(&data);
        }
    }
    let text = |name: &str| form.small(name).map(String::from_utf8_lossy);
    let mut input: Value = text("input").and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(|| json!({}));
    for (name, bytes) in form.files() {
        let url = json!(format!("https://cdn.example.test/uploads/{name}?bytes={bytes}"));
        match input.get_mut(name) {
            Some(Value::Array(list)) => list.push(url),
            Some(first) => *first = json!([first.take(), url]),
            None => {
                if let Some(input) = input.as_object_mut() {
                    input.insert(name.to_owned(), url);
                }
            }
        }
    }
    let webhook = text("webhook");
    Ok(start(call, &json!({ "model": text("model"), "input": input, "webhook": webhook })))
}

/// `GET /v1/predictions/{id}`.
pub(super) fn status(call: &Call, id: &str) -> Response<Reply> {
    match call.shared.books(|books| books.job(call.ticket, id)) {
        Some(job) => job_reply(call, StatusCode::OK, &job),
        None => error(StatusCode::NOT_FOUND, "prediction not found"),
    }
}

/// `DELETE /v1/predictions/{id}`: a job that has ended cannot be cancelled any more.
pub(super) fn cancel(call: &Call, id: &str) -> Response<Reply> {
    let cancelled = call.shared.books(|books| {
        let job = books.job(call.ticket, id)?;
        Some(if job.finished(Instant::now()) { None } else { books.end(id, Some(Ending::Cancelled)) })
    });
    match cancelled {
        Some(Some(job)) => job_reply(call, StatusCode::OK, &job),
        Some(None) => error(StatusCode::CONFLICT, "the prediction has already ended"),
        None => error(StatusCode::NOT_FOUND, "prediction not found"),
    }
}

/// Starts what a create asks for. `input.fail` makes the job fail, `input.run_time_ms` says how long it runs.
fn start(call: &Call, body: &Value) -> Response<Reply> {
    let invalid = |message| error(StatusCode::UNPROCESSABLE_ENTITY, message);
    let Some(model) = body["model"].as_str().filter(|model| !model.is_empty()) else {
        return invalid("model is required");
    };
    if !body["input"].is_object() {
        return invalid("input must be an object");
    }
    let new = NewJob {
        model: model.to_owned(),
        version: String::new(),
        origin: String::new(),
        input: body["input"].clone(),
        run_time: Duration::ZERO,
        ending: ending(&body["input"]),
        watched: webhook::Target::of(body).is_some(),
    };
    match start_new(call, body, new, run_time(&body["input"])) {
        Ok(job) => {
            let status = call.shared.options.create_status;
            job_reply(call, StatusCode::from_u16(status).unwrap_or(StatusCode::CREATED), &job)
        }
        Err(status) => error(status, "concurrent job limit reached"),
    }
}

/// Enters a job in the books and sees to its webhook; the status of the refusal where the limit is reached.
pub(super) fn start_new(call: &Call, body: &Value, new: NewJob, run_time: Option<Duration>) -> Result<Job, StatusCode> {
    let Some(job) = call.shared.books(|books| books.create(call.ticket, new, run_time)) else {
        let status = call.shared.options.job_limit_status;
        return Err(StatusCode::from_u16(status).unwrap_or(StatusCode::TOO_MANY_REQUESTS));
    };
    if let Some(target) = webhook::Target::of(body) {
        call.shared.spawn(webhook::deliver(Arc::clone(&call.shared), job.id.clone(), target));
    }
    Ok(job)
}

/// `input.fail` makes a job fail.
pub(super) fn ending(input: &Value) -> Ending {
    if input.get("fail").is_some_and(|fail| fail == true) { Ending::Failure } else { Ending::Success }
}

/// `input.run_time_ms`, at most a week.
pub(super) fn run_time(input: &Value) -> Option<Duration> {
    let ms = input.get("run_time_ms").and_then(Value::as_f64)?;
    Some(Duration::try_from_secs_f64(ms / 1_000.0).ok()?.min(Duration::from_secs(7 * 86_400)))
}

fn job_reply(call: &Call, status: StatusCode, job: &Job) -> Response<Reply> {
    json_reply(status, &job.body(Instant::now(), &call.shared.epoch, call.shared.options.dialect))
}
