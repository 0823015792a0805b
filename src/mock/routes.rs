//! Which path is what, and the small answers that need no file of their own.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::handler::{Call, Cut};
use super::options::Dialect;
use super::reply::{Reply, error, json_reply, typed};
use super::{llm, predictions, probe, replicate};

/// Longest JSON body.
const BODY_BYTES: usize = 32 * 1024 * 1024;

/// Carries out a request that was let in.
pub(super) async fn route(call: &Call, body: Incoming) -> Result<Response<Reply>, Cut> {
    let path: Vec<&str> = call.uri.path().trim_start_matches('/').split('/').collect();
    if call.shared.options.dialect == Dialect::Replicate && path.get(1) != Some(&"echo") {
        return replicate::route(call, &path, body).await;
    }
    match (call.method.as_str(), path.as_slice()) {
        ("POST", ["v1", "predictions"]) => predictions::create(call, body).await,
        ("POST", ["v1", "predictions", "upload"]) => predictions::upload(call, body).await,
        ("GET", ["v1", "predictions", id]) => Ok(predictions::status(call, id)),
        ("DELETE", ["v1", "predictions", id]) => Ok(predictions::cancel(call, id)),
        ("POST", ["v1", "files", "upload-url"]) => Ok(upload_url()),
        ("GET", ["v1", "templates"]) => Ok(ok(&json!({ "success": true, "templates": [template("tpl_demo1")] }))),
        ("GET", ["v1", "templates", uid]) => Ok(ok(&json!({ "success": true, "template": template(uid) }))),
        ("GET", ["v1", "models", model @ .., "llms.txt"]) if matches!(model.len(), 1 | 2) => {
            let text = format!("# {}\n\nA model of the mock. Input: `prompt` (string).\n", model.join("/"));
            Ok(typed(StatusCode::OK, "text/plain; charset=utf-8", Reply::whole(text)))
        }
        ("POST", ["v1", "reports", "generate"]) => Ok(ok(&json!({ "success": true, "report_id": "rep_demo1" }))),
        ("POST", ["v1", "mcp"]) => mcp(body).await,
        ("GET" | "POST" | "PUT" | "PATCH" | "DELETE", ["v1", "echo", ..]) => probe::echo(call, body).await,
        ("GET", ["v1", "bytes", n]) => Ok(probe::bytes(n)),
        ("GET", ["v1", "sse"]) => Ok(probe::sse(call)),
        (_, ["llm", rest @ ..]) => llm::route(call, rest, body).await,
        _ => Ok(error(StatusCode::NOT_FOUND, "not found")),
    }
}

/// A 200 with a JSON body.
pub(super) fn ok(body: &Value) -> Response<Reply> {
    json_reply(StatusCode::OK, body)
}

/// Reads a body of bounded length as JSON; the inner error is the answer to a bad one.
pub(super) async fn read_json(body: Incoming) -> Result<Result<Value, Response<Reply>>, Cut> {
    let bytes = match Limited::new(body, BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<LengthLimitError>() => {
            return Ok(Err(error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large")));
        }
        Err(e) => return Err(e.downcast::<hyper::Error>().map_or(Cut::Scripted, |e| Cut::Request(*e))),
    };
    Ok(serde_json::from_slice(&bytes).map_err(|_| error(StatusCode::BAD_REQUEST, "the body is not JSON")))
}

/// The value of a query parameter.
pub(super) fn query<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

/// A request as JSON, as it came in.
pub(super) fn describe(method: &Method, uri: &Uri, headers: &Arc<HeaderMap>) -> Value {
    let headers = headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    json!({
        "method": method.as_str(),
        "path": uri.path_and_query().map(ToString::to_string),
        "headers": headers.collect::<Vec<_>>(),
    })
}

fn upload_url() -> Response<Reply> {
    ok(&json!({
        "success": true,
        "upload_url": "https://storage.example.test/upload",
        "fields": { "key": "uploads/demo.png", "policy": "bW9jaw==", "x-amz-signature": "0000" },
        "file_url": "https://cdn.example.test/uploads/demo.png",
    }))
}

fn template(uid: &str) -> Value {
    json!({ "uid": uid, "name": "A template of the mock", "prompt": "Describe {{subject}}.", "model": "gpt-4.1-nano" })
}

/// Just enough of the Model Context Protocol for a client to connect and list tools.
async fn mcp(body: Incoming) -> Result<Response<Reply>, Cut> {
    let request = match read_json(body).await? {
        Ok(request) => request,
        Err(answer) => return Ok(answer),
    };
    if request.get("id").is_none_or(Value::is_null) {
        let mut accepted = Response::new(Reply::whole(Bytes::new())); // a notification
        *accepted.status_mut() = StatusCode::ACCEPTED;
        return Ok(accepted);
    }
    let outcome = match request["method"].as_str() {
        Some("initialize") => json!({ "result": {
            "protocolVersion": request["params"]["protocolVersion"].as_str().unwrap_or("2025-06-18"),
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "sluicegate-mock", "version": env!("CARGO_PKG_VERSION") },
        } }),
        Some("ping") => json!({ "result": {} }),
        Some("tools/list") => json!({ "result": { "tools": [] } }),
        _ => json!({ "error": { "code": -32601, "message": "method not found" } }),
    };
    let mut answer = json!({ "jsonrpc": "2.0", "id": request["id"] });
    if let (Some(answer), Value::Object(outcome)) = (answer.as_object_mut(), outcome) {
        answer.extend(outcome);
    }
    Ok(ok(&answer))
}
