//! The `OpenAI` form, which Gemini's compatible routes share.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Chat, data};

/// Numbers in an embedding.
const DIMENSIONS: usize = 8;

/// A whole answer.
pub(super) fn completion(chat: &Chat, created: u64) -> Value {
    json!({
        "id": "chatcmpl-mock", "object": "chat.completion", "created": created, "model": chat.model,
        "choices": [{
            "index": 0, "finish_reason": "stop", "logprobs": null,
            "message": { "role": "assistant", "content": chat.text(), "refusal": null },
        }],
        "usage": usage(chat),
    })
}

/// A streamed answer; usage comes last, if asked for.
pub(super) fn stream(chat: &Chat, created: u64, with_usage: bool) -> VecDeque<Bytes> {
    let chunk = |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({
            "id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": created, "model": chat.model,
            "choices": choices,
        });
        if with_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        data(&chunk)
    };
    let choice = |delta: Value, finish: Option<&str>| {
        chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]), None)
    };
    let mut events = VecDeque::from([choice(json!({ "role": "assistant", "content": "" }), None)]);
    events.extend(chat.pieces.iter().map(|piece| choice(json!({ "content": piece }), None)));
    events.push_back(choice(json!({}), Some("stop")));
    if with_usage {
        events.push_back(chunk(json!([]), Some(usage(chat))));
    }
    events.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    events
}

/// The list of models.
pub(super) fn models() -> Value {
    let model = |id: &str| json!({ "id": id, "object": "model", "created": 1_700_000_000, "owned_by": "mock" });
    let models = ["gpt-4.1-nano", "gpt-5.1", "gemini-2.5-flash"].map(model);
    json!({ "object": "list", "data": models })
}

/// One vector per input, in the encoding asked for.
pub(super) fn embeddings(request: &Value) -> Value {
    let inputs = request["input"].as_array().filter(|list| !list.iter().any(Value::is_number)).map_or(1, Vec::len);
    // Base64 of eight zero floats, which client libraries ask for.
    let vector = match request["encoding_format"].as_str() {
        Some("base64") => json!(format!("{}A=", "A".repeat(DIMENSIONS * 4 / 3 * 4 + 2))),
        _ => Value::from(vec![0.0; DIMENSIONS]),
    };
    let item = |index: usize| json!({ "object": "embedding", "index": index, "embedding": vector });
    json!({
        "object": "list", "model": request["model"], "data": (0..inputs).map(item).collect::<Vec<_>>(),
        "usage": { "prompt_tokens": inputs, "total_tokens": inputs },
    })
}

fn usage(chat: &Chat) -> Value {
    let completion = chat.completion_tokens();
    json!({
        "prompt_tokens": chat.prompt_tokens, "completion_tokens": completion,
        "total_tokens": chat.prompt_tokens + completion, "prompt_tokens_details": { "cached_tokens": 0 },
    })
}
