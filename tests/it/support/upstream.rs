//! An upstream that answers what a test says, in memory: for answers that the mock would never give.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::Full;
use sluicegate::app::Proxy;
use tokio::time::{Instant, sleep};

use super::client::{self, Answer};
use super::config::Scratch;
use super::connect;
use super::server::{Answers, Way, says};

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
}

impl Answers for Scripted {
    async fn answer(self: Arc<Self>, head: Parts, _body: Option<Bytes>) -> Response<Full<Bytes>> {
        let line = format!("{} {}", head.method, head.uri.path());
        self.seen.lock().expect("no panics").push((Instant::now(), line.clone()));
        let delay = *self.delay.lock().expect("no panics");
        sleep(delay).await;
        let (status, body) = (self.say)(&line);
        says(status, body)
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
        let proxy = scratch.proxy(plan, toml, Arc::new(Way(Arc::clone(&upstream))));
        Self { proxy, upstream, scratch }
    }

    /// Sends one request over a connection of its own. Dropping the future hangs up.
    pub fn send(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + Send + use<> {
        client::exchange(connect(&self.proxy), request)
    }
}
