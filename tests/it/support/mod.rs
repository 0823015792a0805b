//! A proxy between a client and the mock upstream, in one line.
//!
//! [`Setup::memory`] joins the three by in-memory pipes, for tests with paused time; [`Setup::loopback`] by sockets. The mock counts by
//! its own clock and is the judge; the client asks for nothing but an answer.

// In reading order: the client, the configuration, the program itself, upstreams, what else stands around.
pub mod client;

pub mod config;

pub mod program;

pub mod patience;

pub mod server;

pub mod upstream;

pub mod vault;

pub mod raw;

pub mod recorder;

pub mod redis;

pub mod cluster;

pub mod relay;

pub mod chrome;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use sluicegate::app::{Proxy, Usage};
use sluicegate::clock::Clock;
use sluicegate::connect::{Connect, Connected, Connecting, Failure};
use sluicegate::mock::{Mock, Options};
use sluicegate::server::Server;
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};

pub use self::client::{Answer, get, post};
use self::config::Scratch;

/// The account's key: it must show nowhere but at the upstream.
pub const KEY: &str = "cdt_canary_4f1d0c";
/// The quota of the vendor's Free plan.
pub const FREE: &str = "requests_per_minute = 60\nconcurrent_jobs = 5";
/// What webhooks are signed with.
pub const WEBHOOK_SECRET: &str = "demo-webhook-secret";
pub const PIPE_BYTES: usize = 64 * 1024;

/// What a test changes of mock and configuration.
pub struct Setup {
    /// The mock.
    pub mock: Options,
    /// The body of the account's plan.
    pub plan: &'static str,
    /// More tables of `proxy.toml`.
    pub toml: &'static str,
    /// HTTP/2 to the upstream.
    pub h2: bool,
    /// Instead of a clock that starts now.
    pub clock: Option<Clock>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { mock: Options::default(), plan: FREE, toml: "", h2: false, clock: None }
    }
}

impl Setup {
    fn mock_options(&self) -> Options {
        let mut options = self.mock.clone();
        if options.keys.is_empty() {
            options.keys = vec![KEY.to_owned()];
        }
        options
    }

    /// In memory, for paused time.
    pub fn memory(self) -> Site {
        let scratch = Scratch::new();
        let mock = Arc::new(Mock::in_memory(self.mock_options()));
        self.proxy_to(mock, scratch)
    }

    /// One more proxy in front of this mock, with the state of this directory.
    pub fn proxy_to(self, mock: Arc<Mock>, scratch: Scratch) -> Site {
        let config = scratch.load(self.plan, self.toml, "http://localhost:1");
        let wires = Arc::new(Wires {
            mock: Arc::clone(&mock),
            h2: self.h2,
            refused: AtomicU32::new(0),
            delay: Mutex::default(),
        });
        let connector = Arc::clone(&wires) as Arc<dyn Connect>;
        let clock = self.clock.unwrap_or_else(Clock::tokio);
        let proxy = Proxy::build(&config, clock, Some(connector)).expect("a good configuration");
        Site { proxy, mock, wires, scratch }
    }

    /// Over sockets, with workers on their threads.
    pub async fn loopback(self) -> Live {
        let scratch = Scratch::new();
        let any = "127.0.0.1:0".parse().expect("an address");
        let mock = Mock::start(self.mock_options(), any).await.expect("a free port");
        let config = scratch.load(self.plan, self.toml, &mock.url());
        let server = Server::start(&config).await.expect("free ports");
        Live { server, mock, _scratch: scratch }
    }
}

/// A proxy in memory.
pub struct Site {
    pub proxy: Proxy,
    pub mock: Arc<Mock>,
    pub wires: Arc<Wires>,
    pub scratch: Scratch,
}

impl Site {
    /// Sends one request over a connection of its own. Dropping the future hangs up.
    pub fn send(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + Send + use<> {
        client::exchange(self.connect(), request)
    }

    /// A connection to the proxy.
    pub fn connect(&self) -> DuplexStream {
        connect(&self.proxy)
    }

    /// Sends in a task.
    pub fn spawn(&self, request: Request<Full<Bytes>>) -> tokio::task::JoinHandle<Answer> {
        tokio::spawn(self.send(request))
    }

    /// Creates a job that runs as long as the mock says, and returns its id.
    pub async fn start_job(&self) -> String {
        let answer = self.send(create()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.job_id()
    }

    /// Waits until nothing is taken any more.
    pub async fn settled(&self) -> Usage {
        let until = Instant::now() + Duration::from_secs(3600);
        loop {
            let usage = self.proxy.usage();
            let rest = Usage { jobs_live: 0, jobs_uncertain: 0, ..usage };
            if usage == NOTHING || (rest == NOTHING && Instant::now() > until) {
                return usage;
            }
            assert!(Instant::now() < until + Duration::from_secs(60), "still taken: {usage:?}");
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// A connection to a proxy in memory.
pub fn connect(proxy: &Proxy) -> DuplexStream {
    let (near, far) = duplex(PIPE_BYTES);
    tokio::spawn(proxy.serve(far));
    near
}

/// What an idle proxy holds.
pub const NOTHING: Usage =
    Usage { in_flight: 0, waiting: 0, jobs_live: 0, jobs_uncertain: 0, tasks_running: 0, held_bytes: 0 };

/// The way from the proxy to the mock.
pub struct Wires {
    mock: Arc<Mock>,
    h2: bool,
    refused: AtomicU32,
    delay: Mutex<Duration>,
}

impl Wires {
    /// Refuses the next `n` connections.
    pub fn refuse(&self, n: u32) {
        self.refused.store(n, Ordering::SeqCst);
    }

    /// Connections refused that were to be.
    pub fn refusals_left(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }

    /// How long a connection takes from now on.
    pub fn delay(&self, delay: Duration) {
        *self.delay.lock().expect("no panics") = delay;
    }
}

impl Connect for Wires {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let delay = *self.delay.lock().expect("no panics");
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let refused = self.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if refused.is_ok() {
                return Err(Failure::refused());
            }
            let (near, far) = duplex(PIPE_BYTES);
            self.mock.serve(far);
            Ok(Connected { io: Box::new(near), h2: self.h2 })
        })
    }
}

/// A proxy on sockets.
pub struct Live {
    pub server: Server,
    pub mock: Mock,
    /// Removed with it.
    _scratch: Scratch,
}

impl Live {
    /// A connection to the data port.
    pub async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.listen[0]).await.expect("the port is open");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    /// Sends one request over a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        client::exchange(self.connect().await, request).await
    }

    /// Sends one request to the admin port.
    pub async fn admin(&self, path: &str) -> Answer {
        let address = self.server.admin.expect("an admin port");
        let stream = TcpStream::connect(address).await.expect("the port is open");
        client::exchange(stream, get(path)).await
    }

    /// Stops both; true if the proxy finished what was in flight.
    pub async fn stop(self) -> bool {
        let finished = self.server.drain().await;
        self.mock.shutdown().await;
        finished
    }
}

/// Copies a directory, as it stands at this moment.
pub fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            std::fs::create_dir_all(&target).expect("made");
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// A create.
pub fn create() -> Request<Full<Bytes>> {
    create_with(&json!({"model": "flux-schnell", "input": {"prompt": "a gate"}}))
}

/// A create with this body.
pub fn create_with(body: &Value) -> Request<Full<Bytes>> {
    post("/v1/predictions", body.to_string())
}

/// A status request.
pub fn poll(id: &str) -> Request<Full<Bytes>> {
    get(&format!("/v1/predictions/{id}"))
}

/// Creates a job and follows it as the vendor's examples do: once a second, until it has ended.
pub async fn vendors_caller(site: &Site) -> Answer {
    let created = site.send(create()).await;
    if !created.status.is_success() {
        return created;
    }
    loop {
        sleep(Duration::from_secs(1)).await;
        let answer = site.send(poll(&created.job_id())).await;
        if !answer.status.is_success() || answer.json()["status"] == "completed" {
            return answer;
        }
    }
}

/// Keeps `callers` calls to `/v1/echo` going until `until`; returns how many were answered, all of them with 200.
pub async fn saturate(site: &Arc<Site>, callers: usize, until: Instant) -> usize {
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (site, stop) = (Arc::clone(site), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut answered = 0;
                while !stop.load(Ordering::SeqCst) {
                    let call = site.send(get("/v1/echo"));
                    let answer = tokio::select! {
                        answer = call => answer,
                        () = sleep_until(until) => return answered,
                    };
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    sleep_until(until).await;
    stop.store(true, Ordering::SeqCst);
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.expect("no caller panics");
    }
    answered
}
