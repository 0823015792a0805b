//! An upstream that answers what a test says, in memory: for answers that the mock would never give.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sluicegate::app::Proxy;
use sluicegate::clock::Clock;
use sluicegate::connect::{Connect, Connected, Connecting};
use tokio::io::duplex;
use tokio::time::{Instant, sleep};

use super::PIPE_BYTES;
use super::client::{self, Answer};
use super::config::Scratch;

type Say = dyn Fn(&str) -> (u16, Bytes) + Send + Sync;

/// What arrived, and what is said to it.
pub struct Scripted {
    /// By method and path.
    say: Box<Say>,
    seen: Mutex<Vec<(Instant, String)>>,
    pub delay: Mutex<Duration>,
}

impl Scripted {
    pub fn new(say: impl Fn(&str) -> (u16, Bytes) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { say: Box::new(say), seen: Mutex::default(), delay: Mutex::default() })
    }

    /// The requests whose method and path begin so.
    pub fn count(&self, what: &str) -> usize {
        self.seen.lock().expect("no panics").iter().filter(|(_, line)| line.starts_with(what)).count()
    }

    pub fn takes(&self, delay: Duration) {
        *self.delay.lock().expect("no panics") = delay;
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let _ = body.collect().await;
        let line = format!("{} {}", head.method, head.uri.path());
        self.seen.lock().expect("no panics").push((Instant::now(), line.clone()));
        let delay = *self.delay.lock().expect("no panics");
        sleep(delay).await;
        let (status, body) = (self.say)(&line);
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status.try_into().expect("a status");
        Ok(response)
    }
}

/// The way to it.
struct Way(Arc<Scripted>);

impl Connect for Way {
    fn connect(&self) -> Connecting<'_> {
        let (near, far) = duplex(PIPE_BYTES);
        let upstream = Arc::clone(&self.0);
        let service = service_fn(move |request| Arc::clone(&upstream).answer(request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(far), service));
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}

/// A proxy in front of it.
pub struct Odd {
    pub proxy: Proxy,
    pub upstream: Arc<Scripted>,
    pub scratch: Scratch,
}

impl Odd {
    pub fn new(plan: &str, toml: &str, upstream: Arc<Scripted>, scratch: Scratch) -> Self {
        let config = scratch.load(plan, toml, "http://localhost:1");
        let way = Arc::new(Way(Arc::clone(&upstream)));
        let proxy = Proxy::build(&config, Clock::tokio(), Some(way)).expect("a good configuration");
        Self { proxy, upstream, scratch }
    }

    /// Sends one request over a connection of its own. Dropping the future hangs up.
    pub fn send(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + Send + use<> {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(self.proxy.serve(far));
        client::exchange(near, request)
    }
}
