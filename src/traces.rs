//! A span for every finished request, handed to a thread that sends them to a collector by OTLP over HTTP. Only with the feature `otel`,
//! and only where a variable names the collector; `traces/off.rs` stands here otherwise.
//!
//! Names follow OpenTelemetry's semantic conventions for HTTP servers where these have one. No key, no query and no body gets here.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceState};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::proxy::App;
use crate::proxy::finish::{CALLER_LEFT, Record, millis};
use crate::proxy::queue::Class;

use self::export::{Entry, QUEUE};

/// The thread that sends.
mod export;

/// The drain waits no longer than this for the collector.
const FLUSH: Duration = Duration::from_secs(2);

/// The way to the collector, where there is one.
#[derive(Default)]
pub(crate) struct Traces {
    queue: OnceLock<mpsc::Sender<Entry>>,
    /// Spans were dropped: the log tells once, not for each. Relaxed, for nothing else depends on it.
    full: AtomicBool,
}

/// The caller's span, where it named one. Boxed: it is rare, and requests live long.
#[derive(Default)]
pub(crate) struct Parent(Option<Box<SpanContext>>);

impl Traces {
    /// From now on spans are sent to the collector that the environment names, if it names one.
    pub(crate) fn start(&self) {
        if let Some(sender) = export::start() {
            let _ = self.queue.set(sender);
        }
    }

    /// The caller's span, by W3C Trace Context. One that is not valid is none (section 4.3: the trace starts here).
    pub(crate) fn parent(&self, headers: &HeaderMap) -> Parent {
        if self.queue.get().is_none() || !headers.contains_key("traceparent") {
            return Parent::default();
        }
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Fields(headers));
        let span = context.span().span_context().clone();
        Parent(span.is_valid().then(|| Box::new(span)))
    }

    /// A request has ended. Never waits: where the queue is full, its span is dropped. A caller that does not record its trace has no span
    /// recorded here.
    pub(crate) fn finished(&self, app: &App, record: &Record, took: Duration, whole: bool) {
        let Some(queue) = self.queue.get() else { return };
        if record.parent.0.as_ref().is_some_and(|parent| !parent.is_sampled()) {
            return;
        }
        match queue.try_reserve() {
            Ok(place) => place.send(Entry::Span(Box::new(span(app, record, took, whole)))),
            Err(TrySendError::Full(())) if !self.full.swap(true, Ordering::Relaxed) => {
                tracing::warn!(queue = QUEUE, "traces: the collector is slower than the requests; spans are dropped");
            }
            Err(_) => {}
        }
    }

    /// Has everything sent that has ended so far; waits for that, but not long.
    pub(crate) async fn flush(&self) {
        let Some(queue) = self.queue.get() else { return };
        let (done, sent) = oneshot::channel();
        let all = async {
            if queue.send(Entry::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        };
        if tokio::time::timeout(FLUSH, all).await.is_err() {
            tracing::warn!("traces: the collector did not take the last spans in time");
        }
    }
}

/// The fields of a request. One that came twice is none, for nobody can tell which of them is meant.
struct Fields<'a>(&'a HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.get_all(name).iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { value.to_str().ok() }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

fn span(app: &App, record: &Record, took: Duration, whole: bool) -> SpanData {
    let ids = RandomIdGenerator::default();
    let parent = record.parent.0.as_deref();
    let trace = parent.map_or_else(|| ids.new_trace_id(), SpanContext::trace_id);
    let state = parent.map_or(TraceState::NONE, |parent| parent.trace_state().clone());
    let end_time = app.clock.wall();
    SpanData {
        span_context: SpanContext::new(trace, ids.new_span_id(), TraceFlags::SAMPLED, false, state),
        parent_span_id: parent.map_or(SpanId::INVALID, SpanContext::span_id),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Server,
        name: Cow::Borrowed(name(record)),
        start_time: end_time.checked_sub(took).unwrap_or(end_time),
        end_time,
        attributes: attributes(app, record, whole),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: status(record),
        instrumentation_scope: scope(),
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(env!("CARGO_PKG_NAME")).with_version(env!("CARGO_PKG_VERSION")).build()
}

/// What kind of call it was; `refused` where it was refused before that was known.
fn name(record: &Record) -> &'static str {
    match (record.class, record.code) {
        (Some(class), _) => class.name(),
        (None, Some(_)) => "refused",
        (None, None) => Class::Other.name(),
    }
}

/// Failures are those of a server, and whatever we refused.
fn status(record: &Record) -> Status {
    match record.code {
        Some(code) => Status::error(code),
        None if record.status.is_server_error() => Status::error(""),
        None => Status::Unset,
    }
}

fn attributes(app: &App, record: &Record, whole: bool) -> Vec<KeyValue> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let status = record.status.as_u16();
    let mut list = vec![
        KeyValue::new("http.request.method", method(&record.method)),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("url.path", record.uri.path().to_owned()),
        KeyValue::new("http.response.body.size", number(record.bytes)),
        KeyValue::new("sluicegate.request_id", record.request_id.to_str().unwrap_or_default().to_owned()),
        KeyValue::new("sluicegate.attempts", i64::from(record.attempts)),
        KeyValue::new("sluicegate.queue_ms", number(millis(record.queued))),
        KeyValue::new("sluicegate.upstream_ms", number(millis(record.upstream))),
        KeyValue::new("sluicegate.complete", whole),
    ];
    if status != CALLER_LEFT {
        list.push(KeyValue::new("http.response.status_code", i64::from(status)));
    }
    if let Some(code) = record.code {
        list.extend([KeyValue::new("error.type", code), KeyValue::new("sluicegate.code", code)]);
    } else if record.status.is_server_error() {
        list.push(KeyValue::new("error.type", record.status.as_str().to_owned()));
    }
    if let Some(client) = record.client {
        list.push(KeyValue::new("sluicegate.client", app.clients.name(client).to_owned()));
    }
    if let Some(account) = record.account {
        list.push(KeyValue::new("sluicegate.account", app.accounts[account].name.clone()));
    }
    if let Some(charge) = record.charge {
        list.push(KeyValue::new("sluicegate.charge", charge.name()));
    }
    list
}

/// Methods that the conventions know; the others share one word, so that no caller can make up values.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
