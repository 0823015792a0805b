//! `/api/v1/events`: what the dashboard shows, as server-sent events. A `snapshot` twice a second, a `history` every ten.
//!
//! Each is built once for all who listen, and not at all while nobody does. A listener that reads slowly skips snapshots.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::proxy::App;
use crate::proxy::finish::recent::Watching;
use crate::reload::Reloader;

use super::history::{History, SAMPLED_EVERY, Sample};
use super::snapshot;
use super::status::status;

/// So many may listen at a time.
pub(super) const LISTENERS: usize = 16;
/// Between two snapshots.
const PAUSE: Duration = Duration::from_millis(500);
/// What a browser waits before it asks again, after the connection was lost.
const RETRY: &str = "retry: 2000\n";

/// What is built, and for whom.
pub(super) struct Feed {
    reloader: Arc<Reloader>,
    /// Where the data port listens.
    listen: Vec<SocketAddr>,
    places: Arc<Semaphore>,
    /// Somebody has begun to listen.
    came: Notify,
    snapshot: watch::Sender<Bytes>,
    /// Short; held by nobody while a point is added, each ten seconds, or its text built.
    history: Mutex<(History, Option<Bytes>)>,
    /// Rings with each new point.
    point: watch::Sender<()>,
    built: AtomicU64,
}

impl Feed {
    pub(super) fn new(reloader: Arc<Reloader>, listen: Vec<SocketAddr>) -> Self {
        Self {
            reloader,
            listen,
            places: Arc::new(Semaphore::new(LISTENERS)),
            came: Notify::new(),
            snapshot: watch::Sender::default(),
            history: Mutex::default(),
            point: watch::Sender::default(),
            built: AtomicU64::new(0),
        }
    }

    /// Builds until dropped.
    pub(super) async fn run(self: Arc<Self>) {
        tokio::join!(self.build(), self.remember());
    }

    async fn build(&self) {
        loop {
            while self.snapshot.is_closed() {
                self.came.notified().await;
            }
            let snapshot = snapshot::snapshot(&self.reloader.latest(), &self.status()).to_string();
            self.built.fetch_add(1, Ordering::Relaxed);
            self.snapshot.send_replace(event("snapshot", &snapshot));
            sleep(PAUSE).await;
        }
    }

    async fn remember(&self) {
        let mut ticks = interval(SAMPLED_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.history().0.start(sample(&self.reloader.latest()));
        loop {
            ticks.tick().await;
            let sample = sample(&self.reloader.latest());
            let mut history = self.history();
            if history.0.add(sample) {
                history.1 = None;
                drop(history);
                self.point.send_replace(());
            }
        }
    }

    /// A place among the listeners; `None` where all are taken.
    pub(super) fn listen(self: &Arc<Self>) -> Option<Events> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let (snapshot, point) = (self.snapshot.subscribe(), self.point.subscribe());
        self.came.notify_one();
        let watching = self.reloader.latest().recent.watch();
        let source =
            Source { feed: Arc::clone(self), snapshot, point, begun: false, _place: place, _watching: watching };
        Some(Events(Box::pin(source.next())))
    }

    /// The status of the proxy and of this.
    pub(super) fn status(&self) -> Value {
        let app = self.reloader.latest();
        let mut status = status(&app);
        status["listen"] = json!(self.listen);
        status["credits"] = app.credits.budgets();
        let listeners = LISTENERS - self.places.available_permits();
        status["dashboard"] = json!({"listeners": listeners, "snapshots": self.built.load(Ordering::Relaxed)});
        status
    }

    fn text(&self) -> Bytes {
        let mut guard = self.history();
        let (history, text) = &mut *guard;
        text.get_or_insert_with(|| event("history", &history.json())).clone()
    }

    fn history(&self) -> MutexGuard<'_, (History, Option<Bytes>)> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// JSON without line breaks as an event.
fn event(name: &str, data: &str) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

fn sample(app: &App) -> Sample {
    let queues = app.queues().map(|(_, queue)| queue.snapshot());
    let mut sample = queues.fold(Sample::default(), |all, queue| Sample {
        waiting: all.waiting + queue.waiting,
        jobs_live: all.jobs_live + queue.live,
        ..all
    });
    sample.waiting += app.breaker.waiting();
    for account in &app.accounts {
        let totals = account.counters.totals();
        sample.attempts += totals.sent.values().sum::<u64>();
        sample.refused += totals.refused_window + totals.refused_jobs;
    }
    sample
}

struct Source {
    feed: Arc<Feed>,
    snapshot: watch::Receiver<Bytes>,
    point: watch::Receiver<()>,
    begun: bool,
    _place: OwnedSemaphorePermit,
    _watching: Watching,
}

impl Source {
    /// The next event; `None` when the feed has ended.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        if !std::mem::replace(&mut self.begun, true) {
            let first = [RETRY.as_bytes(), &self.feed.text()].concat();
            return Some((first.into(), self));
        }
        let bytes = tokio::select! {
            biased;
            point = self.point.changed() => point.ok().map(|()| self.feed.text()),
            snapshot = self.snapshot.changed() => snapshot.ok().map(|()| self.snapshot.borrow_and_update().clone()),
        };
        Some((bytes?, self))
    }
}

type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Source)>> + Send>>;

/// A listener's answer. Dropped, its place is free.
pub(super) struct Events(Next);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some((bytes, source)) = ready!(self.0.as_mut().poll(cx)) else { return Poll::Ready(None) };
        self.0 = Box::pin(source.next());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
