//! One HTTP/1.1 connection to the upstream. It has no task of its own: whoever uses it drives it, so that a request and its answer need
//! neither a channel between tasks nor their wake-ups.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::{io, mem};

use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};

use crate::proxy::body::SendBody;
use crate::proxy::rejection::Unreachable;

use super::connect::{Failure, Stream};
use super::{MAX_HEAD_BYTES, SendError};

/// A head and the 1xx answers before it may have this many bytes. Over HTTP/2 those are dropped unread.
pub(crate) const MAX_HEADS_BYTES: usize = 2 * MAX_HEAD_BYTES as usize;

/// A connection, ready for one request or busy with one.
pub(super) struct Wire {
    sender: http1::SendRequest<SendBody>,
    /// `None` once it has ended.
    connection: Option<http1::Connection<TokioIo<Heard>, SendBody>>,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
    heard: Arc<AtomicUsize>,
    /// For the head of an answer. Put off with each request, which costs less than another one.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(super) async fn new(io: Box<dyn Stream>) -> Result<Box<Self>, Failure> {
        let heard = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Heard { io, bytes: Arc::clone(&heard) });
        let mut builder = http1::Builder::new();
        builder.max_header_size(MAX_HEAD_BYTES as usize);
        let (sender, connection) = builder.handshake(io).await.map_err(|_| Failure(Unreachable::Broken))?;
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        // Boxed: it goes through many hands.
        Ok(Box::new(Self { sender, connection: Some(connection), bell, waker, heard, patience: None }))
    }

    /// It can take a request.
    pub(super) fn is_ready(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.connection.is_none()
    }

    /// Sends one request and waits for the head of its answer, where told so no longer than `until`.
    pub(super) async fn send(
        &mut self,
        request: Request<SendBody>,
        mut until: Option<Instant>,
    ) -> Result<Response<Incoming>, SendError> {
        // Relaxed, here and below: whoever drives it is who counts.
        self.heard.store(0, Ordering::Relaxed);
        self.bell.mute();
        // Without the task's budget: once that is spent, what has come would not be told, and nobody woken.
        let mut answer = std::pin::pin!(unconstrained(self.sender.try_send_request(request)));
        let mut timed = false;
        std::future::poll_fn(|cx| {
            let mut rings = Context::from_waker(&self.waker);
            drive(&mut self.connection, &self.bell, &self.waker, cx);
            // Only the connection can bring it, so that nobody else has to be woken.
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(answer)) => Poll::Ready(Ok(answer)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                Poll::Pending if self.heard.load(Ordering::Relaxed) > MAX_HEADS_BYTES => {
                    Poll::Ready(Err(SendError::Flooded))
                }
                Poll::Pending if self.connection.is_some() => {
                    if let Some(until) = until.take() {
                        put_off(&mut self.patience, until);
                        timed = true;
                    }
                    let patience = self.patience.as_mut().filter(|_| timed);
                    let over = patience.is_some_and(|timer| timer.as_mut().poll(&mut rings).is_ready());
                    if over { Poll::Ready(Err(SendError::TooLate)) } else { Poll::Pending }
                }
                // It has just ended, and by its drop told the answer so.
                Poll::Pending => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next piece of the answer's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, hyper::Error>>> {
        // Taking a piece makes room for the next, which would ring; but whoever takes pieces asks until there is none.
        self.bell.mute();
        let mut quiet = Context::from_waker(Waker::noop());
        loop {
            let frame = Pin::new(&mut *body).poll_frame(&mut quiet);
            if frame.is_ready() || self.has_ended() {
                return frame;
            }
            drive(&mut self.connection, &self.bell, &self.waker, cx);
            let frame = Pin::new(&mut *body).poll_frame(&mut quiet);
            if frame.is_ready() || !self.has_ended() {
                return frame;
            }
        }
    }

    /// Drives it until it can take a request, or has ended.
    pub(super) async fn settle(&mut self) {
        std::future::poll_fn(|cx| {
            drive(&mut self.connection, &self.bell, &self.waker, cx);
            if !self.is_ready() {
                // hyper asks for the next request first, then writes: with the last of this one written, it has not asked yet.
                drive(&mut self.connection, &self.bell, &self.waker, cx);
            }
            if self.is_ready() || self.has_ended() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Looks whether the upstream has closed it, or said something unasked; nobody is woken by it from now on.
    pub(super) fn look(&mut self) {
        let quiet = Context::from_waker(Waker::noop());
        drive(&mut self.connection, &self.bell, &self.waker, &quiet);
        self.rest();
    }

    /// Nobody uses it for now, nor is woken by it.
    pub(super) fn rest(&self) {
        let before = mem::take(&mut *self.bell.state());
        // Without the lock, for it may be the last that is left of a task.
        drop(before);
    }
}

fn put_off(timer: &mut Option<Pin<Box<Sleep>>>, until: Instant) {
    match timer {
        Some(timer) => timer.as_mut().reset(until),
        None => *timer = Some(Box::pin(tokio::time::sleep_until(until))),
    }
}

/// Does what there is to do: writes, reads, parses. From then on whoever polled is woken when there is more.
fn drive(
    connection: &mut Option<http1::Connection<TokioIo<Heard>, SendBody>>,
    bell: &Bell,
    waker: &Waker,
    cx: &Context<'_>,
) {
    let Some(driven) = connection else { return };
    bell.mute();
    match Pin::new(driven).poll(&mut Context::from_waker(waker)) {
        Poll::Pending => bell.ring_for(cx.waker()),
        Poll::Ready(ended) => {
            *connection = None;
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to the upstream ended");
            }
        }
    }
}

/// Passes wake-ups on to whoever waits. A connection also wakes the task that drives it for what that task does with it itself; without
/// this between them, each request would be polled once more for each.
#[derive(Default)]
struct Bell(Mutex<Rings>);

/// Short, and taken by the thread that drives the connection: free of waiting.
#[derive(Default)]
struct Rings {
    task: Option<Waker>,
    on: bool,
    missed: bool,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, Rings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings are forgotten until `ring_for`.
    fn mute(&self) {
        let mut rings = self.state();
        (rings.on, rings.missed) = (false, false);
    }

    /// From now on they are for `task`, and so is one of since `mute`.
    fn ring_for(&self, task: &Waker) {
        let mut rings = self.state();
        if !rings.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            rings.task = Some(task.clone());
        }
        rings.on = true;
        if mem::take(&mut rings.missed) {
            task.wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut rings = self.state();
        match &rings.task {
            Some(task) if rings.on => task.wake_by_ref(),
            _ => rings.missed = true,
        }
    }
}

/// Counts what is read.
struct Heard {
    io: Box<dyn Stream>,
    bytes: Arc<AtomicUsize>,
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let heard = buf.filled().len() - before;
        if heard > 0 {
            self.bytes.fetch_add(heard, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
