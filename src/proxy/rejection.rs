//! Every answer that is our own. One enum, one function that turns it into a response; `docs/errors.md` has a section for each code.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use crate::credits::amount::Amount;
use crate::protocol::Family;

use super::body::LEAST_BYTES_PER_SEC;
use super::known::METHODS;
use super::values::Values;

/// Whether the local books or the upstream refused.
pub(crate) const LIMIT_SOURCE: HeaderName = HeaderName::from_static("sluicegate-limit-source");
/// Tells SDKs that trying again now is pointless.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// How long waiting helps, in milliseconds.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// How to say who calls (RFC 9110 §11.6.1, RFC 6750 §3); the other fields that a token may come in have no scheme.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"sluicegate\"");

/// What the last answer to a request over the limit told, its body, `Proxy-Status` and `Retry-After`.
type LastRefusal = Option<((Family, u32, Duration, u64), Written)>;

/// The parts of an answer that do not change from one to the next.
#[derive(Clone)]
struct Written {
    body: Bytes,
    proxy_status: HeaderValue,
    retry_after: Option<HeaderValue>,
}

thread_local! {
    static LAST_REFUSAL: RefCell<LastRefusal> = const { RefCell::new(None) };
}

/// Why the proxy answers by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("the request cannot be understood: {0}")]
    BadRequest(&'static str),
    #[error("no credential of this request belongs to a client of this proxy")]
    Unauthorized,
    #[error("two credentials of this request belong to different clients")]
    AmbiguousCredentials,
    #[error("requests from this web origin are not allowed (see server.allowed_origins)")]
    ForbiddenOrigin,
    #[error("{} (accounts.NAME.allow_models, deny_models)", not_allowed(.model))]
    ModelDenied { model: String },
    #[error("{}", exhausted(*.needed, *.left, *.limit))]
    CreditsExhausted { needed: Amount, left: Amount, limit: Amount, resets_in_secs: u32, resets_at: u64 },
    #[error("method {0} is not forwarded")]
    MethodRefused(&'static str),
    #[error("this path of the admin port takes {allow} only")]
    NotTaken { allow: &'static str },
    #[error("no part of the request body came for {} s (server.body_timeout)", secs(*.idle))]
    ClientTimeout { idle: Duration },
    #[error(
        "the request body came slower than {LEAST_BYTES_PER_SEC} bytes a second, and longer than server.body_timeout"
    )]
    ClientSlow,
    #[error("the request head did not come whole in {} s (server.header_timeout)", secs(*.after))]
    HeadTimeout { after: Duration },
    #[error("the request body is longer than {limit_bytes} bytes (server.max_body)")]
    BodyTooLarge { limit_bytes: u64 },
    #[error("the request target is longer than {limit_bytes} bytes")]
    TargetTooLong { limit_bytes: usize },
    #[error("this proxy does not answer for the host named in the request (see server.allowed_hosts)")]
    MisdirectedHost,
    #[error("this Idempotency-Key was used with another body")]
    IdempotencyMismatch,
    #[error("its webhook is to be delivered by this proxy, which has no secret to sign it with (webhooks.secret)")]
    WebhookSecretMissing,
    #[error("the request quota is used up; the next request can start in {} s", whole_seconds(*.retry_in))]
    RateLimited { limit: u32, window: Duration, retry_in: Duration },
    #[error("all {limit} job slots are taken ({live} jobs are live)")]
    JobLimit { live: u32, limit: u32 },
    #[error("{waiting} requests are waiting already (queue.max_waiting)")]
    QueueFull { waiting: usize, retry_in: Duration },
    #[error("the request waited {} s in the queue, as long as it might", secs(*.waited))]
    QueueTimeout { waited: Duration, retry_in: Duration },
    #[error("the request head is longer than {limit_bytes} bytes")]
    HeadTooLarge { limit_bytes: usize },
    #[error("the request head has more than {limit_fields} fields")]
    TooManyFields { limit_fields: u32 },
    #[error("only the transfer coding `chunked` is understood")]
    BadTransferCoding,
    #[error("the upstream cannot be reached: {reason}; nothing was sent")]
    UpstreamUnreachable { reason: Unreachable, attempts: u32 },
    #[error("the request was sent, but its answer never came: it may have been carried out")]
    OutcomeUnknown { attempts: u32 },
    #[error("the upstream's answer is broken: {how}")]
    BadUpstreamAnswer { how: &'static str, attempts: u32 },
    #[error("the proxy is shutting down")]
    Draining,
    #[error("no connection to the upstream can be had; the next is tried in {} s", secs(*.retry_in))]
    CircuitOpen { retry_in: Duration },
    #[error("the upstream did not answer in {} s", secs(*.after))]
    UpstreamTimeout { after: Duration, attempts: u32 },
    #[error("prediction not found")]
    NotYours,
    #[error("the proxy failed on this request; nothing is known to be wrong with it")]
    Internal,
}

/// Why no connection to the upstream came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Dns,
    Refused,
    Timeout,
    Tls,
    Broken,
}

impl Unreachable {
    /// As a label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Broken => "broken",
        }
    }
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dns => "its name cannot be resolved",
            Self::Refused => "the connection was refused",
            Self::Timeout => "no connection in upstream.connect_timeout",
            Self::Tls => "the TLS handshake failed",
            Self::Broken => "the connection broke",
        })
    }
}

/// All codes there are.
pub(crate) const CODES: [&str; 26] = [
    "bad_request",
    "unauthorized",
    "forbidden_origin",
    "model_denied",
    "credits_exhausted",
    "method_refused",
    "client_timeout",
    "body_too_large",
    "target_too_long",
    "misdirected_host",
    "idempotency_mismatch",
    "webhook_secret_missing",
    "rate_limited",
    "job_limit",
    "queue_full",
    "queue_timeout",
    "head_too_large",
    "bad_transfer_coding",
    "upstream_unreachable",
    "outcome_unknown",
    "bad_upstream_answer",
    "draining",
    "circuit_open",
    "upstream_timeout",
    "not_found",
    "internal",
];

impl Rejection {
    /// The stable word for this answer, as in `docs/errors.md`.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::Unauthorized | Self::AmbiguousCredentials => "unauthorized",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::ModelDenied { .. } => "model_denied",
            Self::CreditsExhausted { .. } => "credits_exhausted",
            Self::MethodRefused(_) | Self::NotTaken { .. } => "method_refused",
            Self::ClientTimeout { .. } | Self::ClientSlow | Self::HeadTimeout { .. } => "client_timeout",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::TargetTooLong { .. } => "target_too_long",
            Self::MisdirectedHost => "misdirected_host",
            Self::IdempotencyMismatch => "idempotency_mismatch",
            Self::WebhookSecretMissing => "webhook_secret_missing",
            Self::RateLimited { .. } => "rate_limited",
            Self::JobLimit { .. } => "job_limit",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::HeadTooLarge { .. } | Self::TooManyFields { .. } => "head_too_large",
            Self::BadTransferCoding => "bad_transfer_coding",
            Self::UpstreamUnreachable { .. } => "upstream_unreachable",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::BadUpstreamAnswer { .. } => "bad_upstream_answer",
            Self::Draining => "draining",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::UpstreamTimeout { .. } => "upstream_timeout",
            Self::NotYours => "not_found",
            Self::Internal => "internal",
        }
    }

    /// The status it is answered with.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized | Self::AmbiguousCredentials => StatusCode::UNAUTHORIZED,
            Self::ForbiddenOrigin | Self::ModelDenied { .. } => StatusCode::FORBIDDEN,
            Self::CreditsExhausted { .. } => StatusCode::PAYMENT_REQUIRED,
            Self::NotYours => StatusCode::NOT_FOUND,
            Self::MethodRefused(_) | Self::NotTaken { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::ClientTimeout { .. } | Self::ClientSlow | Self::HeadTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TargetTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::MisdirectedHost => StatusCode::MISDIRECTED_REQUEST,
            Self::IdempotencyMismatch | Self::WebhookSecretMissing => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimited { .. } | Self::JobLimit { .. } | Self::QueueFull { .. } | Self::QueueTimeout { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::HeadTooLarge { .. } | Self::TooManyFields { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BadTransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::UpstreamUnreachable { .. } | Self::OutcomeUnknown { .. } | Self::BadUpstreamAnswer { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::Draining | Self::CircuitOpen { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// How long waiting helps; `None` where it does not. At least the time until this proxy can start a request.
    fn retry_in(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_in, .. } | Self::CircuitOpen { retry_in } => Some(*retry_in),
            // Where quota is left, it waited for a slot or for others: when that will be, nobody knows.
            Self::QueueFull { retry_in, .. } | Self::QueueTimeout { retry_in, .. } => {
                Some(if retry_in.is_zero() { Duration::from_secs(1) } else { *retry_in })
            }
            // More than a whole day's budget never fits.
            Self::CreditsExhausted { needed, limit, resets_in_secs, .. } => {
                (needed <= limit).then_some(Duration::from_secs((*resets_in_secs).into()))
            }
            Self::JobLimit { .. } | Self::Draining | Self::UpstreamUnreachable { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The numbers of this answer, for programs.
    fn numbers<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match self {
            Self::RateLimited { limit, window, .. } => {
                map.serialize_entry("limit", limit)?;
                map.serialize_entry("window_secs", &window.as_secs_f64())
            }
            Self::JobLimit { live, limit } => {
                map.serialize_entry("live", live)?;
                map.serialize_entry("limit", limit)
            }
            Self::QueueFull { waiting, .. } => map.serialize_entry("waiting", waiting),
            Self::QueueTimeout { waited, .. } => map.serialize_entry("waited_secs", &secs(*waited)),
            Self::CreditsExhausted { needed, left, limit, resets_at, .. } => {
                map.serialize_entry("needed", &needed.json())?;
                map.serialize_entry("left", &left.json())?;
                map.serialize_entry("limit", &limit.json())?;
                map.serialize_entry("resets_at", resets_at)
            }
            Self::ModelDenied { model } => map.serialize_entry("model", model),
            Self::BodyTooLarge { limit_bytes } => map.serialize_entry("limit_bytes", limit_bytes),
            Self::TargetTooLong { limit_bytes } | Self::HeadTooLarge { limit_bytes } => {
                map.serialize_entry("limit_bytes", limit_bytes)
            }
            Self::TooManyFields { limit_fields } => map.serialize_entry("limit_fields", limit_fields),
            Self::ClientTimeout { idle } => map.serialize_entry("idle_secs", &secs(*idle)),
            Self::ClientSlow => map.serialize_entry("least_bytes_per_sec", &LEAST_BYTES_PER_SEC),
            Self::HeadTimeout { after } => map.serialize_entry("after_secs", &secs(*after)),
            Self::UpstreamTimeout { after, attempts } => {
                map.serialize_entry("after_secs", &secs(*after))?;
                map.serialize_entry("attempts", attempts)
            }
            Self::UpstreamUnreachable { attempts, .. }
            | Self::OutcomeUnknown { attempts }
            | Self::BadUpstreamAnswer { attempts, .. } => map.serialize_entry("attempts", attempts),
            _ => Ok(()),
        }
    }

    /// RFC 9209 error type.
    fn proxy_error(&self) -> &'static str {
        match self {
            Self::UpstreamUnreachable { reason, .. } => match reason {
                Unreachable::Dns => "dns_error",
                Unreachable::Refused => "connection_refused",
                Unreachable::Timeout => "connection_timeout",
                Unreachable::Tls => "tls_protocol_error",
                Unreachable::Broken => "connection_terminated",
            },
            Self::OutcomeUnknown { .. } => "http_response_incomplete",
            Self::BadUpstreamAnswer { .. } => "http_protocol_error",
            Self::UpstreamTimeout { .. } => "http_response_timeout",
            Self::Draining | Self::CircuitOpen { .. } => "destination_unavailable",
            Self::Internal => "proxy_internal_error",
            Self::Unauthorized
            | Self::AmbiguousCredentials
            | Self::ForbiddenOrigin
            | Self::ModelDenied { .. }
            | Self::CreditsExhausted { .. }
            | Self::MethodRefused(_)
            | Self::NotTaken { .. }
            | Self::WebhookSecretMissing
            | Self::RateLimited { .. }
            | Self::JobLimit { .. }
            | Self::QueueFull { .. }
            | Self::QueueTimeout { .. } => "http_request_denied",
            _ => "http_request_error",
        }
    }

    /// The answer, in the error form of the API family that was called.
    pub(crate) fn response(&self, family: Family) -> Response<Bytes> {
        let status = self.status();
        let retry_in = self.retry_in().map(|wait| wait.max(Duration::from_millis(1)));
        let Written { body, proxy_status, retry_after } = self.written(family, retry_in);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.reserve(16);
        let form = match (self, family) {
            (Self::NotYours, _) => "application/json",
            (_, Family::Native) => "application/problem+json",
            _ => "application/json",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
        if matches!(self, Self::NotYours) {
            return response; // in the upstream's own form, which tells nothing about the job
        }
        headers.insert(PROXY_STATUS, proxy_status);
        if let (Some(wait), Some(retry_after)) = (retry_in, retry_after) {
            headers.insert(header::RETRY_AFTER, retry_after);
            headers.insert(RETRY_AFTER_MS, Values::new().number(millis_up(wait)).take());
        } else {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(LIMIT_SOURCE, HeaderValue::from_static("local"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let allow = if let Self::NotTaken { allow } = self { HeaderValue::from_static(allow) } else { METHODS };
            headers.insert(header::ALLOW, allow);
        }
        response
    }

    fn written(&self, family: Family, retry_in: Option<Duration>) -> Written {
        let (Self::RateLimited { limit, window, .. }, Some(wait)) = (self, retry_in) else {
            return self.write(family, retry_in);
        };
        // A storm of refusals: for a second, all are the same.
        let told = (family, *limit, *window, whole_seconds(wait));
        LAST_REFUSAL.with_borrow_mut(|last| match last {
            Some((of, written)) if *of == told => written.clone(),
            _ => last.insert((told, self.write(family, retry_in))).1.clone(),
        })
    }

    fn write(&self, family: Family, retry_in: Option<Duration>) -> Written {
        let mut values = Values::new();
        values.text("sluicegate; error=").text(self.proxy_error()).text("; details=\"").text(self.code());
        let proxy_status = values.text("\"").take();
        let retry_after = retry_in.map(|wait| HeaderValue::from(whole_seconds(wait)));
        Written { body: self.body(family, retry_in), proxy_status, retry_after }
    }

    fn body(&self, family: Family, retry_in: Option<Duration>) -> Bytes {
        let answer = Answer { rejection: self, detail: self.to_string(), family, retry_in };
        let mut body = Vec::with_capacity(512);
        match serde_json::to_writer(&mut body, &answer) {
            Ok(()) => body.into(),
            // Texts and numbers always can be written.
            Err(_) => Bytes::new(),
        }
    }
}

/// The body of an answer, written without a tree in between: refusing must be cheaper than admitting.
struct Answer<'a> {
    rejection: &'a Rejection,
    detail: String,
    family: Family,
    retry_in: Option<Duration>,
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (code, status, detail) = (self.rejection.code(), self.rejection.status(), self.detail.as_str());
        let number = status.as_u16();
        let mut map = serializer.serialize_map(None)?;
        if matches!(self.rejection, Rejection::NotYours) {
            map.serialize_entry("error", detail)?;
            return map.end();
        }
        match self.family {
            Family::Native => {
                map.serialize_entry("type", &format_args!("urn:sluicegate:error:{code}"))?;
                map.serialize_entry("title", &status.canonical_reason())?;
                map.serialize_entry("status", &number)?;
                map.serialize_entry("detail", detail)?;
            }
            Family::OpenAi => map.serialize_entry(
                "error",
                &json!({"message": detail, "type": openai_type(number), "param": null, "code": code}),
            )?,
            Family::Anthropic => {
                map.serialize_entry("type", "error")?;
                map.serialize_entry("error", &json!({"type": anthropic_type(number), "message": detail}))?;
            }
            Family::Gemini => map.serialize_entry(
                "error",
                &json!({
                    "code": number, "message": detail, "status": gemini_status(number),
                    "details": [{
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": code.to_ascii_uppercase(), "domain": "sluicegate",
                    }],
                }),
            )?,
        }
        map.serialize_entry("code", code)?;
        self.rejection.numbers(&mut map)?;
        if let Some(wait) = self.retry_in {
            map.serialize_entry("retry_after_secs", &whole_seconds(wait))?;
        }
        map.end()
    }
}

fn exhausted(needed: Amount, left: Amount, limit: Amount) -> String {
    format!("the call costs {needed} credits, and {left} of {limit} are left for today (plans.NAME.credits_per_day)")
}

fn not_allowed(model: &str) -> String {
    if model.is_empty() {
        "no model can be read in the request, and not all are allowed".into()
    } else {
        format!("the model {model:?} may not be used here")
    }
}

/// Seconds, rounded to milliseconds: nobody measures more finely, and all digits would be told.
fn secs(time: Duration) -> f64 {
    let near = time.saturating_add(Duration::from_micros(500));
    Duration::new(near.as_secs(), near.subsec_millis() * 1_000_000).as_secs_f64()
}

/// Whole milliseconds, rounded up; without the 128 bits of `Duration::as_nanos`.
pub(crate) fn millis_up(wait: Duration) -> u64 {
    let millis = wait.subsec_nanos().div_ceil(1_000_000);
    wait.as_secs().saturating_mul(1000).saturating_add(millis.into())
}

/// Whole seconds, rounded up, at least one.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    let up = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(up).max(1)
}

fn openai_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn gemini_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        402 | 429 => "RESOURCE_EXHAUSTED",
        502 | 503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}

#[cfg(test)]
mod tests;
