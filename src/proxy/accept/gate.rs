//! The stream between a client and hyper. It lets through what the scanner has passed, and keeps the clocks that hyper has not.
//!
//! Bytes are looked at in hyper's own buffer. Only a head that does not come in one piece is kept here until it is whole, so that no bad
//! head is ever given to hyper in part. In its place goes a request of our own, and the service answers that with the reason.

use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::proxy::rejection::Rejection;

use super::scan::{Scanner, Then};
use super::signals::{Refused, Signals};

/// How HTTP/2 with prior knowledge begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client that takes nothing for so long while we have something for it is cut off.
pub(super) const WRITE_STALL: Duration = Duration::from_secs(60);
/// After the last answer: what a client still sends is read and forgotten for so long, and so much of it, lest a reset eat the answer
/// (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 16 << 20;

/// A client's stream.
pub(super) struct Gate<I> {
    io: I,
    signals: Arc<Signals>,
    header_timeout: Duration,
    /// `None`: HTTP/2, which nothing here looks into.
    scanner: Option<Scanner>,
    /// The first `ready` bytes are for hyper; after them a piece of a head.
    kept: Vec<u8>,
    ready: usize,
    /// `kept` has bytes that the scanner has not seen.
    unseen: bool,
    end: Option<End>,
    /// For the rest of a head, and the number of that head.
    timed: u64,
    head_timer: Option<Pin<Box<Sleep>>>,
    /// For a write that cannot go on, or for the last words.
    write_timer: Option<Pin<Box<Sleep>>>,
    stalled: bool,
    /// Bytes forgotten since our side was closed.
    lingered: Option<usize>,
}

/// Nothing more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client has said so.
    Eof,
    /// What came last is being refused.
    Refused,
    /// A body is broken.
    Broken,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Gate<I> {
    pub(super) fn new(io: I, signals: Arc<Signals>, header_timeout: Duration) -> Self {
        Self {
            io,
            signals,
            header_timeout,
            scanner: Some(Scanner::default()),
            kept: Vec::new(),
            ready: 0,
            unseen: false,
            end: None,
            timed: 0,
            head_timer: None,
            write_timer: None,
            stalled: false,
            lingered: None,
        }
    }

    /// Reads until it is clear whether the client speaks HTTP/2 with prior knowledge.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| {
            while self.kept.len() < PREFACE.len() && PREFACE.starts_with(&self.kept) {
                let mut space = [0; 4096];
                let mut buf = ReadBuf::new(&mut space);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
                if buf.filled().is_empty() {
                    break;
                }
                self.kept.extend_from_slice(buf.filled());
            }
            Poll::Ready(io::Result::Ok(()))
        })
        .await?;
        Ok(self.chosen())
    }

    /// Goes on as what has come says; a preface cut short is no request.
    pub(super) fn chosen(&mut self) -> bool {
        let http2 = self.kept.starts_with(PREFACE);
        if http2 {
            (self.scanner, self.ready) = (None, self.kept.len());
        }
        self.unseen = !http2 && !self.kept.is_empty();
        self.signals.reading(self.unseen);
        http2
    }

    /// Gives hyper what is ready.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let here = self.ready.min(buf.remaining());
        buf.put_slice(&self.kept[..here]);
        self.ready -= here;
        if here == self.kept.len() {
            self.kept = Vec::new();
        } else {
            self.kept.drain(..here);
        }
    }

    /// Lets the scanner look at what was kept.
    fn look(&mut self) {
        self.unseen = false;
        let Some(scanner) = &mut self.scanner else { return };
        let seen = scanner.feed(&self.kept);
        self.ready = seen.passed;
        self.follow(seen.then);
    }

    /// Does what the scanner says about the bytes after `ready`.
    fn follow(&mut self, then: Then) {
        let Some(scanner) = &self.scanner else { return };
        self.signals.body_open(if scanner.between() { 0 } else { scanner.heads() });
        self.signals.reading(then == Then::Part);
        match then {
            Then::More => {}
            Then::Part => {
                let number = scanner.heads() + 1;
                if self.timed != number {
                    self.timed = number;
                    set(&mut self.head_timer, self.header_timeout);
                }
            }
            Then::BadHead(rejection) => self.refuse(rejection),
            Then::BadBody => self.end = Some(End::Broken),
        }
    }

    /// Puts a request of our own in the place of the head that begins after `ready`.
    fn refuse(&mut self, rejection: Rejection) {
        let Some(scanner) = &self.scanner else { return };
        let (method, uri) = shown(&self.kept[self.ready..]);
        self.kept.truncate(self.ready);
        // So that the answer has a body or not, as the client expects.
        let verb: &[u8] = if method == Method::HEAD { b"HEAD" } else { b"GET" };
        for part in [verb, b" / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"] {
            self.kept.extend_from_slice(part);
        }
        self.ready = self.kept.len();
        self.end = Some(End::Refused);
        self.signals.reading(false);
        self.signals.refuse(scanner.heads() + 1, Refused { rejection, method, uri });
    }

    /// More bytes lie in `buf` from `before` on.
    fn take(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let Some(scanner) = &mut self.scanner else { return };
        let new = &buf.filled()[before..];
        if new.is_empty() {
            if self.kept.is_empty() {
                self.end = Some(End::Eof);
            } else {
                self.refuse(Rejection::BadRequest("the request head broke off"));
            }
        } else if self.kept.is_empty() {
            let seen = scanner.feed(new);
            if matches!(seen.then, Then::Part | Then::BadHead(_)) {
                self.kept.extend_from_slice(&new[seen.passed..]);
            }
            buf.set_filled(before + seen.passed);
            self.follow(seen.then);
        } else {
            self.kept.extend_from_slice(new);
            buf.set_filled(before);
            self.look();
        }
    }

    /// Ready when a write has been waiting for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !mem::replace(&mut self.stalled, true) {
            set(&mut self.write_timer, WRITE_STALL);
        }
        poll_timer(&mut self.write_timer, cx)
            .map(|()| io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"))
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_pending() {
            return self.poll_stalled(cx).map(Err);
        }
        self.stalled = false;
        written
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gate<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(())); // nothing read is no end
        }
        if this.unseen {
            this.look();
        }
        loop {
            if this.ready > 0 {
                this.hand_over(buf);
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match this.end {
                None => {}
                Some(End::Eof) => return Poll::Ready(Ok(())),
                // The answer is under way, and the connection ends with it.
                Some(End::Refused) => return Poll::Pending,
                Some(End::Broken) => return Poll::Ready(Err(io::Error::other("the body's framing is broken"))),
            }
            match Pin::new(&mut this.io).poll_read(cx, buf) {
                Poll::Ready(Ok(())) if this.scanner.is_none() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => this.take(buf, before),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if this.kept.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    ready!(poll_timer(&mut this.head_timer, cx));
                    this.refuse(Rejection::HeadTimeout { after: this.header_timeout });
                }
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Ends our side; then reads on for a while, unless the client has nothing more to say.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingered.is_none() {
            let closed = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.written(cx, closed))?;
            set(&mut this.write_timer, LINGER);
        }
        let mut lingered = this.lingered.unwrap_or_default();
        let between = this.end.is_none() && this.scanner.as_ref().is_none_or(Scanner::between);
        loop {
            let mut space = [0; 4096];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => lingered += buf.filled().len(),
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if between && lingered == 0 => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    this.lingered = Some(lingered);
                    return poll_timer(&mut this.write_timer, cx).map(Ok);
                }
            }
            if lingered > LINGER_BYTES {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

fn set(timer: &mut Option<Pin<Box<Sleep>>>, after: Duration) {
    match timer {
        Some(timer) => timer.as_mut().reset(Instant::now() + after),
        None => *timer = Some(Box::pin(tokio::time::sleep(after))),
    }
}

fn poll_timer(timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    match timer {
        Some(timer) => timer.as_mut().poll(cx),
        None => Poll::Pending,
    }
}

/// Method and target of a head that is refused, for the log only.
fn shown(head: &[u8]) -> (Method, Uri) {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty()).unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().filter(|word| word.len() <= 32).and_then(|word| Method::from_bytes(word).ok());
    let uri = words.next().and_then(|word| Uri::try_from(word).ok());
    (method.unwrap_or_default(), uri.unwrap_or_else(|| Uri::from_static("/")))
}
