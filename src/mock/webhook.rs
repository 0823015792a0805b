//! Webhooks: when a job has ended, its state is sent to where its create asked, signed.
//!
//! Plain HTTP to loopback only, once, without retries: the mock must not bother anyone else.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::jobs::Ending;
use super::server::Shared;

/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to send, and what.
pub(super) struct Target {
    uri: Uri,
    addr: SocketAddr,
    completed: bool,
    failed: bool,
}

impl Target {
    /// What a create asks for; `None`: nothing, or a place the mock does not send to.
    pub(super) fn of(create: &Value) -> Option<Self> {
        let uri: Uri = create["webhook"].as_str()?.parse().ok()?;
        let ip = match uri.host()? {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            "[::1]" => IpAddr::V6(Ipv6Addr::LOCALHOST),
            host => host.parse().ok()?,
        };
        let wanted = |event: &str| {
            create["webhook_events"]
                .as_array()
                .or(create["webhook_events_filter"].as_array())
                .is_none_or(|list| list.iter().any(|e| e == event))
        };
        (uri.scheme_str() == Some("http") && ip.is_loopback()).then(|| Self {
            addr: SocketAddr::new(ip, uri.port_u16().unwrap_or(80)),
            completed: wanted("completed"),
            failed: wanted("failed"),
            uri,
        })
    }
}

/// Waits for the job's end and sends the webhook. A cancelled job is not announced.
pub(super) async fn deliver(shared: Arc<Shared>, id: String, target: Target) {
    let body = loop {
        let Some(job) = shared.peek(|books| books.jobs.get(&id).cloned()) else {
            return;
        };
        if job.finished(Instant::now()) {
            let wanted = match job.ending {
                Ending::Success => target.completed,
                Ending::Failure => target.failed,
                Ending::Cancelled => false,
            };
            if !wanted {
                return;
            }
            break job.body(Instant::now(), &shared.epoch, shared.options.dialect).to_string();
        }
        let Some(moved) = job.moved else { return };
        tokio::select! {
            () = sleep_until(job.ends) => {}
            () = moved.notified() => {}
        }
    };
    // A receiver that is away has missed it.
    let secret = shared.options.webhook_secret.as_deref();
    if let Ok(Ok(())) = timeout(PATIENCE, send(&target, body.into(), secret)).await {
        shared.note(|stats| stats.webhooks_delivered += 1);
    }
}

async fn send(
    target: &Target,
    body: Bytes,
    secret: Option<&str>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(target.addr).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = target.uri.authority().map_or("localhost", |authority| authority.as_str());
    let mut request = Request::post(path).header(HOST, authority).header(CONTENT_TYPE, "application/json");
    if let Some(secret) = secret {
        request = request.header("x-webhook-signature", signature(secret, &body));
    }
    let request = request.body(Full::new(body))?;
    // The exchange owns the sender, so the connection ends with it.
    let exchange = async move {
        sender.send_request(request).await?.into_body().collect().await?;
        Ok::<_, hyper::Error>(())
    };
    tokio::join!(exchange, connection).0?;
    Ok(())
}

/// HMAC-SHA256 in lower-case hex.
fn signature(secret: &str, body: &[u8]) -> String {
    hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body).as_ref())
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_documented_test_vector_holds() {
        let body = br#"{"id":"pred_demo1","status":"succeeded","output":["https://cdn.example.test/boat.png"]}"#;
        let expected = "006139d41bb109c2d3c004092d6ca20540a0f37de21e3160e3ec0066a5d3e7e1";
        assert_eq!(signature("demo-webhook-secret", body), expected);
    }

    #[test]
    fn webhooks_go_to_loopback_only() {
        let sends = |url: &str| Target::of(&json!({ "webhook": url })).is_some();
        assert!(sends("http://127.0.0.1:9/x") && sends("http://localhost:9") && sends("http://[::1]:9/"));
        assert!(!sends("https://127.0.0.1/") && !sends("http://10.0.0.1/") && !sends("http://example.test/"));
    }
}
