//! The connections to the upstream: one pool a worker, over hyper's connection API.
//!
//! A connection is made ready *before* quota is spent, and a send tells apart what provably never left from what may have been carried
//! out. Those two needs are why this is not a client library's pool; its rules are kept: idle connections expire, a connection whose
//! answer was cut is never used again, and only what was never written is sent again unasked.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::body::SendBody;
use super::rejection::{Rejection, Unreachable};

use self::breaker::Breaker;
use self::connect::{Connect, Failure};
use self::pool::Pool;
use self::wire::Wire;

/// Whether connecting is tried at all.
mod circuit;

/// The waiting around it.
pub(crate) mod breaker;

/// Opening connections.
pub(crate) mod connect;

/// Whereto.
pub(crate) mod target;

/// One connection.
mod wire;

/// Those that nobody uses.
mod pool;

/// Requests on one HTTP/2 connection at a time: servers are asked to allow at least this many (RFC 9113 §6.5.2). One more would wait
/// inside the connection, after its quota was spent.
const MAX_STREAMS: usize = 100;
/// Longest head of an answer, in bytes; with at most 100 fields over HTTP/1.1. What is read beyond it before that is known is bounded too.
pub(crate) const MAX_HEAD_BYTES: u32 = 128 * 1024;

/// A worker's connections to the upstream.
pub(crate) struct Upstream {
    connector: Arc<dyn Connect>,
    breaker: Arc<Breaker>,
    pool: Pool,
    h2: Mutex<Vec<Multiplexed>>,
}

/// An HTTP/2 connection and its free streams.
#[derive(Clone)]
struct Multiplexed {
    sender: http2::SendRequest<SendBody>,
    streams: Arc<Semaphore>,
}

impl Upstream {
    pub(crate) fn new(connector: Arc<dyn Connect>, breaker: Arc<Breaker>) -> Self {
        Self { connector, breaker, pool: Pool::default(), h2: Mutex::default() }
    }

    /// Waits for as long as the circuit is open, where no connection is there already. Holds nothing meanwhile; where `deadline` comes
    /// before the circuit can close, the refusal comes at once. `fresh` as for `ready`.
    pub(crate) async fn reachable(&self, fresh: bool, deadline: Instant) -> Result<(), Rejection> {
        if self.breaker.is_closed() {
            return Ok(());
        }
        // Boxed, as it is rare: every request's future would be larger by it.
        Box::pin(async {
            let place = self.breaker.place()?;
            while !self.is_pooled(fresh) {
                let Some(probe) = place.wait(deadline).await? else { return Ok(()) };
                match self.open().await {
                    Ok(connection) => {
                        probe.made();
                        connection.unused().await;
                        return Ok(());
                    }
                    Err(failure) => probe.failed(failure.0),
                }
            }
            Ok(())
        })
        .await
    }

    /// A connection ready for one request. `fresh` refuses those that have been idle for a while.
    pub(crate) async fn ready(&self, fresh: bool) -> Result<Connection, NotReady> {
        if let Some(connection) = self.pooled(fresh) {
            return Ok(connection);
        }
        if !self.breaker.is_closed() {
            return Err(NotReady::Open(self.breaker.retry_in()));
        }
        // Boxed, as it is rare: every request's future would be larger by it.
        match Box::pin(self.open()).await {
            Ok(connection) => {
                self.breaker.reached();
                Ok(connection)
            }
            Err(failure) => {
                self.breaker.failed(failure.0);
                Err(NotReady::Failed(failure))
            }
        }
    }

    /// The time for connecting was over before `ready` said anything.
    pub(crate) fn too_slow(&self) {
        self.breaker.failed(Unreachable::Timeout);
    }

    /// An answer came.
    pub(crate) fn answered(&self) {
        self.breaker.reached();
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let connected = self.connector.connect().await?;
        if connected.h2 {
            let io = TokioIo::new(connected.io);
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10))
                .max_header_list_size(MAX_HEAD_BYTES)
                .handshake(io)
                .await
                .map_err(|_| Failure(Unreachable::Broken))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "HTTP/2 connection to the upstream ended");
                }
            });
            let shared = Multiplexed { sender, streams: Arc::new(Semaphore::new(MAX_STREAMS)) };
            let connection = shared.stream().ok_or(Failure(Unreachable::Broken))?;
            self.h2.lock().unwrap_or_else(PoisonError::into_inner).push(shared);
            return Ok(connection);
        }
        let wire = Wire::new(connected.io).await?;
        Ok(Connection(Kind::H1(Lease { wire, pool: self.pool.clone() })))
    }

    /// A connection that is there already.
    pub(crate) fn pooled(&self, fresh: bool) -> Option<Connection> {
        let mut h2 = self.h2.lock().unwrap_or_else(PoisonError::into_inner);
        h2.retain(|shared| shared.sender.is_ready());
        if let Some(connection) = h2.iter().find_map(Multiplexed::stream) {
            return Some(connection);
        }
        drop(h2);
        let wire = self.pool.take(fresh)?;
        Some(Connection(Kind::H1(Lease { wire, pool: self.pool.clone() })))
    }

    /// A connection is there without connecting.
    fn is_pooled(&self, fresh: bool) -> bool {
        let h2 = self.h2.lock().unwrap_or_else(PoisonError::into_inner);
        if h2.iter().any(|shared| shared.sender.is_ready() && shared.streams.available_permits() > 0) {
            return true;
        }
        drop(h2);
        self.pool.has_one(fresh)
    }
}

impl Multiplexed {
    /// A stream for one request, if there is one.
    fn stream(&self) -> Option<Connection> {
        let stream = Arc::clone(&self.streams).try_acquire_owned().ok()?;
        Some(Connection(Kind::H2(self.sender.clone(), stream)))
    }
}

/// Why there is no connection.
pub(crate) enum NotReady {
    /// It was tried.
    Failed(Failure),
    /// The circuit is open: none is tried before this long.
    Open(Duration),
}

/// A connection ready for one request.
pub(crate) struct Connection(Kind);

enum Kind {
    H1(Lease),
    H2(http2::SendRequest<SendBody>, OwnedSemaphorePermit),
}

/// Why there is no response head.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Nothing was written; here is the body again.
    Unsent(SendBody),
    /// It may have been carried out.
    Silent(hyper::Error),
    /// Interim answers without end.
    Flooded,
    /// There was none in time.
    TooLate,
}

impl From<TrySendError<Request<SendBody>>> for SendError {
    fn from(mut error: TrySendError<Request<SendBody>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(request.into_body()),
            None => Self::Silent(error.into_error()),
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Connection {
    /// True where requests carry the authority in the target (RFC 9113 §8.3.1).
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self.0, Kind::H2(..))
    }

    /// Gives it to whoever comes next, once it can be used.
    async fn unused(mut self) {
        if let Kind::H1(lease) = &mut self.0 {
            lease.wire.settle().await;
        }
        self.0.give_back();
    }

    /// Sends one request and waits for the head of its answer, where told so no longer than `until`.
    pub(crate) async fn send(
        self,
        request: Request<SendBody>,
        until: Option<Instant>,
    ) -> Result<(response::Parts, Answer), SendError> {
        let (answer, kind) = match self.0 {
            Kind::H1(mut lease) => (lease.wire.send(request, until).await?, Kind::H1(lease)),
            Kind::H2(mut sender, stream) => {
                let answer = tokio::select! {
                    biased;
                    answer = sender.try_send_request(request) => answer.map_err(SendError::from)?,
                    () = sleep_until(until) => return Err(SendError::TooLate),
                };
                (answer, Kind::H2(sender, stream))
            }
        };
        let (head, body) = answer.into_parts();
        Ok((head, Answer { body, from: Some(kind) }))
    }
}

struct Lease {
    wire: Box<Wire>,
    pool: Pool,
}

impl Kind {
    fn give_back(self) {
        if let Self::H1(Lease { wire, pool }) = self {
            pool.give(wire);
        }
    }
}

/// The body of an answer with the connection that it comes over. `whole` gives that one back, drop closes it (the answer was cut, or
/// nobody reads it).
pub(crate) struct Answer {
    body: Incoming,
    /// `None` once it was given back.
    from: Option<Kind>,
}

impl Answer {
    /// Its next piece; the connection is given back with the last one.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = match &mut self.from {
            Some(Kind::H1(lease)) => lease.wire.poll_frame(&mut self.body, cx),
            Some(Kind::H2(..)) => Pin::new(&mut self.body).poll_frame(cx),
            None => return Poll::Ready(None),
        };
        match frame {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                if self.body.is_end_stream() {
                    self.whole();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Cut::Broken(error)))),
            // hyper also ends a body that was reset with `NO_ERROR`, which is meant for answers that were whole before (RFC 9113 §8.1);
            // HTTP/1.1 tells a cut by itself.
            Poll::Ready(None) if matches!(self.from, Some(Kind::H2(..))) && !self.body.is_end_stream() => {
                Poll::Ready(Some(Err(Cut::Reset)))
            }
            Poll::Ready(None) => {
                self.whole();
                Poll::Ready(None)
            }
        }
    }

    /// There is nothing more to come.
    pub(crate) fn has_ended(&self) -> bool {
        self.from.is_none()
    }

    /// What is still to come, where that is known.
    pub(crate) fn rest_bytes(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Gives the connection back, where an answer has no body.
    pub(crate) fn end_if_empty(&mut self) {
        if self.body.is_end_stream() {
            self.whole();
        }
    }

    fn whole(&mut self) {
        if let Some(from) = self.from.take() {
            from.give_back();
        }
    }
}

/// Why an answer has no end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the upstream's answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("the upstream gave up its answer before the end")]
    Reset,
}
