//! Reads the configuration again: on a signal, and when the content of its file or of a secret's file has changed and is at rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Refused, Reloaded, Reloader};
use crate::config::{self, Attempt, Sources, Watch, Watcher};

/// Reads the same sources again, and puts what they say in force.
pub struct Reloading {
    reloader: Arc<Reloader>,
    sources: Arc<Sources>,
    /// The file that was read at the start. Another one is not taken in its place.
    path: Option<PathBuf>,
    watcher: Watcher,
}

impl Reloading {
    pub(crate) fn new(reloader: Arc<Reloader>, sources: Sources, path: Option<PathBuf>, watch: Watch) -> Self {
        Self { reloader, sources: Arc::new(sources), path, watcher: Watcher::new(watch) }
    }

    /// Waits until something has changed that should be read; for ever with `server.reload_interval = "0s"`. May be dropped at any time.
    pub async fn changed(&mut self) {
        loop {
            let interval = self.reloader.interval();
            if interval.is_zero() {
                return std::future::pending().await;
            }
            tokio::time::sleep(interval).await;
            let files = self.watcher.files().clone();
            // An error: the runtime ends.
            let Ok(now) = tokio::task::spawn_blocking(move || files.again()).await else { continue };
            if self.watcher.sees(now) {
                return;
            }
        }
    }

    /// Reads everything again and puts it in force. The log, the metrics and the status tell what came of it, too.
    ///
    /// # Errors
    /// Where it has mistakes, or changes what cannot change while the proxy runs. The configuration that runs stays in force.
    pub async fn reload(&mut self) -> Result<Reloaded, Refused> {
        let (reloader, sources, path) = (Arc::clone(&self.reloader), Arc::clone(&self.sources), self.path.clone());
        let read = tokio::task::spawn_blocking(move || {
            let Attempt { loaded, watch } = config::load_watched(&sources);
            let wanted = loaded.map_err(Refused::from).and_then(|loaded| {
                if loaded.path != path {
                    return Err(elsewhere(path.as_deref(), loaded.path.as_deref()));
                }
                loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                Ok(loaded.config)
            });
            let result = match wanted {
                Ok(config) => reloader.apply(config),
                Err(refused) => Err(reloader.refuse(refused)),
            };
            (result, watch)
        });
        let (result, watch) = read.await.map_err(|_| Refused::Ending)?;
        self.watcher.has_read(watch);
        result
    }
}

/// What lies about in a directory is not taken in place of what was started with.
fn elsewhere(started: Option<&Path>, found: Option<&Path>) -> Refused {
    let name = |path: Option<&Path>| {
        path.map_or_else(|| "the built-in defaults".to_owned(), |path| path.display().to_string())
    };
    Refused::Elsewhere(format!("sluicegate was started with {}, and {} would be read now", name(started), name(found)))
}
