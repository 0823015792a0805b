//! Gemini's native form: a stream ends with its body, without a marker.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Chat, data};

/// A whole answer.
pub(super) fn content(chat: &Chat) -> Value {
    response(chat, &chat.text(), true)
}

/// A streamed answer as events.
pub(super) fn stream(chat: &Chat) -> VecDeque<Bytes> {
    pieces(chat).iter().map(data).collect()
}

/// A streamed answer as one JSON list, the form without `alt=sse`.
pub(super) fn list(chat: &Chat) -> Value {
    Value::Array(pieces(chat))
}

fn pieces(chat: &Chat) -> Vec<Value> {
    let last = chat.pieces.len().saturating_sub(1);
    chat.pieces.iter().enumerate().map(|(i, piece)| response(chat, piece, i == last)).collect()
}

fn response(chat: &Chat, text: &str, last: bool) -> Value {
    let mut candidate = json!({ "content": { "parts": [{ "text": text }], "role": "model" }, "index": 0 });
    if last {
        candidate["finishReason"] = "STOP".into();
    }
    let tokens = chat.completion_tokens();
    json!({
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": chat.prompt_tokens, "candidatesTokenCount": tokens,
            "totalTokenCount": chat.prompt_tokens + tokens,
        },
        "modelVersion": chat.model, "responseId": "mock",
    })
}
