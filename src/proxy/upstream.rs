//! The connections to the upstream: one pool a worker, over hyper's connection API.
//!
//! A connection is made ready *before* quota is spent, and a send tells apart what provably never left from what may have been carried
//! out. Those two needs are why this is not a client library's pool; its rules are kept: idle connections expire, a connection whose
//! answer was cut is never used again, and only what was never written is sent again unasked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::body::SendBody;
use super::rejection::Unreachable;

use self::connect::{Connect, Failure};

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

/// A worker's connections to the upstream.
pub(crate) struct Upstream {
    connector: Arc<dyn Connect>,
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
    pub(crate) fn new(connector: Arc<dyn Connect>) -> Self {
        Self { connector, idle: Arc::default(), h2: Mutex::default() }
    }

    /// A connection ready for one request. `fresh` refuses those that have been idle for a while.
    pub(crate) async fn ready(&self, fresh: bool) -> Result<Connection, Failure> {
        if let Some(connection) = self.pooled(fresh) {
            return Ok(connection);
        }
        let connected = self.connector.connect().await?;
        let io = TokioIo::new(connected.io);
        if connected.h2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10))
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
        let (sender, connection) = http1::handshake(io).await.map_err(|_| Failure(Unreachable::Broken))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the upstream ended");
            }
        });
        let lease = Lease { sender, task: Abort(task.abort_handle()), pool: Arc::clone(&self.idle) };
        Ok(Connection(Kind::H1(lease)))
    }

    fn pooled(&self, fresh: bool) -> Option<Connection> {
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
        // One whose answer has just ended may need another moment until it is ready.
        let newest = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        if fresh && now - idle[newest].since > FRESH_FOR {
            return None;
        }
        let Idle { sender, task, .. } = idle.remove(newest)?;
        Some(Connection(Kind::H1(Lease { sender, task, pool: Arc::clone(&self.idle) })))
    }
}

impl Multiplexed {
    /// A stream for one request, if there is one.
    fn stream(&self) -> Option<Connection> {
        let stream = Arc::clone(&self.streams).try_acquire_owned().ok()?;
        Some(Connection(Kind::H2(self.sender.clone(), stream)))
    }
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
}

impl Connection {
    /// True where requests carry the authority in the target (RFC 9113 §8.3.1).
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self.0, Kind::H2(..))
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) async fn send(self, request: Request<SendBody>) -> Result<(Response<Incoming>, Return), SendError> {
        match self.0 {
            Kind::H1(mut lease) => match lease.sender.try_send_request(request).await {
                Ok(response) => Ok((response, Return(Kind::H1(lease)))),
                Err(mut error) => Err(match error.take_message() {
                    Some(request) => SendError::Unsent(request.into_body()),
                    None => SendError::Silent(error.into_error()),
                }),
            },
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
