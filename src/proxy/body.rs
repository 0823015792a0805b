//! Request bodies on their way up: held whole for the queue and for retries, or streamed once.
//!
//! All bodies held at a time share one buffer. A body takes its place in it before its first byte is read, so that partly read bodies can
//! never block each other; beyond the buffer, callers are simply not read (TCP backpressure).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::rejection::Rejection;

/// Bodies up to this size are held for replay.
pub(crate) const REPLAY_BYTES: u64 = 1 << 20;
/// How far into a multipart body its `model` part is looked for.
const MODEL_WITHIN_BYTES: usize = 64 * 1024;
/// The place that a body of unknown length takes before it is read.
const FIRST_BYTES: u64 = 1 << 20;
/// The buffer is counted in these.
const UNIT_BYTES: u64 = 1024;
/// What a caller has to send on average, after as long as it may pause: a byte now and then would hold its place for ever.
pub(crate) const LEAST_BYTES_PER_SEC: u32 = 1024;

/// Limits for request bodies, and the buffer that they share.
#[derive(Debug)]
pub(crate) struct Bodies {
    buffer: Arc<Semaphore>,
    /// One body of unknown length at a time may grow beyond `FIRST_BYTES`, so that two never wait for each other's place.
    growing: Semaphore,
    buffer_bytes: u64,
    max_bytes: u64,
    idle: Duration,
}

/// A body's place in the buffer, given back by drop.
#[derive(Debug, Default)]
pub(crate) struct Place(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

/// A caller's body, whole or visibly not.
pub(crate) struct Inbound {
    body: Incoming,
    multiplexed: bool,
}

impl Inbound {
    /// Of a request of this version.
    pub(crate) fn new(body: Incoming, version: Version) -> Self {
        Self { body, multiplexed: version == Version::HTTP_2 }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // hyper also ends a body whose stream was reset with `NO_ERROR`; HTTP/1.1 tells a cut by itself.
        let cut = frame.is_none() && self.multiplexed && !self.body.is_end_stream();
        Poll::Ready(if cut { Some(Err(Broken)) } else { frame.map(|frame| frame.map_err(|_| Broken)) })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request body as the rest of the way sees it.
pub(crate) enum Held {
    /// Held whole: can be sent any number of times.
    Whole(Bytes, #[expect(dead_code, reason = "held for its drop")] Place),
    /// Read up to `prefix`: can be sent once.
    Once { prefix: Bytes, rest: Inbound },
    /// Sent already.
    Gone,
}

impl Bodies {
    pub(crate) fn new(buffer_bytes: u64, max_bytes: u64, idle: Duration) -> Self {
        let units = usize::try_from(buffer_bytes.div_ceil(UNIT_BYTES)).unwrap_or(Semaphore::MAX_PERMITS);
        let buffer = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { buffer, growing: Semaphore::new(1), buffer_bytes, max_bytes, idle }
    }

    /// Bytes of the buffer in use.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.buffer_bytes.saturating_sub(self.buffer.available_permits() as u64 * UNIT_BYTES)
    }

    /// Reads a body whole, whatever its size up to the limit.
    pub(crate) async fn whole(&self, body: Inbound) -> Result<Held, Rejection> {
        let length = body.size_hint().exact();
        if length == Some(0) {
            return Ok(Held::Whole(Bytes::new(), Place::default()));
        }
        let mut place = self.place(length.unwrap_or(FIRST_BYTES.min(self.max_bytes))).await?;
        let mut growth = None;
        let mut reader = Reader { body, patience: Patience::new(self.idle) };
        let mut whole = BytesMut::new();
        while let Some(data) = reader.data().await? {
            let read = (whole.len() + data.len()) as u64;
            if read > self.max_bytes {
                return Err(Rejection::BodyTooLarge { limit_bytes: self.max_bytes });
            }
            if whole.is_empty() && length == Some(data.len() as u64) {
                return Ok(Held::Whole(data, Place(Some(place))));
            }
            if length.is_none() && read > FIRST_BYTES && growth.is_none() {
                growth = Some(self.growing.acquire().await.map_err(|_| Rejection::Draining)?);
                place.merge(self.place(self.max_bytes - FIRST_BYTES).await?);
            }
            whole.extend_from_slice(&data);
        }
        let spare = place.num_permits().saturating_sub(units(whole.len() as u64) as usize);
        drop(place.split(spare));
        Ok(Held::Whole(whole.freeze(), Place(Some(place))))
    }

    /// Holds a small body of known length whole, so that it can be replayed; leaves others unread.
    pub(crate) async fn small_or_unread(&self, body: Inbound) -> Result<Held, Rejection> {
        match body.size_hint().exact() {
            Some(length) if length <= REPLAY_BYTES => self.whole(body).await,
            _ => Ok(Held::Once { prefix: Bytes::new(), rest: body }),
        }
    }

    /// Reads a multipart body up to its `model` part and returns that; the rest stays unread. Small bodies are held whole.
    pub(crate) async fn multipart(&self, body: Inbound) -> Result<(Held, Option<String>), Rejection> {
        if body.size_hint().exact().is_some_and(|length| length <= REPLAY_BYTES) {
            let held = self.whole(body).await?;
            let model = match &held {
                Held::Whole(bytes, _) => model_part(bytes),
                _ => None,
            };
            return Ok((held, model));
        }
        let mut reader = Reader { body, patience: Patience::new(self.idle) };
        let mut prefix = BytesMut::new();
        let mut model = None;
        while prefix.len() < MODEL_WITHIN_BYTES && model.is_none() {
            let Some(data) = reader.data().await? else { break };
            prefix.extend_from_slice(&data);
            model = model_part(&prefix);
        }
        Ok((Held::Once { prefix: prefix.freeze(), rest: reader.body }, model))
    }

    async fn place(&self, length: u64) -> Result<OwnedSemaphorePermit, Rejection> {
        if length > self.max_bytes {
            return Err(Rejection::BodyTooLarge { limit_bytes: self.max_bytes });
        }
        let buffer = Arc::clone(&self.buffer);
        buffer.acquire_many_owned(units(length.min(self.buffer_bytes))).await.map_err(|_| Rejection::Draining)
    }

    /// The body for one attempt. A streamed body is handed over, and `upload` follows it.
    pub(crate) fn send(&self, held: &mut Held, upload: &Upload) -> Option<SendBody> {
        match held {
            Held::Whole(bytes, _) => Some(SendBody::whole(bytes.clone())),
            Held::Once { .. } => {
                let Held::Once { prefix, rest } = std::mem::replace(held, Held::Gone) else {
                    return None;
                };
                Some(SendBody(Sending::Stream(Box::new(Streaming {
                    left_bytes: self.max_bytes.saturating_sub(prefix.len() as u64),
                    prefix,
                    rest,
                    patience: Patience::new(self.idle),
                    limit_bytes: self.max_bytes,
                    since: None,
                    sleep: None,
                    upload: upload.clone(),
                }))))
            }
            Held::Gone => None,
        }
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Held {
    /// It goes up piece by piece.
    pub(crate) fn is_streamed(&self) -> bool {
        !matches!(self, Self::Whole(..))
    }

    /// It can be sent (again).
    pub(crate) fn is_there(&self) -> bool {
        !matches!(self, Self::Gone)
    }

    /// The bytes of a body held whole; empty otherwise.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(bytes, _) => bytes,
            _ => &[],
        }
    }

    /// A body held whole, to be replaced. The place in the buffer stays what it was.
    pub(crate) fn whole_mut(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Whole(bytes, _) => Some(bytes),
            _ => None,
        }
    }

    /// What is here of a body, to be replaced: all of it, or what stands before the part that is still to come.
    pub(crate) fn front_mut(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Whole(bytes, _) | Self::Once { prefix: bytes, .. } => Some(bytes),
            Self::Gone => None,
        }
    }

    /// Takes back a body that provably was not sent.
    pub(crate) fn take_back(&mut self, body: SendBody) {
        if let (Self::Gone, Sending::Stream(stream)) = (&*self, body.0) {
            *self = Self::Once { prefix: stream.prefix, rest: stream.rest };
        }
    }
}

/// How long a body may still keep us waiting. Its clock runs only while we wait for the caller.
#[derive(Debug, Clone, Copy)]
struct Patience {
    idle: Duration,
    waited: Duration,
    bytes: u64,
}

impl Patience {
    fn new(idle: Duration) -> Self {
        Self { idle, waited: Duration::ZERO, bytes: 0 }
    }

    /// For its next piece: what is left of the time that its bytes so far have earned, at most the longest pause.
    fn left(&self) -> Duration {
        let earned = Duration::from_nanos(self.bytes.saturating_mul(1_000_000_000 / u64::from(LEAST_BYTES_PER_SEC)));
        (self.idle + earned).saturating_sub(self.waited).min(self.idle)
    }

    /// A piece came after this wait.
    fn came(&mut self, after: Duration, bytes: usize) {
        self.waited += after;
        self.bytes += bytes as u64;
    }

    /// No piece came in the time that was left.
    fn over(&self) -> Rejection {
        if self.left() < self.idle { Rejection::ClientSlow } else { Rejection::ClientTimeout { idle: self.idle } }
    }
}

/// Reads a caller's body.
struct Reader {
    body: Inbound,
    patience: Patience,
}

impl Reader {
    async fn data(&mut self) -> Result<Option<Bytes>, Rejection> {
        loop {
            let begun = Instant::now();
            let frame = tokio::time::timeout(self.patience.left(), self.body.frame()).await;
            match frame.map_err(|_| self.patience.over())? {
                None => return Ok(None),
                Some(Err(_)) => return Err(Rejection::BadRequest("the body broke off")),
                // Trailers are dropped: nothing upstream knows them.
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.patience.came(begun.elapsed(), data.len());
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// The value of the `model` part of a multipart body, if it stands whole in this prefix.
pub(crate) fn model_part(prefix: &[u8]) -> Option<String> {
    let find =
        |from: usize, what: &[u8]| prefix[from..].windows(what.len()).position(|at| at == what).map(|at| from + at);
    let name = find(0, b"name=\"model\"").or_else(|| find(0, b"name=model"))?;
    let value = find(name, b"\r\n\r\n")? + 4;
    let end = find(value, b"\r\n--")?;
    String::from_utf8(prefix[value..end].to_vec()).ok()
}

/// What an attempt knows of its streamed body: how far it is, and why it broke off if it did.
#[derive(Debug, Clone)]
pub(crate) struct Upload(Option<Arc<Mutex<Progress>>>);

#[derive(Debug)]
struct Progress {
    moved: Instant,
    sent: bool,
    trouble: Option<Rejection>,
}

impl Upload {
    /// There is nothing to follow where a body goes up in one piece.
    pub(crate) fn new(streamed: bool) -> Self {
        let progress = || Arc::new(Mutex::new(Progress { moved: Instant::now(), sent: false, trouble: None }));
        Self(streamed.then(progress))
    }

    /// Why the body broke off, if it did.
    pub(crate) fn trouble(&self) -> Option<Rejection> {
        self.progress()?.trouble.take()
    }

    /// Resolves when the upstream has taken no piece of the body for `stalled`, or has it whole for `answering`.
    pub(crate) async fn stuck(&self, stalled: Duration, answering: Duration) {
        loop {
            let due = self.progress().map(|progress| progress.moved + if progress.sent { answering } else { stalled });
            let Some(due) = due else { return std::future::pending().await };
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    fn moved(&self, sent: bool) {
        if let Some(mut progress) = self.progress() {
            (progress.moved, progress.sent) = (Instant::now(), sent);
        }
    }

    fn broke(&self, why: Rejection) -> Broken {
        if let Some(mut progress) = self.progress() {
            progress.trouble = Some(why);
        }
        Broken
    }

    fn progress(&self) -> Option<MutexGuard<'_, Progress>> {
        self.0.as_ref().map(|progress| progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A body that broke off; its `Upload` has the reason.
#[derive(Debug, thiserror::Error)]
#[error("the request body broke off")]
pub(crate) struct Broken;

/// The body of one attempt.
pub(crate) struct SendBody(Sending);

impl std::fmt::Debug for SendBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SendBody")
    }
}

enum Sending {
    Whole(Option<Bytes>),
    Stream(Box<Streaming>),
}

struct Streaming {
    prefix: Bytes,
    rest: Inbound,
    left_bytes: u64,
    limit_bytes: u64,
    patience: Patience,
    /// Since when we wait for the caller. While the upstream takes nothing, nobody asks for a piece.
    since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    upload: Upload,
}

impl SendBody {
    /// A body held whole.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self(Sending::Whole((!bytes.is_empty()).then_some(bytes)))
    }
}

impl Body for SendBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.0 {
            Sending::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Sending::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Sending::Whole(bytes) => bytes.is_none(),
            Sending::Stream(stream) => stream.prefix.is_empty() && stream.rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Sending::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Sending::Stream(stream) => match stream.rest.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(rest + stream.prefix.len() as u64),
                None => SizeHint::default(),
            },
        }
    }
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.prefix)))));
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.rest).poll_frame(cx) else {
                ready!(self.waiting().as_mut().poll(cx));
                return Poll::Ready(Some(Err(self.upload.broke(self.patience.over()))));
            };
            let after = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            let Some(frame) = frame else {
                self.upload.moved(true);
                return Poll::Ready(None);
            };
            let Ok(frame) = frame else {
                return Poll::Ready(Some(Err(self.upload.broke(Rejection::BadRequest("the body broke off")))));
            };
            let data = frame.into_data().unwrap_or_default();
            self.patience.came(after, data.len());
            if data.is_empty() {
                continue;
            }
            let Some(left) = self.left_bytes.checked_sub(data.len() as u64) else {
                let limit_bytes = self.limit_bytes;
                return Poll::Ready(Some(Err(self.upload.broke(Rejection::BodyTooLarge { limit_bytes }))));
            };
            self.left_bytes = left;
            self.upload.moved(self.rest.is_end_stream());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    /// The end of this wait for the caller.
    fn waiting(&mut self) -> &mut Pin<Box<Sleep>> {
        let begins = self.since.is_none();
        let since = *self.since.get_or_insert_with(Instant::now);
        let until = since + self.patience.left();
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if begins {
            sleep.as_mut().reset(until);
        }
        sleep
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_model_is_found_once_its_part_is_whole() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"file:image\"\r\n\r\nabc\r\n--x\r\n\
            Content-Disposition: form-data; name=\"model\"\r\n\r\nowner/name\r\n--x--\r\n";
        assert_eq!(model_part(body), Some("owner/name".into()));
        assert_eq!(model_part(&body[..body.len() - 10]), None);
    }

    #[test]
    fn bytes_earn_time_and_waits_use_it_up() {
        let secs = Duration::from_secs;
        let mut patience = Patience::new(secs(30));
        assert_eq!(patience.left(), secs(30));
        patience.came(secs(29), 1);
        assert!(patience.left() > secs(1) && patience.left() < secs(2), "one byte earns a millisecond");
        assert_eq!(patience.over(), Rejection::ClientSlow);
        patience.came(Duration::ZERO, 10 * 1024);
        assert!(patience.left() > secs(11) && patience.left() < secs(12));
        patience.came(Duration::ZERO, usize::MAX / 4);
        assert_eq!(patience.left(), secs(30), "no pause may be longer, however much came");
        assert_eq!(patience.over(), Rejection::ClientTimeout { idle: secs(30) });
    }

    proptest! {
        #[test]
        fn no_multipart_prefix_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..200) {
            let mut bytes = bytes;
            let name = b"name=\"model\"\r\n\r\n";
            let at = at.min(bytes.len());
            bytes.splice(at..at, name.iter().copied());
            model_part(&bytes);
        }
    }
}
