//! Connections from callers. One acceptor hands them round robin to the workers, each a runtime of its own on one thread, so that a
//! request lives on one thread from accept to answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::guard::MAX_HEAD_BYTES;
use super::{Worker, serve};

/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 256;
/// Pause after the system refused a connection (no descriptors left): trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection on its way to a worker, with its place among `server.max_connections`.
pub(crate) struct Accepted {
    tcp: std::net::TcpStream,
    place: OwnedSemaphorePermit,
}

/// Accepts until dropped, handing connections to `workers` in turn.
pub(crate) async fn accept(
    listener: TcpListener,
    places: Arc<Semaphore>,
    workers: Vec<mpsc::UnboundedSender<Accepted>>,
) {
    for worker in workers.iter().cycle() {
        // Beyond the limit connections wait in the kernel's backlog.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let tcp = loop {
            match next(&listener).await {
                Ok(tcp) => break tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        if worker.send(Accepted { tcp, place }).is_err() {
            return;
        }
    }
}

async fn next(listener: &TcpListener) -> io::Result<std::net::TcpStream> {
    let (tcp, _) = listener.accept().await?;
    tcp.set_nodelay(true)?;
    tcp.into_std()
}

/// A worker's life: serves what it is handed until the acceptor is gone and every connection has ended.
pub(crate) async fn work(worker: Arc<Worker>, mut handed: mpsc::UnboundedReceiver<Accepted>, header_timeout: Duration) {
    let connections = TaskTracker::new();
    while let Some(Accepted { tcp, place }) = handed.recv().await {
        match TcpStream::from_std(tcp) {
            Ok(tcp) => {
                let worker = Arc::clone(&worker);
                connections.spawn(async move {
                    connection(worker, tcp, header_timeout).await;
                    drop(place);
                });
            }
            Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
        }
    }
    connections.close();
    connections.wait().await;
}

/// Serves one connection: HTTP/1.1, or HTTP/2 with prior knowledge.
pub(crate) async fn connection<I>(worker: Arc<Worker>, io: I, header_timeout: Duration)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(MAX_HEAD_BYTES * 2);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20));
    let metrics = Arc::clone(&worker.app.metrics);
    let drain = worker.app.drain.clone();
    metrics.connections.inc();
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = Arc::clone(&asked);
    let service = service_fn(move |request| {
        let worker = Arc::clone(&worker);
        has_asked.store(true, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(serve(worker, request).await) }
    });
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        biased;
        ended = served.as_mut() => ended,
        () = drain.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = silence(header_timeout, &asked) => Err("no request came in server.header_timeout".into()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    metrics.connections.dec();
}

/// Resolves when nothing was asked in time. hyper's own clock starts only when it has told HTTP/1.1 and HTTP/2 apart.
async fn silence(header_timeout: Duration, asked: &AtomicBool) {
    tokio::time::sleep(header_timeout).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}
