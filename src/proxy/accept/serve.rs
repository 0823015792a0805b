//! One connection, whatever port it came to: hyper behind the gate, and the clocks of a connection that asks nothing.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::proxy::guard::MAX_HEAD_BYTES;

use super::gate::Gate;
use super::signals::{Busy, Refused, Signals};
use super::streams::{Given, Streams};

/// An idle connection is kept for so long after its last answer.
const IDLE: Duration = Duration::from_secs(75);
/// A connection that has just been made when the drain begins has so long to ask, and to be told.
const BEGINNING: Duration = Duration::from_millis(200);
/// hyper's buffers of an HTTP/1 connection: room for a head, and the most that waits for a client that reads slowly.
const BUFFER_BYTES: usize = MAX_HEAD_BYTES * 2;
/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 256;
/// Streams that were reset before we took them up, and those that we had to reset ourselves (RFC 9113 §10.5; rapid reset, `MadeYouReset`):
/// beyond, the connection ends.
const MAX_RESETS: usize = 32;
/// What one HTTP/2 stream holds for a client that reads slowly.
const STREAM_BUFFER_BYTES: usize = 128 * 1024;
/// What may come on one stream, and on all of a connection, before we have taken it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// A quiet HTTP/2 connection is pinged so often, and must answer in as long.
const PING: Duration = Duration::from_secs(20);

/// What a port offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// For a head to arrive once it has begun, and for a new connection to ask anything.
    pub(crate) header_timeout: Duration,
    /// HTTP/2 with prior knowledge.
    pub(crate) http2: bool,
    /// More than one request a connection.
    pub(crate) keep_alive: bool,
}

/// What is to be answered.
pub(crate) enum Asked {
    /// Boxed, as it goes through many hands, each of which would have a place for it.
    Request(Box<Request<Incoming>>),
    /// A request that may not be acted on, answered as told.
    Refused(Refused),
}

/// What the service says.
pub(crate) enum Answered<B> {
    /// The answer.
    Now(Response<B>),
    /// The answer is long in coming, and this is all that is kept until then.
    Later(Pin<Box<dyn Future<Output = Response<B>> + Send>>),
}

impl<B> From<Response<B>> for Answered<B> {
    fn from(response: Response<B>) -> Self {
        Self::Now(response)
    }
}

/// Serves a connection to its end; after `drain`, to the end of what is under way.
pub(crate) async fn serve<I, A, F, B>(io: I, terms: Terms, drain: &CancellationToken, answer: A)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Asked) -> F + Clone + Send + 'static,
    F: Future<Output: Into<Answered<B>>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let signals = Signals::new();
    let mut gate = Gate::new(io, Arc::clone(&signals), terms.header_timeout);
    let mut http2 = false;
    if terms.http2 {
        let begun = async {
            drain.cancelled().await;
            tokio::time::sleep(BEGINNING).await;
        };
        http2 = tokio::select! {
            biased;
            spoken = tokio::time::timeout(terms.header_timeout, gate.speaks_http2()) => match spoken {
                Ok(Ok(http2)) => http2,
                Ok(Err(_)) => return,
                // What has come may be a piece of a head.
                Err(_) => gate.chosen(),
            },
            () = begun => return,
        };
    }
    let told = Arc::clone(&signals);
    let service = service_fn(move |request: Request<Incoming>| {
        let (number, busy) = told.asked();
        let old = request.version() < Version::HTTP_2;
        let asked = match told.refused(number) {
            Some(refused) => Asked::Refused(refused.clone()),
            None => Asked::Request(Box::new(request)),
        };
        // Boxed, so that idle connections do not keep its place.
        Answering { on: On::First(Box::pin(answer(asked))), told: Arc::clone(&told), number, old, busy: Some(busy) }
    });
    let ended = if http2 {
        let connection = http2_builder().serve_connection(TokioIo::new(gate), service);
        // Boxed, as it is rare: every connection would be larger by it.
        Box::pin(watched(connection, http2::Connection::graceful_shutdown, terms, drain, &signals)).await
    } else {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None).keep_alive(terms.keep_alive).max_buf_size(BUFFER_BYTES);
        let connection = builder.serve_connection(TokioIo::new(gate), service);
        watched(connection, http1::Connection::graceful_shutdown, terms, drain, &signals).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

fn http2_builder() -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_send_buf_size(STREAM_BUFFER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Ends a connection that asks nothing, and one that is to be drained, when what it asked has been answered.
async fn watched<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    shut: fn(Pin<&mut C>),
    terms: Terms,
    drain: &CancellationToken,
    signals: &Signals,
) -> hyper::Result<()> {
    let mut connection = std::pin::pin!(connection);
    let idle = tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = drain.cancelled() => false,
        () = signals.idle(terms.header_timeout, IDLE) => true,
    };
    shut(connection.as_mut());
    if !idle {
        return connection.await;
    }
    // Nothing is under way: this only says goodbye.
    tokio::time::timeout(terms.header_timeout, connection).await.unwrap_or(Ok(()))
}

/// A request that is being answered.
struct Answering<F, B> {
    on: On<F, B>,
    told: Arc<Signals>,
    number: u64,
    /// HTTP/1.
    old: bool,
    busy: Option<Busy>,
}

/// What it waits for.
enum On<F, B> {
    First(Pin<Box<F>>),
    Later(Pin<Box<dyn Future<Output = Response<B>> + Send>>),
}

impl<F: Future<Output: Into<Answered<B>>>, B> Future for Answering<F, B> {
    type Output = Result<Response<Counted<B>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = loop {
            match &mut self.on {
                On::First(answer) => match ready!(answer.as_mut().poll(cx)).into() {
                    Answered::Now(response) => break response,
                    // What came first is dropped here.
                    Answered::Later(answer) => self.on = On::Later(answer),
                },
                On::Later(answer) => break ready!(answer.as_mut().poll(cx)),
            }
        };
        // Whoever has not sent all of the body by now might take its rest for the next request, or never know what became of it.
        if self.old && self.told.is_body_open(self.number) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let busy = self.busy.take();
        Poll::Ready(Ok(response.map(|body| Counted { body, given: Given::of_this_stream(), _busy: busy })))
    }
}

/// An answer's body that tells when it has ended or was dropped, and when it waits for its client.
struct Counted<B> {
    body: B,
    given: Option<Arc<Given>>,
    _busy: Option<Busy>,
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(given) = &self.given {
            given.note(frame.is_ready());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
