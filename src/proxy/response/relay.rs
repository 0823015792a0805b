//! The body of an answer, relayed piece by piece; its end is noted, and its connection given back or closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::proxy::finish::Finish;
use crate::proxy::upstream::{self, Answer};

/// The body of every answer. Dropping it early closes the upstream connection that feeds it.
pub(crate) struct RelayBody {
    source: Source,
    finish: Option<Box<Finish>>,
}

enum Source {
    Whole(Option<Bytes>),
    Stream(Box<Relay>),
}

struct Relay {
    prefix: Bytes,
    rest: Answer,
    idle: Duration,
    /// Made when the upstream first lets us wait: most answers are there at once.
    sleep: Option<Pin<Box<Sleep>>>,
    /// To be told once what came before it has left.
    cut: Option<upstream::Cut>,
}

/// Why an answer was cut. The connection is closed, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error(transparent)]
    Upstream(upstream::Cut),
    #[error("nothing came from the upstream for {} s", .0.as_secs_f64())]
    Idle(Duration),
}

impl RelayBody {
    /// A body held whole.
    pub(crate) fn whole(bytes: Bytes, finish: Box<Finish>) -> Self {
        Self { source: Source::Whole((!bytes.is_empty()).then_some(bytes)), finish: Some(finish) }
    }

    /// A body still coming; `prefix` has been read already.
    pub(crate) fn stream(prefix: Bytes, mut rest: Answer, idle: Duration, finish: Box<Finish>) -> Self {
        rest.end_if_empty();
        if prefix.is_empty() && rest.has_ended() {
            return Self::whole(Bytes::new(), finish);
        }
        let relay = Relay { prefix, rest, idle, sleep: None, cut: None };
        Self { source: Source::Stream(Box::new(relay)), finish: Some(finish) }
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
                    finish.passed(data);
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
            Source::Stream(relay) => relay.prefix.is_empty() && relay.rest.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Source::Stream(relay) => match relay.rest.rest_bytes() {
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
        if let Some(cut) = self.cut.take() {
            return Poll::Ready(Some(Err(Cut::Upstream(cut))));
        }
        loop {
            match self.rest.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(sleep) = &mut self.sleep {
                        sleep.as_mut().reset(Instant::now() + self.idle);
                    }
                    // Trailers of one connection end here.
                    if frame.is_data() {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                // hyper forgets what it has not written yet, be it the head, when a body fails.
                Poll::Ready(Some(Err(cut))) => {
                    self.cut = Some(cut);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let idle = self.idle;
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                    return sleep.as_mut().poll(cx).map(|()| Some(Err(Cut::Idle(idle))));
                }
            }
        }
    }
}
