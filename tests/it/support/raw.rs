//! An upstream that answers with whatever bytes it is told, over memory or a socket. It reads requests whole and counts them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sluicegate::app::{Proxy, Usage};
use sluicegate::connect::{Connect, Connected, Connecting, Failure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep};

use super::config::Scratch;
use super::{Answer, NOTHING, PIPE_BYTES, client, connect};

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Step {
    /// These bytes.
    Send(Bytes),
    /// Nothing for so long.
    Pause(Duration),
    /// The connection is closed; whatever is unread is lost.
    Close,
    /// Our side is closed, theirs is read on.
    HalfClose,
    /// Nothing any more.
    Hang,
}

/// Sends these bytes and keeps the connection open.
pub fn send(bytes: impl Into<Bytes>) -> Vec<Step> {
    vec![Step::Send(bytes.into())]
}

/// Sends these bytes and closes.
pub fn send_and_close(bytes: impl Into<Bytes>) -> Vec<Step> {
    vec![Step::Send(bytes.into()), Step::Close]
}

/// A good answer to whatever is asked.
pub const GOOD: &str = "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 36\r\n\r\n{\"job_id\":\"job-1\",\"status\":\"queued\"}";

/// The upstream.
#[derive(Default)]
pub struct Raw {
    /// One for each request to come; after the last, good answers.
    script: Mutex<VecDeque<Vec<Step>>>,
    /// Connections that are refused before the next that is not.
    refused: AtomicU32,
    /// How long a connection takes.
    delay: Mutex<Duration>,
    /// Answers come when the head is there, and bodies are not read.
    impatient: AtomicBool,
    connections: AtomicU32,
    requests: Mutex<Vec<String>>,
}

impl Raw {
    /// What happens to the next `times` requests.
    pub fn next(&self, times: usize, steps: &[Step]) {
        self.script.lock().expect("no panics").extend(std::iter::repeat_n(steps.to_vec(), times));
    }

    /// Forgets what was to come.
    pub fn be_good(&self) {
        self.script.lock().expect("no panics").clear();
        self.refused.store(0, Ordering::SeqCst);
    }

    /// Refuses the next `n` connections.
    pub fn refuse(&self, n: u32) {
        self.refused.store(n, Ordering::SeqCst);
    }

    /// Refusals left of those.
    pub fn refusals_left(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }

    /// Answers as soon as the head is there, and reads no bodies.
    pub fn be_impatient(&self) {
        self.impatient.store(true, Ordering::SeqCst);
    }

    /// How long a connection takes from now on, refused or not.
    pub fn delay(&self, delay: Duration) {
        *self.delay.lock().expect("no panics") = delay;
    }

    /// Connections opened, those refused not counted.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests that arrived whole, as text.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panics").clone()
    }

    /// One connection, to its end.
    pub async fn serve(self: Arc<Self>, mut io: impl AsyncRead + AsyncWrite + Unpin + Send) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let mut unread = Vec::new();
        let bodies = !self.impatient.load(Ordering::SeqCst);
        while let Some(request) = read_request(&mut io, &mut unread, bodies).await {
            self.requests.lock().expect("no panics").push(request);
            let steps = self.script.lock().expect("no panics").pop_front();
            for step in steps.unwrap_or_else(|| send(GOOD)) {
                match step {
                    Step::Send(bytes) => {
                        if io.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                    Step::Pause(pause) => sleep(pause).await,
                    Step::Close => return,
                    Step::HalfClose => drop(io.shutdown().await),
                    Step::Hang => std::future::pending().await,
                }
            }
        }
    }
}

/// One request, whole; `None` where the other side has closed.
async fn read_request(io: &mut (impl AsyncRead + Unpin), unread: &mut Vec<u8>, bodies: bool) -> Option<String> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = end_of_request(unread, bodies) {
            let request = unread.drain(..end).collect::<Vec<_>>();
            return Some(String::from_utf8_lossy(&request).into_owned());
        }
        match io.read(&mut buffer).await {
            Ok(n @ 1..) => unread.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

fn end_of_request(bytes: &[u8], bodies: bool) -> Option<usize> {
    let text = String::from_utf8_lossy(bytes);
    let head = text.find("\r\n\r\n")? + 4;
    if !bodies {
        return Some(head);
    }
    let field = |name: &str| {
        let lines = text[..head].lines();
        lines.filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
    };
    if field("transfer-encoding").is_some() {
        return text[head..].find("0\r\n\r\n").map(|at| head + at + 5);
    }
    let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

/// Connects to it in memory.
pub struct Wire(pub Arc<Raw>);

impl Connect for Wire {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let delay = *self.0.delay.lock().expect("no panics");
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let refused = self.0.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if refused.is_ok() {
                return Err(Failure::refused());
            }
            let (near, far) = duplex(PIPE_BYTES);
            tokio::spawn(Arc::clone(&self.0).serve(far));
            Ok(Connected { io: Box::new(near), h2: false })
        })
    }
}

/// A proxy before it.
pub struct Before {
    pub proxy: Proxy,
    pub raw: Arc<Raw>,
    _scratch: Scratch,
}

impl Before {
    /// An ample plan, and these tables.
    pub fn new(toml: &str) -> Self {
        Self::with_plan("requests_per_minute = 600\nconcurrent_jobs = 20", toml)
    }

    /// This plan, and these tables.
    pub fn with_plan(plan: &str, toml: &str) -> Self {
        let (scratch, raw) = (Scratch::new(), Arc::new(Raw::default()));
        let proxy = scratch.proxy(plan, toml, Arc::new(Wire(Arc::clone(&raw))));
        Self { proxy, raw, _scratch: scratch }
    }

    /// Sends one request over a connection of its own. Dropping the future hangs up.
    pub fn send(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + Send + use<> {
        client::exchange(connect(&self.proxy), request)
    }

    /// Waits until nothing is taken but jobs that run, and returns what is.
    pub async fn settled(&self) -> Usage {
        let until = Instant::now() + Duration::from_secs(600);
        loop {
            let usage = self.proxy.usage();
            if (Usage { jobs_live: 0, jobs_uncertain: 0, ..usage }) == NOTHING {
                return usage;
            }
            assert!(Instant::now() < until, "still taken: {usage:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}
