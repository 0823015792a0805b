//! Bodies of answers: whole, endless zeroes, paced events; and each of them cut short.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};
use tokio::time::{Sleep, sleep};

use super::server::{Link, Shared};

/// Bytes sent at once of a body of zeroes.
static ZEROES: [u8; 16 * 1024] = [0; 16 * 1024];
/// Bytes sent of a body without a known length that is cut short.
const CUT_STREAM_BYTES: u64 = 300;
/// Lets what was sent reach the other side before the connection breaks.
const BEFORE_CUT: Duration = Duration::from_millis(5);

/// A body.
pub(super) struct Reply {
    kind: Kind,
    cut: Option<Cut>,
    /// The connection to close a little after the end.
    closes: Option<Arc<Link>>,
}

enum Kind {
    Whole(Bytes),
    Zeroes(u64),
    Paced(Paced),
}

struct Cut {
    left: u64,
    pause: Pin<Box<Sleep>>,
}

impl Reply {
    fn new(kind: Kind) -> Self {
        Self { kind, cut: None, closes: None }
    }

    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::new(Kind::Whole(bytes.into()))
    }

    pub(super) fn zeroes(n: u64) -> Self {
        Self::new(Kind::Zeroes(n))
    }

    /// Announces all of it, sends half, then breaks.
    pub(super) fn cut_short(mut self) -> Self {
        let left = self.size_hint().exact().map_or(CUT_STREAM_BYTES, |size| size / 2);
        self.cut = Some(Cut { left, pause: Box::pin(sleep(BEFORE_CUT)) });
        self
    }

    /// Closes the connection a little after its end.
    pub(super) fn then_close(mut self, link: Arc<Link>) -> Self {
        self.closes = Some(link);
        self
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(link) = &self.closes {
            link.close_soon();
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Some(cut) = &mut this.cut
            && cut.left == 0
        {
            ready!(cut.pause.as_mut().poll(cx));
            return Poll::Ready(Some(Err(io::Error::other("cut short by a scripted fault"))));
        }
        let data = match &mut this.kind {
            Kind::Whole(bytes) if bytes.is_empty() => None,
            Kind::Whole(bytes) => Some(std::mem::take(bytes)),
            Kind::Zeroes(0) => None,
            Kind::Zeroes(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(ZEROES.len());
                *left -= n as u64;
                Some(Bytes::from_static(&ZEROES[..n]))
            }
            Kind::Paced(paced) => ready!(paced.poll_next(cx)),
        };
        let Some(mut data) = data else { return Poll::Ready(None) };
        if let Some(cut) = &mut this.cut {
            data.truncate(usize::try_from(cut.left).unwrap_or(usize::MAX));
            cut.left -= data.len() as u64;
            if cut.left == 0 {
                cut.pause = Box::pin(sleep(BEFORE_CUT));
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && matches!(&self.kind, Kind::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Zeroes(left) => SizeHint::with_exact(*left),
            Kind::Paced(_) => SizeHint::default(),
        }
    }
}

/// Events with a gap between them. One that is dropped before its end was left by the other side.
struct Paced {
    next: Box<dyn FnMut() -> Option<Bytes> + Send>,
    gap: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    ended: bool,
    shared: Arc<Shared>,
}

impl Paced {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let next = (self.next)();
        if next.is_none() {
            self.ended = true;
        } else if !self.gap.is_zero() {
            self.pause = Some(Box::pin(sleep(self.gap)));
        }
        Poll::Ready(next)
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.note(|stats| stats.streams_aborted += 1);
        }
    }
}

/// A JSON answer.
pub(super) fn json_reply(status: StatusCode, body: &Value) -> Response<Reply> {
    typed(status, "application/json", Reply::whole(body.to_string()))
}

/// An error in the service's usual form.
pub(super) fn error(status: StatusCode, message: &str) -> Response<Reply> {
    json_reply(status, &json!({ "error": message }))
}

/// An answer of the given type.
pub(super) fn typed(status: StatusCode, content_type: &'static str, reply: Reply) -> Response<Reply> {
    let mut response = Response::new(reply);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A stream of Server-Sent Events; `next` is called when each is due.
pub(super) fn events(
    shared: &Arc<Shared>,
    gap: Duration,
    next: impl FnMut() -> Option<Bytes> + Send + 'static,
) -> Response<Reply> {
    let paced = Paced { next: Box::new(next), gap, pause: None, ended: false, shared: Arc::clone(shared) };
    let mut response = typed(StatusCode::OK, "text/event-stream", Reply::new(Kind::Paced(paced)));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A stream of events that are known beforehand.
pub(super) fn event_list(shared: &Arc<Shared>, mut list: VecDeque<Bytes>) -> Response<Reply> {
    events(shared, shared.options.llm_gap, move || list.pop_front())
}
