//! Listening, connections, and what they share. What is answered is up to `super::handler`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::books::Books;
use super::epoch::Epoch;
use super::handler;
use super::options::Options;
use super::stats::Stats;
use super::wire::Wire;

/// How long a connection that is to be closed stays open, so that the last bytes arrive first.
const BEFORE_CLOSE: Duration = Duration::from_millis(20);

/// One mock's state.
pub(super) struct Shared {
    pub(super) options: Arc<Options>,
    pub(super) epoch: Epoch,
    /// Of its URLs.
    pub(super) scheme: &'static str,
    books: Mutex<Books>,
    /// Sent to after every change in the books.
    changed: watch::Sender<()>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Shared {
    pub(super) fn new(options: Options, scheme: &'static str) -> Arc<Self> {
        let options = Arc::new(options);
        let epoch = Epoch::starting_at(options.start_epoch.unwrap_or_else(SystemTime::now));
        Arc::new(Self {
            books: Mutex::new(Books::new(Arc::clone(&options), epoch)),
            options,
            epoch,
            scheme,
            changed: watch::Sender::new(()),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Reads or writes the books; whoever waits for a change looks again afterwards.
    pub(super) fn books<R>(&self, work: impl FnOnce(&mut Books) -> R) -> R {
        let result = work(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    /// Reads the books without waking those who wait for a change.
    pub(super) fn peek<R>(&self, work: impl FnOnce(&mut Books) -> R) -> R {
        work(&mut self.lock())
    }

    pub(super) fn note(&self, event: impl FnOnce(&mut Stats)) {
        self.books(|books| books.note(event));
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Runs until the mock stops.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(task).await });
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, as its requests see it.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    garbles: AtomicBool,
    end: CancellationToken,
}

impl Link {
    /// Everything written from now on is garbage.
    pub(super) fn garble(&self) {
        // Relaxed: set and read on behalf of one answer, which is written after it was made.
        self.garbles.store(true, Ordering::Relaxed);
    }

    pub(super) fn garbles(&self) -> bool {
        self.garbles.load(Ordering::Relaxed)
    }

    /// Closes the connection without notice, once the last bytes are out.
    pub(super) fn close_soon(&self) {
        let end = self.end.clone();
        self.shared.spawn(async move {
            sleep(BEFORE_CLOSE).await;
            end.cancel();
        });
    }
}

/// Accepts connections for as long as it is polled.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await; // most likely out of file descriptors
            continue;
        };
        stream.set_nodelay(true).ok();
        let (connection, tls) = (Arc::clone(&shared), tls.clone());
        shared.spawn(async move {
            match tls {
                None => serve(connection, stream).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(connection, stream).await;
                    }
                }
            }
        });
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2, to its end.
pub(super) async fn serve(shared: Arc<Shared>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    shared.note(|stats| stats.connections += 1);
    let end = shared.stop.child_token();
    let link = Arc::new(Link { shared, garbles: AtomicBool::new(false), end: end.clone() });
    let _streams_end_too = end.clone().drop_guard();
    let io = TokioIo::new(Wire::new(io, Arc::clone(&link)));
    let streams = Streams(Arc::clone(&link));
    let service = service_fn(move |request| handler::handle(Arc::clone(&link), request));
    let mut builder = auto::Builder::new(streams);
    builder.http2().max_concurrent_streams(1_000);
    // A connection's error is the other side's affair: the mock only observes.
    end.run_until_cancelled(builder.serve_connection(io, service)).await.map(Result::ok);
}

/// Runs the streams of one HTTP/2 connection, no longer than the connection.
#[derive(Clone)]
struct Streams(Arc<Link>);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let end = self.0.end.clone();
        self.0.shared.spawn(async move {
            end.run_until_cancelled(stream).await;
        });
    }
}
