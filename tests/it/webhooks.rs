//! Webhooks: delivered from here, signed and until they arrive; the upstream's own, verified and relayed.

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use sluicegate::mock::Options;

use crate::support::client::With;
use crate::support::{KEY, WEBHOOK_SECRET, create_with, post};

pub use self::receivers::{Manner, Receivers};
pub use self::stage::Stage;

/// Who takes them.
mod receivers;

/// The proxy between them and the mock.
mod stage;

/// Deliveries.
mod out;

/// Of creates that are forms.
mod forms;

/// The upstream's.
mod inbound;

/// Across `kill -9`.
mod crashes;

/// Over sockets.
mod live;

pub const OUT: &str = "[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"localhost:*\"]";
pub const IN: &str = "[webhooks]\nsecret = { env = \"WEBHOOK_SECRET\" }\nallow = [\"localhost:*\"]\n\
    listen = \"127.0.0.1:0\"\npublic_url = \"https://hooks.example.com/in\"";
pub const HOOK: &str = "http://localhost:3000/hook?of=app";

pub fn options() -> Options {
    Options { keys: vec![KEY.into()], requests: None, concurrent_jobs: None, ..Options::default() }
}

pub fn create(webhook: &str, input: &Value) -> Request<Full<Bytes>> {
    create_with(&json!({"model": "flux-schnell", "input": input, "webhook": webhook}))
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn hex(body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes()), body);
    tag.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A call of the upstream's, signed.
pub fn signed(token: &str, body: impl Into<String>) -> Request<Full<Bytes>> {
    let body = body.into();
    let signature = hex(body.as_bytes());
    post(&format!("/in/{token}"), body).with("x-webhook-signature", &signature)
}
