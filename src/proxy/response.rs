//! The answer on its way down: our fields added, the body relayed piece by piece, the end noted.

use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::finish::Finish;
use super::headers::{CHARGE, REQUEST_ID, strip_hop_by_hop};
use super::jobs::Charge;
use super::quota::View;
use super::quota::feedback::{LIMIT, REMAINING, RESET};
use super::upstream::Return;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The upstream's own limits, under names that cannot be taken for ours.
const UPSTREAM_LIMITS: [(HeaderName, HeaderName); 3] = [
    (LIMIT, HeaderName::from_static("sluicegate-upstream-ratelimit-limit")),
    (
        REMAINING,
        HeaderName::from_static("sluicegate-upstream-ratelimit-remaining"),
    ),
    (RESET, HeaderName::from_static("sluicegate-upstream-ratelimit-reset")),
];

/// What is told with every answer.
pub(crate) struct Told<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) queued: Duration,
    pub(crate) upstream: Duration,
    pub(crate) attempts: u32,
    pub(crate) view: Option<View>,
    pub(crate) charge: Option<Charge>,
    pub(crate) wall: SystemTime,
}

/// Cleans an upstream answer's fields.
pub(crate) fn clean(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    for (theirs, kept) in &UPSTREAM_LIMITS {
        if let Some(value) = headers.remove(theirs) {
            headers.insert(kept, value);
        }
    }
}

/// Adds our fields to an answer, whoever made it.
pub(crate) fn tell(headers: &mut HeaderMap, told: &Told<'_>) {
    if let Ok(id) = HeaderValue::from_str(told.request_id) {
        headers.insert(REQUEST_ID, id);
    }
    let mut text = String::with_capacity(80);
    let _ = write!(
        text,
        "queue;dur={:.1}, upstream;dur={:.1}, attempts;desc=\"{}\"",
        told.queued.as_secs_f64() * 1e3,
        told.upstream.as_secs_f64() * 1e3,
        told.attempts,
    );
    append(headers, SERVER_TIMING, &text);
    if let Some(charge) = told.charge {
        headers.insert(CHARGE, HeaderValue::from_static(charge.name()));
    }
    let Some(view) = told.view else { return };
    headers.insert(LIMIT, HeaderValue::from(view.limit));
    headers.insert(REMAINING, HeaderValue::from(view.remaining));
    headers.insert(RESET, HeaderValue::from(epoch_second(told.wall + view.reset_in)));
    // draft-ietf-httpapi-ratelimit-headers-10: quota and window in seconds; what is left and until when.
    let window = view.window.as_secs_f64().ceil();
    text.clear();
    let _ = write!(text, "\"requests\";q={};w={window}", view.limit);
    set(headers, RATE_LIMIT_POLICY, &text);
    text.clear();
    let _ = write!(
        text,
        "\"requests\";r={};t={}",
        view.remaining,
        view.reset_in.as_secs_f64().ceil()
    );
    set(headers, RATE_LIMIT, &text);
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(name, value);
    }
}

/// Rounded up.
fn epoch_second(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() + u64::from(since.subsec_nanos() > 0)
}

/// The body of every answer. Dropping it early closes the upstream connection that feeds it.
pub(crate) struct RelayBody {
    source: Source,
    finish: Option<Finish>,
}

enum Source {
    Whole(Option<Bytes>),
    Stream(Box<Relay>),
}

struct Relay {
    prefix: Bytes,
    rest: Incoming,
    back: Option<Return>,
    idle: Duration,
    /// Made when the upstream first lets us wait: most answers are there at once.
    sleep: Option<Pin<Box<Sleep>>>,
}

/// Why an answer was cut. The connection is closed, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the upstream's answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("nothing came from the upstream for {} s", .0.as_secs_f64())]
    Idle(Duration),
}

impl RelayBody {
    /// A body held whole.
    pub(crate) fn whole(bytes: Bytes, finish: Finish) -> Self {
        Self {
            source: Source::Whole((!bytes.is_empty()).then_some(bytes)),
            finish: Some(finish),
        }
    }

    /// A body still coming; `prefix` has been read already.
    pub(crate) fn stream(prefix: Bytes, rest: Incoming, back: Return, idle: Duration, finish: Finish) -> Self {
        if prefix.is_empty() && rest.is_end_stream() {
            back.whole();
            return Self::whole(Bytes::new(), finish);
        }
        let relay = Relay {
            prefix,
            rest,
            back: Some(back),
            idle,
            sleep: None,
        };
        Self {
            source: Source::Stream(Box::new(relay)),
            finish: Some(finish),
        }
    }

    fn end(&mut self) {
        if let Some(finish) = self.finish.take() {
            finish.whole();
        }
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Stream(relay) => relay.poll(cx),
        };
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(finish), Some(data)) = (&mut this.finish, frame.data_ref()) {
                    finish.passed(data.len());
                }
                if this.is_end_stream() {
                    this.end();
                }
            }
            Poll::Ready(None) => this.end(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Stream(relay) => relay.back.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Source::Stream(relay) => match relay.rest.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(rest + relay.prefix.len() as u64),
                None => SizeHint::default(),
            },
        }
    }
}

impl Drop for RelayBody {
    fn drop(&mut self) {
        // hyper does not poll a body that has nothing to say (HEAD, 204, empty): that is no cut.
        if self.is_end_stream() {
            self.end();
        }
    }
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.prefix)))));
        }
        loop {
            match Pin::new(&mut self.rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(sleep) = &mut self.sleep {
                        sleep.as_mut().reset(Instant::now() + self.idle);
                    }
                    if self.rest.is_end_stream() {
                        self.give_back();
                    }
                    // Trailers of one connection end here.
                    if frame.is_data() {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Cut::Broken(error)))),
                Poll::Ready(None) => {
                    self.give_back();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let idle = self.idle;
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                    return sleep.as_mut().poll(cx).map(|()| Some(Err(Cut::Idle(idle))));
                }
            }
        }
    }

    fn give_back(&mut self) {
        if let Some(back) = self.back.take() {
            back.whole();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_tells_limits_and_timings() {
        let mut headers = HeaderMap::new();
        headers.insert(REMAINING, HeaderValue::from_static("7"));
        headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
        clean(&mut headers);
        let view = View {
            limit: 60,
            window: Duration::from_secs(60),
            remaining: 3,
            reset_in: Duration::from_millis(1500),
        };
        let told = Told {
            request_id: "r1",
            queued: Duration::from_millis(12),
            upstream: Duration::from_millis(340),
            attempts: 2,
            view: Some(view),
            charge: Some(Charge::Accepted),
            wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        tell(&mut headers, &told);
        let expected = [
            ("sluicegate-upstream-ratelimit-remaining", "7"),
            ("x-request-id", "r1"),
            (
                "server-timing",
                "queue;dur=12.0, upstream;dur=340.0, attempts;desc=\"2\"",
            ),
            ("sluicegate-charge", "accepted"),
            ("x-ratelimit-limit", "60"),
            ("x-ratelimit-remaining", "3"),
            ("x-ratelimit-reset", "1800000002"),
            ("ratelimit-policy", "\"requests\";q=60;w=60"),
            ("ratelimit", "\"requests\";r=3;t=2"),
        ];
        assert_eq!(headers.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(headers[name], value, "{name}");
        }
    }
}
