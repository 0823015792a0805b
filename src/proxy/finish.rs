//! The end of a request: one log line, counted metrics, the in-flight gauge back. It happens on drop, so it always happens.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode, Uri};
use tokio::time::Instant;

use crate::credits::Receipt;
use crate::credits::hold::Meter;
use crate::traces::Parent;

use super::App;
use super::jobs::Charge;
use super::queue::Class;
use super::rules::Applied;

use self::recent::{By, Seen};

/// The latest requests, for the dashboard.
pub(crate) mod recent;

/// The status in log and metrics of a request whose caller left before its answer (nginx's number for it).
pub(crate) const CALLER_LEFT: u16 = 499;

/// What is known of a request from its beginning.
pub(crate) struct Finish {
    app: Arc<App>,
    begun: Instant,
    pub(crate) record: Record,
    /// Counts the tokens of the answer.
    pub(crate) meter: Option<Box<Meter>>,
    whole: bool,
}

/// The fields of the log line. Paths without their query, which may hold a credential.
pub(crate) struct Record {
    pub(crate) request_id: HeaderValue,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// Its `Host`, where URLs in answers are turned to it.
    pub(crate) host: Option<HeaderValue>,
    /// The allowed origin of the page that calls.
    pub(crate) origin: Option<HeaderValue>,
    /// The span of the caller.
    pub(crate) parent: Parent,
    /// By index.
    pub(crate) client: Option<usize>,
    /// By index.
    pub(crate) account: Option<usize>,
    pub(crate) class: Option<Class>,
    pub(crate) status: StatusCode,
    /// The code of an answer of our own.
    pub(crate) code: Option<&'static str>,
    pub(crate) charge: Option<Charge>,
    /// Rules of the account that changed the request.
    pub(crate) applied: Box<[Applied]>,
    pub(crate) credits: Option<Receipt>,
    pub(crate) attempts: u32,
    pub(crate) queued: Duration,
    pub(crate) upstream: Duration,
    pub(crate) bytes: u64,
}

impl Record {
    pub(crate) fn new(request_id: HeaderValue, method: Method, uri: Uri) -> Self {
        Self {
            request_id,
            method,
            uri,
            host: None,
            origin: None,
            parent: Parent::default(),
            client: None,
            account: None,
            class: None,
            status: StatusCode::from_u16(CALLER_LEFT).unwrap_or_default(),
            code: None,
            charge: None,
            applied: Box::default(),
            credits: None,
            attempts: 0,
            queued: Duration::ZERO,
            upstream: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The authority by which the caller reached us.
    pub(crate) fn reached(&self) -> Option<Authority> {
        let named = || Authority::try_from(self.host.as_ref()?.as_bytes()).ok();
        self.uri.authority().cloned().or_else(named)
    }

    /// Lets go of the buffer that the request was read into.
    pub(crate) fn detach(&mut self) {
        if let Ok(own) = self.uri.to_string().parse() {
            self.uri = own;
        }
        for value in std::iter::once(&mut self.request_id).chain(&mut self.origin).chain(&mut self.host) {
            if let Ok(own) = HeaderValue::from_bytes(value.as_bytes()) {
                *value = own;
            }
        }
    }
}

impl Finish {
    /// Boxed: it goes along with the answer through many hands.
    pub(crate) fn new(app: Arc<App>, record: Record) -> Box<Self> {
        app.metrics.in_flight.inc();
        Box::new(Self { app, begun: Instant::now(), record, meter: None, whole: false })
    }

    /// A piece of the body was passed on.
    pub(crate) fn passed(&mut self, piece: &[u8]) {
        self.record.bytes += piece.len() as u64;
        if let Some(meter) = &mut self.meter {
            meter.feed(piece);
        }
    }

    /// For the dashboard.
    fn seen(&self, took: Duration) -> Seen {
        let (app, record) = (&self.app, &self.record);
        let by = match record {
            Record { code: Some(_), .. } => By::Proxy,
            Record { status, .. } if status.as_u16() == CALLER_LEFT => By::Caller,
            Record { attempts: 0, .. } => By::Memory,
            Record { .. } => By::Upstream,
        };
        Seen {
            number: 0,
            at: app.clock.wall().duration_since(UNIX_EPOCH).map_or(0, millis),
            client: record.client.map(|client| app.clients.name(client).to_owned()),
            account: record.account.map(|account| app.accounts[account].name.clone()),
            class: record.class.map(Class::name),
            method: record.method.to_string(),
            path: record.uri.path().to_owned(),
            status: record.status.as_u16(),
            by,
            code: record.code,
            charge: record.charge.map(Charge::name),
            attempts: record.attempts,
            queue_ms: millis(record.queued),
            upstream_ms: millis(record.upstream),
            total_ms: millis(took),
            complete: self.whole,
        }
    }

    /// The answer was passed on to its end.
    pub(crate) fn whole(mut self: Box<Self>) {
        self.whole = true;
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.end(self.whole);
        }
        let (app, record, took) = (&self.app, &self.record, self.begun.elapsed());
        app.metrics.in_flight.dec();
        app.metrics.finished(record.class, record.status, record.code, record.queued, took);
        app.recent.note(|| self.seen(took));
        app.traces.finished(app, record, took, self.whole);
        tracing::info!(
            target: "sluicegate::request",
            request_id = record.request_id.to_str().unwrap_or_default(),
            client = record.client.map(|client| app.clients.name(client)),
            account = record.account.map(|account| app.accounts[account].name.as_str()),
            class = record.class.map(Class::name),
            method = %record.method,
            path = record.uri.path(),
            status = record.status.as_u16(),
            code = record.code,
            charge = record.charge.map(Charge::name),
            attempts = record.attempts,
            queue_ms = millis(record.queued),
            upstream_ms = millis(record.upstream),
            total_ms = millis(took),
            bytes = record.bytes,
            complete = self.whole,
            "request"
        );
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
