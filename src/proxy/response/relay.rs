//! The body of an answer, relayed piece by piece; its end is noted, and its connection given back or closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::proxy::finish::Finish;
use crate::proxy::upstream::Return;

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
    #[error("the upstream gave up its answer before the end")]
    Reset,
    #[error("nothing came from the upstream for {} s", .0.as_secs_f64())]
    Idle(Duration),
}

impl RelayBody {
    /// A body held whole.
    pub(crate) fn whole(bytes: Bytes, finish: Box<Finish>) -> Self {
        Self { source: Source::Whole((!bytes.is_empty()).then_some(bytes)), finish: Some(finish) }
    }

    /// A body still coming; `prefix` has been read already.
    pub(crate) fn stream(prefix: Bytes, rest: Incoming, back: Return, idle: Duration, finish: Box<Finish>) -> Self {
        if prefix.is_empty() && rest.is_end_stream() {
            back.whole();
            return Self::whole(Bytes::new(), finish);
        }
        let relay = Relay { prefix, rest, back: Some(back), idle, sleep: None };
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
                Poll::Ready(None) if self.back.as_ref().is_some_and(|back| !back.has_ended(&self.rest)) => {
                    return Poll::Ready(Some(Err(Cut::Reset)));
                }
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
