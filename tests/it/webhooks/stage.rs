//! A proxy between the mock and receivers, with a record of all that went up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use sluicegate::app::{Proxy, Surroundings};
use sluicegate::clock::Clock;
use sluicegate::connect::{Connect, Connected, Connecting};
use sluicegate::mock::{Mock, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{Receivers, create, options};
use crate::support::client::{self, Answer};
use crate::support::config::Scratch;
use crate::support::{PIPE_BYTES, connect};

/// The way to the mock, with a record of every byte that goes up.
struct Tap {
    mock: Arc<Mock>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Connect for Tap {
    fn connect(&self) -> Connecting<'_> {
        let (near, far) = duplex(PIPE_BYTES);
        let (tap, mock) = duplex(PIPE_BYTES);
        self.mock.serve(mock);
        tokio::spawn(record(far, tap, Arc::clone(&self.seen)));
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}

async fn record(far: DuplexStream, tap: DuplexStream, seen: Arc<Mutex<Vec<u8>>>) {
    let (mut from, mut back) = tokio::io::split(far);
    let (mut answers, mut to) = tokio::io::split(tap);
    let up = async {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            seen.lock().expect("no panics").extend(&buffer[..read]);
            if to.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(up, async { tokio::io::copy(&mut answers, &mut back).await.ok() });
}

/// A proxy in memory between the mock and receivers.
pub struct Stage {
    pub proxy: Proxy,
    pub mock: Arc<Mock>,
    pub receivers: Receivers,
    seen: Arc<Mutex<Vec<u8>>>,
    scratch: Scratch,
}

impl Stage {
    pub fn new(toml: &str) -> Self {
        Self::with(toml, options())
    }

    pub fn with(toml: &str, options: Options) -> Self {
        Self::on(toml, Arc::new(Mock::in_memory(options)), Receivers::default(), Scratch::new())
    }

    pub fn on(toml: &str, mock: Arc<Mock>, receivers: Receivers, scratch: Scratch) -> Self {
        Self::planned("", toml, mock, receivers, scratch)
    }

    pub fn planned(plan: &str, toml: &str, mock: Arc<Mock>, receivers: Receivers, scratch: Scratch) -> Self {
        let config = scratch.load(plan, toml, "http://localhost:1");
        let seen = Arc::default();
        let connector = Arc::new(Tap { mock: Arc::clone(&mock), seen: Arc::clone(&seen) });
        let around = || Surroundings {
            connector: Some(Arc::clone(&connector) as Arc<dyn Connect>),
            dial: Some(Arc::new(receivers.clone())),
            ..Surroundings::default()
        };
        // A child that another test starts holds our lock with us until it has become another program.
        let tries = (0..100).find_map(|_| match Proxy::build_in(&config, Clock::tokio(), around()) {
            Err(error) if error.to_string().contains("in use") => {
                std::thread::sleep(Duration::from_millis(10));
                None
            }
            built => Some(built),
        });
        let proxy = tries.expect("the lock comes free").expect("a good configuration");
        Self { proxy, mock, receivers, seen, scratch }
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        client::exchange(connect(&self.proxy), request).await
    }

    /// Creates a job with this webhook and returns its id.
    pub async fn start(&self, webhook: &str) -> String {
        let answer = self.send(create(webhook, &json!({}))).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.job_id()
    }

    /// The upstream calls the port for its webhooks.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(self.proxy.serve_webhooks(far));
        client::exchange(near, request).await
    }

    /// All that went up, as text.
    pub fn sent(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panics")).into_owned()
    }

    /// The end of the URL that the last create took up.
    pub fn token(&self) -> String {
        let sent = self.sent();
        let after = sent.rsplit("https://hooks.example.com/in/").next().expect("a create");
        after[..32].to_owned()
    }

    /// As `kill -9`: nothing of it runs on.
    pub fn kill(self) -> (Arc<Mock>, Receivers, Scratch) {
        let Self { proxy, mock, receivers, scratch, .. } = self;
        drop(proxy);
        (mock, receivers, scratch)
    }
}
