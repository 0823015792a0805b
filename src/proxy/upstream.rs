//! The connections to the upstream: one pool a worker, over hyper's connection API.
//!
//! A connection is made ready *before* quota is spent, and a send tells apart what provably never left from what may have been carried
//! out. Those two needs are why this is not a client library's pool; its rules are kept: idle connections expire, a connection whose
//! answer was cut is never used again, and only what was never written is sent again unasked.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::body::SendBody;
use super::rejection::{Rejection, Unreachable};

use self::breaker::Breaker;
use self::connect::{Connect, Failure};

/// Whether connecting is tried at all.
mod circuit;

/// The waiting around it.
pub(crate) mod breaker;

/// Opening connections.
pub(crate) mod connect;

/// Whereto.
pub(crate) mod target;

/// Below the 60 s after which common load balancers close an idle connection.
const IDLE_FOR: Duration = Duration::from_secs(50);
/// What cannot be repeated goes only over connections used this recently: the upstream closing an idle one just then would leave us not
/// knowing whether it ran.
const FRESH_FOR: Duration = Duration::from_secs(5);
const MAX_IDLE: usize = 256;
/// Requests on one HTTP/2 connection at a time: servers are asked to allow at least this many (RFC 9113 §6.5.2). One more would wait
/// inside the connection, after its quota was spent.
const MAX_STREAMS: usize = 100;
/// Longest head of an answer, in bytes; with at most 100 fields over HTTP/1.1. What is read beyond it before that is known is bounded too.
pub(crate) const MAX_HEAD_BYTES: u32 = 128 * 1024;
/// 1xx answers before the final one, over HTTP/1.1. Over HTTP/2 they are dropped unread.
pub(crate) const MAX_INTERIM: u32 = 16;

/// A worker's connections to the upstream.
pub(crate) struct Upstream {
    connector: Arc<dyn Connect>,
    breaker: Arc<Breaker>,
    idle: Pool,
    h2: Mutex<Vec<Multiplexed>>,
}

/// The newest at the back, and used first. Only this worker's thread takes the lock, which makes it free of waiting.
type Pool = Arc<Mutex<VecDeque<Idle>>>;

/// An HTTP/2 connection and its free streams.
#[derive(Clone)]
struct Multiplexed {
    sender: http2::SendRequest<SendBody>,
    streams: Arc<Semaphore>,
}

struct Idle {
    sender: http1::SendRequest<SendBody>,
    task: Abort,
    since: Instant,
}

/// Ends the connection's task on drop, and with it the connection.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upstream {
    pub(crate) fn new(connector: Arc<dyn Connect>, breaker: Arc<Breaker>) -> Self {
        Self { connector, breaker, idle: Arc::default(), h2: Mutex::default() }
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
        let io = TokioIo::new(connected.io);
        if connected.h2 {
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
        let mut builder = http1::Builder::new();
        builder.max_header_size(MAX_HEAD_BYTES as usize);
        let (sender, connection) = builder.handshake(io).await.map_err(|_| Failure(Unreachable::Broken))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the upstream ended");
            }
        });
        let lease = Lease { sender, task: Abort(task.abort_handle()), pool: Arc::clone(&self.idle) };
        Ok(Connection(Kind::H1(lease)))
    }

    /// A connection that is there already.
    pub(crate) fn pooled(&self, fresh: bool) -> Option<Connection> {
        let mut h2 = self.h2.lock().unwrap_or_else(PoisonError::into_inner);
        h2.retain(|shared| shared.sender.is_ready());
        if let Some(connection) = h2.iter().find_map(Multiplexed::stream) {
            return Some(connection);
        }
        drop(h2);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while idle.front().is_some_and(|oldest| now - oldest.since > IDLE_FOR || oldest.sender.is_closed()) {
            idle.pop_front();
        }
        let newest = newest(&idle, fresh, now)?;
        let Idle { sender, task, .. } = idle.remove(newest)?;
        Some(Connection(Kind::H1(Lease { sender, task, pool: Arc::clone(&self.idle) })))
    }

    /// A connection is there without connecting.
    fn is_pooled(&self, fresh: bool) -> bool {
        let h2 = self.h2.lock().unwrap_or_else(PoisonError::into_inner);
        if h2.iter().any(|shared| shared.sender.is_ready() && shared.streams.available_permits() > 0) {
            return true;
        }
        drop(h2);
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        newest(&idle, fresh, Instant::now()).is_some()
    }
}

/// The one to use next.
fn newest(idle: &VecDeque<Idle>, fresh: bool, now: Instant) -> Option<usize> {
    // One whose answer has just ended may need another moment until it is ready.
    let newest = idle.iter().rposition(|idle| idle.sender.is_ready())?;
    let most = if fresh { FRESH_FOR } else { IDLE_FOR };
    (now - idle[newest].since <= most).then_some(newest)
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
}

impl Connection {
    /// True where requests carry the authority in the target (RFC 9113 §8.3.1).
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self.0, Kind::H2(..))
    }

    /// Gives it to whoever comes next, once it can be used.
    async fn unused(mut self) {
        if let Kind::H1(lease) = &mut self.0
            && lease.sender.ready().await.is_err()
        {
            return;
        }
        Return(self.0).whole();
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) async fn send(self, mut request: Request<SendBody>) -> Result<(Response<Incoming>, Return), SendError> {
        match self.0 {
            Kind::H1(mut lease) => {
                let interim = Arc::new(AtomicU32::new(0));
                let (counted, connection) = (Arc::clone(&interim), lease.task.0.clone());
                hyper::ext::on_informational(&mut request, move |_| {
                    if counted.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
                        connection.abort();
                    }
                });
                match lease.sender.try_send_request(request).await {
                    // The connection has been ended; or the answer came with the flood, all in one piece.
                    _ if interim.load(Ordering::Relaxed) > MAX_INTERIM => Err(SendError::Flooded),
                    Ok(response) => Ok((response, Return(Kind::H1(lease)))),
                    Err(mut error) => Err(match error.take_message() {
                        Some(request) => SendError::Unsent(request.into_body()),
                        None => SendError::Silent(error.into_error()),
                    }),
                }
            }
            Kind::H2(mut sender, stream) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Return(Kind::H2(sender, stream)))),
                Err(mut error) => Err(match error.take_message() {
                    Some(request) => SendError::Unsent(request.into_body()),
                    None => SendError::Silent(error.into_error()),
                }),
            },
        }
    }
}

struct Lease {
    sender: http1::SendRequest<SendBody>,
    task: Abort,
    pool: Pool,
}

/// What becomes of the connection after the answer: `whole` gives it back, drop closes it (the answer was cut, or nobody reads it).
pub(crate) struct Return(Kind);

impl Return {
    /// Whether a body that says nothing more has ended as it should. hyper also ends one that was reset with `NO_ERROR`, which is meant
    /// for answers that were whole before (RFC 9113 §8.1); HTTP/1.1 tells a cut by itself.
    pub(crate) fn has_ended(&self, body: &Incoming) -> bool {
        matches!(self.0, Kind::H1(_)) || body.is_end_stream()
    }

    /// The answer's body has ended as it should.
    pub(crate) fn whole(self) {
        let Kind::H1(lease) = self.0 else { return };
        if lease.sender.is_closed() {
            return;
        }
        let mut idle = lease.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_IDLE {
            idle.retain(|idle| !idle.sender.is_closed());
        }
        if idle.len() < MAX_IDLE {
            idle.push_back(Idle { sender: lease.sender, task: lease.task, since: Instant::now() });
        }
    }
}
