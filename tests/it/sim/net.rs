//! The network between caller, proxy and upstream: latency, pieces, resets, stalls, black holes, half-closes, refused connections.
//!
//! Each connection is a task between two in-memory pipes, and everything that befalls it is drawn from the seed when it is opened. What
//! the upstream's answers said is read where they come out: a run is judged by what really reached the proxy.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use fastrand::Rng;
use sluicegate::connect::{Connect, Connected, Connecting, Failure};
use sluicegate::mock::Mock;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::answers::{Answers, Reader};
use super::trace::Trace;
use crate::support::PIPE_BYTES;

/// How bad the network is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// The most that a piece is under way.
    pub lag: Duration,
    /// Of a hundred connections to the upstream, those that something befalls.
    pub troubled: u32,
}

/// What befalls one direction of a connection once so many bytes have passed.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Reset,
    Stall(Duration),
    /// Nothing arrives any more, and nobody is told.
    Hole,
    /// The sender seems to have ended.
    HalfClose,
}

/// The network of one run.
pub struct Net {
    mock: Arc<Mock>,
    weather: Weather,
    rng: Mutex<Rng>,
    calm: AtomicBool,
    connections: AtomicU32,
    pub answers: Answers,
    trace: Trace,
}

impl Net {
    pub fn new(mock: Arc<Mock>, weather: Weather, seed: u64, trace: Trace) -> Arc<Self> {
        let rng = Mutex::new(Rng::with_seed(seed));
        let (calm, connections) = (AtomicBool::new(false), AtomicU32::new(0));
        Arc::new(Self { mock, weather, rng, calm, connections, answers: Answers::default(), trace })
    }

    /// From now on nothing befalls new connections.
    pub fn calm(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    fn fork(&self) -> Rng {
        self.rng.lock().expect("no panics").fork()
    }

    /// A connection from a caller to the proxy, which gets the second end. It breaks when `life` ends.
    pub fn caller(&self, mut rng: Rng, life: &CancellationToken) -> (DuplexStream, DuplexStream) {
        let (near, far, between) = pipes();
        let (lag, life) = (self.weather.lag, life.clone());
        tokio::spawn(async move {
            let [ours, theirs] = between;
            let ((from, to), (back_from, back_to)) = (split(ours), split(theirs));
            let there = Flow { from, to: back_to, rng: rng.fork(), lag, trouble: None, tap: None, told: None };
            let back = Flow { from: back_from, to, rng, lag, trouble: None, tap: None, told: None };
            join(there, back, &life, false).await;
        });
        (near, far)
    }

    /// The way of one proxy to the upstream; it ends when `life` does.
    pub fn wire(self: &Arc<Self>, life: CancellationToken) -> Arc<dyn Connect> {
        Arc::new(Wire { net: Arc::clone(self), life })
    }

    async fn open(&self, life: &CancellationToken) -> Result<DuplexStream, Failure> {
        let mut rng = self.fork();
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let troubled = rng.u32(..100) < self.weather.troubled && !self.calm.load(Ordering::SeqCst);
        let kind = if troubled { rng.u32(..10) } else { 10 };
        sleep(self.weather.lag.mul_f64(rng.f64())).await;
        if life.is_cancelled() {
            return std::future::pending().await;
        }
        if kind == 0 {
            self.trace.note(format!("net {number}: refused"));
            return Err(Failure::refused());
        }
        if kind == 1 {
            let slow = Duration::from_millis(rng.u64(..40_000));
            self.trace.note(format!("net {number}: takes {slow:?}"));
            sleep(slow).await;
        }
        let stall = Duration::from_millis(rng.u64(..60_000));
        let (there, back) = match kind {
            2 => (Some(Trouble::Reset), None),
            3 => (Some(Trouble::Hole), None),
            4 | 5 => (None, Some(Trouble::Reset)),
            6 | 7 => (None, Some(Trouble::Stall(stall))),
            8 => (None, Some(Trouble::Hole)),
            9 => (None, Some(Trouble::HalfClose)),
            _ => (None, None),
        };
        // Anywhere in the first messages of a connection, their edges included.
        let mut place = |trouble: Option<Trouble>| trouble.map(|what| (rng.usize(..1500), what));
        let (there, back) = (place(there), place(back));
        let (near, far, between) = pipes();
        self.mock.serve(far);
        let told = |way: &'static str| Some((self.trace.clone(), format!("net {number} {way}")));
        let (lag, life) = (self.weather.lag, life.clone());
        let [ours, theirs] = between;
        let ((from, to), (back_from, back_to)) = (split(ours), split(theirs));
        let tap = Some(self.answers.reader(life.clone()));
        let there =
            Flow { from, to: back_to, rng: rng.fork(), lag, trouble: there, tap: None, told: told("to the upstream") };
        let back = Flow { from: back_from, to, rng: rng.fork(), lag, trouble: back, tap, told: told("to the proxy") };
        let flush = rng.bool();
        tokio::spawn(async move { join(there, back, &life, flush).await });
        Ok(near)
    }
}

struct Wire {
    net: Arc<Net>,
    life: CancellationToken,
}

impl Connect for Wire {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            if self.life.is_cancelled() {
                return std::future::pending().await;
            }
            let io = self.net.open(&self.life).await?;
            Ok(Connected { io: Box::new(io), h2: false })
        })
    }
}

/// One direction of a connection.
struct Flow {
    from: ReadHalf<DuplexStream>,
    to: WriteHalf<DuplexStream>,
    rng: Rng,
    lag: Duration,
    trouble: Option<(usize, Trouble)>,
    tap: Option<Reader>,
    told: Option<(Trace, String)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Closed,
    Reset,
}

/// Carries both directions until one end is gone. A process that dies leaves the bytes that its kernel had taken: `flush` says whether
/// they still arrive.
async fn join(mut there: Flow, mut back: Flow, life: &CancellationToken, flush: bool) {
    let died = tokio::select! {
        biased;
        () = life.cancelled() => true,
        _ = there.run() => false,
        () = back.until_reset() => false,
    };
    if died && flush {
        there.flush().await;
    }
}

impl Flow {
    async fn run(&mut self) -> Ended {
        let (mut passed, mut buffer) = (0, vec![0; PIPE_BYTES]);
        loop {
            let Ok(read @ 1..) = self.from.read(&mut buffer).await else {
                let _ = self.to.shutdown().await;
                return Ended::Closed;
            };
            let (mut rest, mut left) = (&buffer[..read], self.lag);
            while !rest.is_empty() {
                let mut piece = if self.rng.u32(..4) > 0 { rest.len() } else { self.rng.usize(1..=rest.len()) };
                if let Some((at, trouble)) = self.trouble {
                    if at <= passed {
                        self.trouble = None;
                        self.tell(trouble, passed);
                        match trouble {
                            Trouble::Reset => return Ended::Reset,
                            Trouble::Stall(pause) => sleep(pause).await,
                            Trouble::Hole => std::future::pending::<()>().await,
                            Trouble::HalfClose => {
                                let _ = self.to.shutdown().await;
                                std::future::pending::<()>().await;
                            }
                        }
                        continue;
                    }
                    piece = piece.min(at - passed);
                }
                let wait = left.mul_f64(self.rng.f64());
                left -= wait;
                sleep(wait).await;
                let (now, later) = rest.split_at(piece);
                if self.to.write_all(now).await.is_err() {
                    return Ended::Closed;
                }
                if let Some(tap) = &mut self.tap {
                    tap.feed(now);
                }
                (rest, passed) = (later, passed + piece);
            }
        }
    }

    /// The upstream may end its side, and the proxy then ends the connection.
    async fn until_reset(&mut self) {
        if self.run().await == Ended::Closed {
            std::future::pending::<()>().await;
        }
    }

    async fn flush(&mut self) {
        let mut buffer = vec![0; PIPE_BYTES];
        let mut read = std::pin::pin!(self.from.read(&mut buffer));
        let now = std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
        if let Poll::Ready(Ok(read @ 1..)) = now {
            let _ = self.to.write_all(&buffer[..read]).await;
        }
    }

    fn tell(&self, trouble: Trouble, passed: usize) {
        if let Some((trace, name)) = &self.told {
            trace.note(format!("{name}: {trouble:?} after {passed} bytes"));
        }
    }
}

/// Two ends, and what is between them.
fn pipes() -> (DuplexStream, DuplexStream, [DuplexStream; 2]) {
    let ((near, ours), (far, theirs)) = (duplex(PIPE_BYTES), duplex(PIPE_BYTES));
    (near, far, [ours, theirs])
}
