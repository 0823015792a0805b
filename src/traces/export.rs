//! The thread that sends spans, in batches, on a runtime of its own: no worker waits for the collector.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Spans that wait, as in OpenTelemetry's own processors.
pub(super) const QUEUE: usize = 2048;
/// Spans sent at once, likewise.
const BATCH: usize = 512;
/// A span waits no longer than this for others.
const DELAY: Duration = Duration::from_secs(1);

const SERVICE_NAME: &str = "service.name";
/// The one for traces wins (OTLP exporter, "Endpoint URLs for OTLP/HTTP"); the exporter reads both by itself.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// What the thread is told.
pub(super) enum Entry {
    Span(Box<SpanData>),
    /// Send what there is; dropped when that is done.
    Flush(oneshot::Sender<()>),
}

/// Starts the thread, where a variable names a collector. It ends with the last sender. A collector that cannot be used is told and goes
/// without traces: the proxy works all the same.
pub(super) fn start() -> Option<mpsc::Sender<Entry>> {
    let endpoint = ENDPOINTS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
    if endpoint.starts_with("https:") {
        tracing::warn!("traces: off, for they go by plain HTTP only; name a collector on this machine or in this pod");
        return None;
    }
    match thread() {
        Ok(sender) => {
            tracing::info!("traces: spans go to the collector that the environment names");
            Some(sender)
        }
        Err(error) => {
            tracing::warn!("traces: off: {error}");
            None
        }
    }
}

fn thread() -> Result<mpsc::Sender<Entry>, Box<dyn std::error::Error>> {
    let exporter = exporter()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, queue) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("traces".into()).spawn(move || runtime.block_on(send(queue, exporter)))?;
    Ok(sender)
}

fn exporter() -> Result<SpanExporter, ExporterBuildError> {
    let mut exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// As the environment says; without a name there, ours.
fn resource() -> Resource {
    let found = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
    let named = found.get_ref(&SERVICE_NAME.into()).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if named {
        return found;
    }
    let rest = found.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty().with_attributes(rest).with_service_name(env!("CARGO_PKG_NAME")).build()
}

async fn send(mut queue: mpsc::Receiver<Entry>, exporter: SpanExporter) {
    let mut away = false;
    while let Some(first) = queue.recv().await {
        let (batch, asked) = gather(first, &mut queue).await;
        if !batch.is_empty() {
            let dropped = batch.len();
            match exporter.export(batch).await {
                Ok(()) if away => {
                    away = false;
                    tracing::info!("traces: the collector takes spans again");
                }
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(dropped, "traces: the collector does not take spans; they are dropped: {error}");
                }
                _ => {}
            }
        }
        drop(asked);
    }
}

/// Collects until the batch is full or its first span has waited long enough, or somebody asks for it.
async fn gather(first: Entry, queue: &mut mpsc::Receiver<Entry>) -> (Vec<SpanData>, Option<oneshot::Sender<()>>) {
    let (until, mut batch, mut next) = (Instant::now() + DELAY, Vec::new(), Some(first));
    while let Some(entry) = next {
        match entry {
            Entry::Span(span) => batch.push(*span),
            Entry::Flush(done) => return (batch, Some(done)),
        }
        next =
            if batch.len() < BATCH { tokio::time::timeout_at(until, queue.recv()).await.ok().flatten() } else { None };
    }
    (batch, None)
}
