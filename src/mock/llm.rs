//! The imitated LLM APIs: faithful enough for the vendors' own client libraries, streaming included.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;

use super::handler::{Call, Cut};
use super::reply::{Reply, error, event_list};
use super::routes::{ok, query, read_json};

mod anthropic;
mod gemini;
mod openai;

/// Carries out a request below `/llm/`.
pub(super) async fn route(call: &Call, path: &[&str], body: Incoming) -> Result<Response<Reply>, Cut> {
    let not_found = || Ok(error(StatusCode::NOT_FOUND, "not found"));
    if call.method != "POST" {
        return match (call.method.as_str(), path) {
            ("GET", ["openai", "v1", "models"] | ["gemini", "v1beta", "openai", "models"]) => Ok(ok(&openai::models())),
            _ => not_found(),
        };
    }
    let json = match read_json(body).await? {
        Ok(json) => json,
        Err(answer) => return Ok(answer),
    };
    let created = call.shared.epoch.secs(tokio::time::Instant::now());
    Ok(match path {
        ["openai", "v1", "chat", "completions"] | ["gemini", "v1beta", "openai", "chat", "completions"] => {
            let chat = Chat::of(json["model"].as_str(), &json["messages"], "content");
            if json["stream"] == true {
                stream(call, openai::stream(&chat, created, json["stream_options"]["include_usage"] == true))
            } else {
                ok(&openai::completion(&chat, created))
            }
        }
        ["openai", "v1", "embeddings"] | ["gemini", "v1beta", "openai", "embeddings"] => ok(&openai::embeddings(&json)),
        ["anthropic", "v1", "messages"] => {
            let chat = Chat::of(json["model"].as_str(), &json["messages"], "content");
            if json["stream"] == true { stream(call, anthropic::stream(&chat)) } else { ok(&anthropic::message(&chat)) }
        }
        ["anthropic", "v1", "messages", "count_tokens"] => {
            let chat = Chat::of(json["model"].as_str(), &json["messages"], "content");
            ok(&serde_json::json!({ "input_tokens": chat.prompt_tokens }))
        }
        ["gemini", "v1beta", "models", action] => {
            let Some((model, action)) = action.split_once(':') else {
                return not_found();
            };
            let chat = Chat::of(Some(model), &json["contents"], "parts");
            match (action, query(&call.uri, "alt")) {
                ("generateContent", _) => ok(&gemini::content(&chat)),
                ("streamGenerateContent", Some("sse")) => stream(call, gemini::stream(&chat)),
                ("streamGenerateContent", _) => ok(&gemini::list(&chat)),
                _ => return not_found(),
            }
        }
        _ => return not_found(),
    })
}

/// One question and its answer, whatever the API.
struct Chat {
    model: String,
    /// The answer, in the pieces in which it is streamed.
    pieces: Vec<String>,
    prompt_tokens: u64,
}

impl Chat {
    /// `turns` is the conversation, `field` where a turn keeps its text (a string, or a list with `text` inside).
    fn of(model: Option<&str>, turns: &Value, field: &str) -> Self {
        let texts = |turn: &Value| match &turn[field] {
            Value::String(text) => text.clone(),
            parts => {
                parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect::<String>()
            }
        };
        let turns: Vec<String> = match turns {
            Value::String(text) => vec![text.clone()],
            turns => turns.as_array().into_iter().flatten().map(texts).collect(),
        };
        let prompt = turns.last().map_or("", String::as_str);
        let answer = format!("The mock has read {} characters and has nothing to add.", prompt.chars().count());
        Self {
            model: model.unwrap_or("mock-model").to_owned(),
            pieces: answer.split_inclusive(' ').map(str::to_owned).collect(),
            prompt_tokens: turns.iter().map(|turn| turn.len() as u64).sum::<u64>() / 4 + 1,
        }
    }

    fn text(&self) -> String {
        self.pieces.concat()
    }

    /// One a piece.
    fn completion_tokens(&self) -> u64 {
        self.pieces.len() as u64
    }
}

fn stream(call: &Call, events: VecDeque<Bytes>) -> Response<Reply> {
    event_list(&call.shared, events)
}

/// An event without a name.
fn data(body: &Value) -> Bytes {
    format!("data: {body}\n\n").into()
}
