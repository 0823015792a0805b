//! The end of a request: one log line, counted metrics, the in-flight gauge back. It happens on drop, so it always happens.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::metrics::Metrics;

use super::queue::Class;

/// The status in log and metrics of a request whose caller left before its answer (nginx's number for it).
pub(crate) const CALLER_LEFT: u16 = 499;

/// What is known of a request from its beginning.
pub(crate) struct Finish {
    metrics: Arc<Metrics>,
    begun: Instant,
    pub(crate) record: Record,
    whole: bool,
}

/// The fields of the log line. Paths without their query, which may hold a credential.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) request_id: String,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) client: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) class: Option<Class>,
    pub(crate) status: StatusCode,
    /// The code of an answer of our own.
    pub(crate) code: Option<&'static str>,
    pub(crate) charge: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) queued: Duration,
    pub(crate) upstream: Duration,
    pub(crate) bytes: u64,
}

impl Finish {
    pub(crate) fn new(metrics: Arc<Metrics>, mut record: Record) -> Self {
        metrics.in_flight.inc();
        record.status = StatusCode::from_u16(CALLER_LEFT).unwrap_or_default();
        Self {
            metrics,
            begun: Instant::now(),
            record,
            whole: false,
        }
    }

    /// A piece of the body was passed on.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.record.bytes += bytes as u64;
    }

    /// The answer was passed on to its end.
    pub(crate) fn whole(mut self) {
        self.whole = true;
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let record = &self.record;
        self.metrics.in_flight.dec();
        self.metrics.finished(
            record.class,
            record.status,
            record.code,
            record.queued,
            self.begun.elapsed(),
        );
        tracing::info!(
            target: "sluicegate::request",
            request_id = record.request_id,
            client = record.client,
            account = record.account,
            class = record.class.map(Class::name),
            method = %record.method,
            path = record.path,
            status = record.status.as_u16(),
            code = record.code,
            charge = record.charge,
            attempts = record.attempts,
            queue_ms = millis(record.queued),
            upstream_ms = millis(record.upstream),
            total_ms = millis(self.begun.elapsed()),
            bytes = record.bytes,
            complete = self.whole,
            "request"
        );
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
