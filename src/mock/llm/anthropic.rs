//! The Anthropic form: named events, in their prescribed order.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Chat;

/// A whole answer.
pub(super) fn message(chat: &Chat) -> Value {
    json!({
        "id": "msg_mock", "type": "message", "role": "assistant", "model": chat.model,
        "content": [{ "type": "text", "text": chat.text() }],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": { "input_tokens": chat.prompt_tokens, "output_tokens": chat.completion_tokens() },
    })
}

/// A streamed answer.
pub(super) fn stream(chat: &Chat) -> VecDeque<Bytes> {
    let start = json!({
        "type": "message_start",
        "message": {
            "id": "msg_mock", "type": "message", "role": "assistant", "model": chat.model, "content": [],
            "stop_reason": null, "stop_sequence": null,
            "usage": { "input_tokens": chat.prompt_tokens, "output_tokens": 1 },
        },
    });
    let block = json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } });
    let mut events = VecDeque::from([event(&start), event(&block), event(&json!({ "type": "ping" }))]);
    events.extend(chat.pieces.iter().map(|piece| {
        let delta = json!({ "type": "text_delta", "text": piece });
        event(&json!({ "type": "content_block_delta", "index": 0, "delta": delta }))
    }));
    events.push_back(event(&json!({ "type": "content_block_stop", "index": 0 })));
    events.push_back(event(&json!({
        "type": "message_delta",
        "delta": { "stop_reason": "end_turn", "stop_sequence": null },
        "usage": { "output_tokens": chat.completion_tokens() },
    })));
    events.push_back(event(&json!({ "type": "message_stop" })));
    events
}

/// An event named after its type.
fn event(body: &Value) -> Bytes {
    format!("event: {}\ndata: {body}\n\n", body["type"].as_str().unwrap_or_default()).into()
}
