//! Ports, workers and the drain: a proxy that runs.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::app::{Proxy, StartError, Surroundings};
use crate::clock::Clock;
use crate::config::Config;
use crate::proxy::Seat;
use crate::proxy::accept::{self, Accepted};
use crate::proxy::guard::Guard;
use crate::proxy::upstream::Upstream;
use crate::reload::{self, InPlace, Refused};
use crate::webhooks::receive;

/// After `server.drain_timeout`: the time to tell those who still wait.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// When all else is over: the time for answers to those who came during the drain.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// A running proxy: ports open, workers on their threads.
pub struct Server {
    proxy: Proxy,
    /// Where the data port listens.
    pub listen: Vec<SocketAddr>,
    /// Where the admin port listens.
    pub admin: Option<SocketAddr>,
    /// Where the upstream's webhooks arrive.
    pub webhooks: Option<SocketAddr>,
    acceptors: JoinSet<()>,
    ports: JoinSet<()>,
    workers: Vec<JoinHandle<()>>,
    /// Ends the workers at once, and what they serve with them.
    stop: CancellationToken,
    /// The data port is the system's: what comes to it while we end waits for the next process.
    inherited: bool,
}

/// Sockets that were opened before, in place of `server.listen` and `admin.listen`. They must not block.
#[derive(Debug, Default)]
pub struct Handed {
    /// For apps.
    pub data: Vec<std::net::TcpListener>,
    /// For the operator.
    pub admin: Option<std::net::TcpListener>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    /// Binds the ports, builds the parts, starts the workers. Nothing is opened when anything is wrong.
    ///
    /// # Errors
    /// A port that is taken, and everything that [`Proxy::build`] refuses.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_on(config, Handed::default()).await
    }

    /// As `start`, on sockets that were opened before, where there are any.
    ///
    /// # Errors
    /// As `start`; and where such a socket is open to other machines, but nobody is named who may call.
    pub async fn start_on(config: &Config, handed: Handed) -> Result<Self, StartError> {
        let mut config = config.clone();
        let in_place = InPlace { data: !handed.data.is_empty(), admin: handed.admin.is_some() };
        let mut listeners = handed.data.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
        if in_place.data {
            config.server.listen = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
            if let Some(open) = reload::open_to_all(&config) {
                return Err(StartError::Config(Refused::Open(open).to_string()));
            }
        } else {
            for address in &config.server.listen {
                listeners.push(bind("the data port", *address, "--listen or server.listen").await?);
            }
        }
        let admin = match handed.admin {
            Some(socket) => Some(TcpListener::from_std(socket)?),
            None => bind_some("the admin port", config.admin.listen, "admin.listen").await?,
        };
        if let (true, Some(admin)) = (in_place.admin, &admin) {
            config.admin.listen = Some(admin.local_addr()?);
        }
        let config = &config;
        let health = bind_some("the health port", config.admin.health_listen, "admin.health_listen").await?;
        let inbound = config.webhooks.inbound.as_ref().map(|inbound| inbound.listen);
        let webhooks = bind_some("the port for the upstream's webhooks", inbound, "webhooks.listen").await?;
        let others = [&admin, &health, &webhooks].into_iter().flatten();
        let ours = listeners.iter().chain(others).map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let proxy = Proxy::build_in(config, Clock::system(), Surroundings { ours, ..Surroundings::default() })?;
        proxy.reloader.hand_over(in_place);
        proxy.app().traces.start();
        let listen = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;

        let stop = CancellationToken::new();
        let (workers_of, workers) = start_workers(config, &proxy, &stop)?;
        let places = Arc::new(Semaphore::new(config.server.max_connections.get().min(Semaphore::MAX_PERMITS)));
        let mut acceptors = JoinSet::new();
        for listener in listeners {
            acceptors.spawn(accept::accept(listener, Arc::clone(&places), workers_of.clone()));
        }
        let mut ports = JoinSet::new();
        let reloader = &proxy.reloader;
        if let Some(listener) = admin {
            let guard = Guard::new(&config.server, &[listener.local_addr()?]);
            ports.spawn(admin::serve(listener, Arc::new(Admin::new(Arc::clone(reloader), guard, listen.clone()))));
        }
        if let Some(listener) = health {
            let guard = Guard::new(&config.server, &[listener.local_addr()?]);
            ports.spawn(admin::serve(listener, Arc::new(Admin::health_only(Arc::clone(reloader), guard))));
        }
        let webhooks_address = webhooks.as_ref().map(TcpListener::local_addr).transpose()?;
        if let Some(listener) = webhooks {
            ports.spawn(receive::serve(listener, Arc::clone(&proxy.reloader)));
        }
        let (admin, webhooks) = (admin_address, webhooks_address);
        Ok(Self { proxy, listen, admin, webhooks, acceptors, ports, workers, stop, inherited: in_place.data })
    }

    /// The parts, for what shows them.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// How long work in flight may go on after the drain has begun.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        self.proxy.app().drain_timeout
    }

    /// Refuses new work, finishes what is in flight and delivers webhooks that are due, for at most `server.drain_timeout`, and ends. The ports stay open
    /// meanwhile, to say so. Who still waits in a queue by then is told so, too. True if all of it was finished.
    pub async fn drain(mut self) -> bool {
        let (app, begun) = (self.proxy.app(), Instant::now());
        app.drain.cancel();
        if self.inherited {
            self.stop_accepting().await;
        }
        app.tasks.close();
        app.connected.close();
        let finished = async {
            app.connected.wait().await;
            app.tasks.wait().await;
        };
        let mut finished = std::pin::pin!(finished);
        let in_time = tokio::time::timeout(app.drain_timeout, finished.as_mut()).await.is_ok();
        app.drained.cancel();
        if !in_time {
            let _ = tokio::time::timeout(LAST_WORDS, finished.as_mut()).await;
        }
        // What is not delivered by then is in the ledger; without one it would be lost.
        let left = app.drain_timeout.saturating_sub(begun.elapsed());
        let _ = tokio::time::timeout(left, app.webhooks.tried()).await;
        self.proxy.leave().await;
        self.stop_accepting().await;
        self.end_workers().await;
        app.traces.flush().await;
        self.ports.abort_all();
        self.proxy.stop();
        in_time
    }

    async fn stop_accepting(&mut self) {
        self.acceptors.abort_all();
        while self.acceptors.join_next().await.is_some() {}
    }

    /// Workers end by themselves once nothing is handed to them any more; those who came last are given a moment for their answer.
    async fn end_workers(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().for_each(|worker| drop(worker.join())));
        let mut joined = std::pin::pin!(joined);
        if tokio::time::timeout(LAST_ANSWERS, joined.as_mut()).await.is_err() {
            self.stop.cancel();
            let _ = joined.await;
        }
    }
}

async fn bind(what: &'static str, address: SocketAddr, change: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { what, address, change, error })
}

async fn bind_some(
    what: &'static str,
    address: Option<SocketAddr>,
    change: &'static str,
) -> Result<Option<TcpListener>, StartError> {
    match address {
        Some(address) => bind(what, address, change).await.map(Some),
        None => Ok(None),
    }
}

type Workers = (Vec<mpsc::UnboundedSender<Accepted>>, Vec<JoinHandle<()>>);

fn start_workers(config: &Config, proxy: &Proxy, stop: &CancellationToken) -> io::Result<Workers> {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let count = config.server.threads.unwrap_or(cores).get();
    let (mut senders, mut threads) = (Vec::new(), Vec::new());
    for number in 0..count {
        // Unbounded, but never longer than `server.max_connections`: each entry holds a place.
        let (sender, receiver) = mpsc::unbounded_channel();
        let app = proxy.app();
        let upstream = Upstream::new(Arc::clone(&proxy.connector), Arc::clone(&app.breaker));
        let tasks = app.tasks.clone();
        let seat = Seat::new(app, upstream, Arc::clone(&proxy.reloader));
        proxy.reloader.seat(&seat);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = stop.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        threads.push(thread.spawn(move || {
            runtime.block_on(stop.run_until_cancelled(async {
                accept::work(seat, receiver).await;
                // Creates of callers that have left run here too.
                tasks.wait().await;
            }));
        })?);
        senders.push(sender);
    }
    Ok((senders, threads))
}
