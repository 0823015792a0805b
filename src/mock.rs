//! An imitation of the upstream API, and the judge of quotas in tests.
//!
//! It counts requests and jobs by its own clock and on purpose shares nothing with the rest of the crate: what it says of
//! the proxy must not rest on the proxy's own code. It backs `sluicegate mock`, `sluicegate demo` and the test suite.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_rustls::TlsAcceptor;

pub use self::args::{MockArgs, run};
pub use self::counter::Counter;
pub use self::fault::{Fault, Planned};
pub use self::options::{Dialect, Options, RunTime};
pub use self::stats::{KeyStats, Seen, Stats};

use self::server::Shared;

mod args;

mod options;

mod server;

mod wire;

mod handler;

mod books;

mod counter;

mod meter;

mod epoch;

mod stats;

mod fault;

mod routes;

mod predictions;

mod replicate;

mod jobs;

mod multipart;

mod webhook;

mod llm;

mod probe;

mod reply;

mod control;

#[cfg(test)]
mod tests;

/// A running mock. Dropping it closes its port and all connections.
pub struct Mock {
    shared: Arc<Shared>,
    addr: Option<SocketAddr>,
    scheme: &'static str,
}

impl Mock {
    /// Binds `addr` (port 0: any free one) and serves HTTP/1.1 and HTTP/2 without TLS.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(options: Options, addr: SocketAddr) -> io::Result<Self> {
        Self::bind(options, addr, None).await
    }

    /// The same with TLS. What ALPN offers is the configuration's affair.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_tls(options: Options, addr: SocketAddr, tls: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        Self::bind(options, addr, Some(tls.into())).await
    }

    /// Serves only what is handed to [`Mock::serve`]: for tests with paused time.
    #[must_use]
    pub fn in_memory(options: Options) -> Self {
        Self { shared: Shared::new(options, "http"), addr: None, scheme: "http" }
    }

    async fn bind(options: Options, addr: SocketAddr, tls: Option<TlsAcceptor>) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let (addr, scheme) = (listener.local_addr()?, if tls.is_some() { "https" } else { "http" });
        let shared = Shared::new(options, scheme);
        shared.spawn(server::accept(Arc::clone(&shared), listener, tls));
        Ok(Self { shared, addr: Some(addr), scheme })
    }

    /// Serves one more connection, such as one end of a `tokio::io::duplex`.
    pub fn serve(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.shared.spawn(server::serve(Arc::clone(&self.shared), io));
    }

    /// Where it listens; port 0 if it is in memory only.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr())
    }

    /// What it imitates.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Everything counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.peek(books::Books::stats).0
    }

    /// The latest 200,000 requests in order of arrival, unauthorized ones included.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.peek(|books| books.log.iter().cloned().collect())
    }

    /// Ids of the latest 100,000 jobs, oldest first.
    #[must_use]
    pub fn job_ids(&self) -> Vec<String> {
        self.shared.peek(|books| books.jobs.ids())
    }

    /// Ends a job now, the way it was to end later; leaves one alone that has ended.
    ///
    /// # Panics
    /// When there is no such job, as the test that asks for it is wrong.
    pub fn finish(&self, id: &str) {
        let job = self.shared.books(|books| books.end(id, None));
        assert!(job.is_some(), "the mock has no job {id}");
    }

    /// Adds faults after those still to come.
    pub fn script(&self, faults: impl IntoIterator<Item = Planned>) {
        self.shared.books(|books| books.script.add(faults));
    }

    /// Adds a fault for the next request with this method (`""`: any) whose path starts with `path`.
    pub fn fault_next(&self, method: &str, path: &str, fault: Fault) {
        self.script([fault.on(method, path)]);
    }

    /// Forgets all requests, jobs, counts and faults.
    pub fn reset(&self) {
        self.shared.books(books::Books::reset);
    }

    /// Tells of every change in the books but the end of a job by the clock.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changes()
    }

    /// Waits until the books are as `wanted`, ends of jobs by the clock included.
    pub async fn wait_until(&self, mut wanted: impl FnMut(&Stats) -> bool) -> Stats {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let (stats, next_end) = self.shared.peek(books::Books::stats);
            if wanted(&stats) {
                return stats;
            }
            let job_ends = async {
                match next_end {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives as long as this mock.
                result = changes.changed() => result.unwrap_or_default(),
                () = job_ends => {}
            }
        }
    }

    /// Closes the port and all connections, and waits until all of it is gone.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
