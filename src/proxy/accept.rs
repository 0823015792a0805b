//! Connections from callers. One acceptor hands them round robin to the workers, each a runtime of its own on one thread, so that a
//! request lives on one thread from accept to answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Seat;

pub(crate) use self::serve::{Answered, Asked, Terms, serve};
pub(crate) use self::signals::Refused;

/// A connection, whatever port it came to.
mod serve;

/// The stream below hyper, which passes on what is well framed.
mod gate;

/// HTTP/2 streams that stall.
mod streams;

/// What the stream tells the service.
mod signals;

/// The grammar of HTTP/1 messages.
pub(crate) mod scan;

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
pub(crate) async fn work(seat: Arc<Seat>, mut handed: mpsc::UnboundedReceiver<Accepted>) {
    let connections = TaskTracker::new();
    while let Some(Accepted { tcp, place }) = handed.recv().await {
        match TcpStream::from_std(tcp) {
            Ok(tcp) => {
                let seat = Arc::clone(&seat);
                connections.spawn(async move {
                    connection(seat, tcp).await;
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
pub(crate) async fn connection<I>(seat: Arc<Seat>, io: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = Arc::clone(&seat.worker().app);
    let metrics = Arc::clone(&app.metrics);
    // Before the look at the drain, which waits for those that were there when it began.
    let before = app.connected.token();
    let late = app.drain.is_cancelled();
    // Who comes later is told, and not waited for.
    let (before, drain) = if late { (None, CancellationToken::new()) } else { (Some(before), app.drain.clone()) };
    let terms = Terms { header_timeout: app.header_timeout, http2: true, keep_alive: !late };
    // A connection may outlive many configurations.
    drop(app);
    metrics.connections.inc();
    serve(io, terms, &drain, move |asked| {
        let worker = seat.worker();
        async move {
            match asked {
                Asked::Request(request) => super::serve(worker, request).await,
                Asked::Refused(refused) => super::refuse(&worker.app, refused).into(),
            }
        }
    })
    .await;
    drop(before);
    metrics.connections.dec();
}
