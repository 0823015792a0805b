//! From flags to a running proxy, and back to none: what `run`, `exec` and `demo` share.

use std::path::PathBuf;

use crate::app::StartError;
use crate::config::{self, Attempt, Config, Flags, Loaded, Sources, Watch};
use crate::reload::Reloading;
use crate::server::{Handed, Server};

use super::Failure;
use super::signals::Signals;

/// The sources of this process with these flags.
pub(super) fn sources(flags: Flags) -> Result<Sources, Failure> {
    Sources::of_process(flags).map_err(|error| Failure::failed(format_args!("there is no working directory: {error}")))
}

/// Reads and checks the configuration.
pub(super) fn load(flags: Flags) -> Result<Loaded, Failure> {
    Ok(config::load(&sources(flags)?)?)
}

/// The same, with what is needed to read it again.
pub(super) fn load_watched(flags: Flags) -> Result<(Loaded, Again), Failure> {
    let sources = sources(flags)?;
    let Attempt { loaded, watch } = config::load_watched(&sources);
    let loaded = loaded?;
    let path = loaded.path.clone();
    Ok((loaded, Again { sources, path, watch }))
}

/// What the configuration came from, to read it again.
pub(super) struct Again {
    sources: Sources,
    path: Option<PathBuf>,
    watch: Watch,
}

impl Again {
    pub(super) fn reloading(self, server: &Server) -> Reloading {
        server.proxy().reloading(self.sources, self.path, self.watch)
    }
}

/// Opens the ports.
pub(super) async fn start(config: &Config) -> Result<Server, Failure> {
    start_on(config, Handed::default()).await
}

/// The same, on sockets that were handed over.
pub(super) async fn start_on(config: &Config, handed: Handed) -> Result<Server, Failure> {
    Server::start_on(config, handed).await.map_err(Failure::from)
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(_) => Self::wrong(error),
            _ => Self::failed(error),
        }
    }
}

/// Finishes what is in flight. A further signal ends at once.
pub(super) async fn drain(server: Server, signals: &mut Signals) -> u8 {
    tokio::select! {
        finished = server.drain() => {
            if finished {
                tracing::info!("all work is finished");
                0
            } else {
                tracing::error!("server.drain_timeout passed before all work was finished");
                1
            }
        }
        stop = signals.next() => {
            tracing::warn!(signal = stop.name(), "a second signal: ending at once");
            stop.exit_code()
        }
    }
}

/// Whether a port was taken, so that another one may do.
pub(super) fn is_port_taken(error: &StartError) -> bool {
    matches!(error, StartError::Bind { error, .. } if error.kind() == std::io::ErrorKind::AddrInUse)
}
