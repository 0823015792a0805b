//! HTTP/2 streams whose client never opens its window: hyper waits for them without end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::rt::Executor;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Instant, Sleep};

use super::gate::WRITE_STALL;

tokio::task_local! {
    /// Of the stream that runs.
    static GIVEN: Arc<Given>;
}

/// When a stream's client was last given a piece that hyper has not come back from.
#[derive(Debug)]
pub(super) struct Given {
    begun: Instant,
    /// In milliseconds since `begun`, and one; 0 while it is not the client that we wait for.
    at_ms: AtomicU64,
}

impl Given {
    /// The running stream's; none in HTTP/1, where the gate knows.
    pub(super) fn of_this_stream() -> Option<Arc<Self>> {
        GIVEN.try_with(Arc::clone).ok()
    }

    /// A piece was given, or there is none to give.
    pub(super) fn note(&self, given: bool) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.at_ms.store(if given { since + 1 } else { 0 }, Ordering::Relaxed);
    }

    fn due(&self) -> Option<Instant> {
        let since = self.at_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.begun + std::time::Duration::from_millis(since) + WRITE_STALL)
    }
}

/// Runs streams as tasks, and drops those that stall.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let given = Arc::new(Given { begun: Instant::now(), at_ms: AtomicU64::new(0) });
        let running = Box::pin(GIVEN.scope(Arc::clone(&given), stream));
        tokio::spawn(Stream { running, given, timer: None });
    }
}

struct Stream<F> {
    running: Pin<Box<TaskLocalFuture<Arc<Given>, F>>>,
    given: Arc<Given>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.running.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(due) = this.given.due() else { return Poll::Pending };
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        // Its drop resets the stream.
        timer.as_mut().poll(cx)
    }
}
