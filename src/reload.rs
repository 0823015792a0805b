//! Another configuration while requests run: validated whole, then put in force at once, or not at all.
//!
//! Each request keeps the `App` that it began with. What outlasts a configuration (books, live jobs, credits, what was learned, the queue)
//! is shared by both, so that nothing is counted anew.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::app::{self, StartError};
use crate::config::{self, Change, Config, Report};
use crate::proxy::{App, Seat};
use crate::state::{State, fingerprint};

pub(crate) use self::told::Reloads;
pub use self::watching::Reloading;

/// What became of reloads.
mod told;

/// Files that change, and the signal.
mod watching;

/// A key that the upstream refused.
pub(crate) mod renew;

/// Why a configuration is not taken. The one that runs stays in force.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It has mistakes.
    #[error("{0}")]
    Report(#[from] Report),
    /// It changes what is bound to the start.
    #[error("{} cannot change while sluicegate runs: restart it, or take the change back", .0.join(", "))]
    Fixed(Vec<&'static str>),
    /// It does not fit what runs.
    #[error(transparent)]
    Unfit(#[from] StartError),
    /// Another file is found now than the one that was read at the start.
    #[error("{0}: restart it")]
    Elsewhere(String),
    /// A socket that the system handed over is open to other machines.
    #[error("{0}, which was handed over, lets every machine that reaches it spend the quota without [[clients]]")]
    Open(SocketAddr),
    /// The proxy is ending.
    #[error("sluicegate is ending")]
    Ending,
}

/// What a reload came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// How many configurations were in force so far, this one included.
    pub generation: u64,
    /// Keys whose new values wait for the next start.
    pub pending: Vec<&'static str>,
}

/// Puts configurations in force.
pub(crate) struct Reloader {
    latest: ArcSwap<App>,
    /// One reload at a time, whole. Never held over an await; requests do not take it.
    inner: Mutex<Inner>,
    renewing: renew::Renewing,
    /// Where the new books' timers run.
    runtime: Handle,
}

struct Inner {
    running: Config,
    /// Fingerprints of the keys that were in use: one that comes back may have sent what no book of now knows of.
    past: HashSet<String>,
    state: Option<State>,
    seats: Vec<Weak<Seat>>,
    timers: Vec<AbortHandle>,
    /// Sockets that stand in place of what the configuration says.
    handed: InPlace,
    ended: bool,
}

impl Reloader {
    /// With this configuration in force. The books' timers start on the current runtime.
    pub(crate) fn new(running: Config, app: Arc<App>, state: Option<State>) -> Self {
        let runtime = Handle::current();
        let timers = app.queues().map(|(_, queue)| runtime.spawn(queue.keep_time()).abort_handle()).collect();
        app.reloads.started();
        let inner = Inner {
            running,
            past: HashSet::new(),
            state,
            seats: Vec::new(),
            timers,
            handed: InPlace::default(),
            ended: false,
        };
        Self { latest: ArcSwap::new(app), inner: Mutex::new(inner), renewing: renew::Renewing::default(), runtime }
    }

    /// The terms that are in force.
    pub(crate) fn latest(&self) -> Arc<App> {
        self.latest.load_full()
    }

    /// Keeps this worker at the newest terms.
    pub(crate) fn seat(&self, seat: &Arc<Seat>) {
        let mut inner = self.inner();
        seat.serve(&self.latest());
        inner.seats.push(Arc::downgrade(seat));
    }

    /// The ports of these keys were handed over: what a file says of them is not looked at.
    pub(crate) fn hand_over(&self, in_place: InPlace) {
        self.inner().handed = in_place;
    }

    /// How often files are looked at; zero: never.
    pub(crate) fn interval(&self) -> Duration {
        self.inner().running.server.reload_interval
    }

    /// Puts a configuration in force: all of it, or nothing.
    pub(crate) fn apply(&self, wanted: Config) -> Result<Reloaded, Refused> {
        let mut inner = self.inner();
        let result = self.apply_in(&mut inner, wanted);
        drop(inner);
        let reloads = &self.latest.load().reloads;
        match &result {
            Ok(reloaded) => reloads.taken(reloaded),
            Err(refused) => reloads.refused(refused),
        }
        result
    }

    fn apply_in(&self, inner: &mut Inner, mut wanted: Config) -> Result<Reloaded, Refused> {
        if inner.ended {
            return Err(Refused::Ending);
        }
        if inner.handed.data {
            wanted.server.listen.clone_from(&inner.running.server.listen);
        }
        if inner.handed.admin {
            wanted.admin.listen = inner.running.admin.listen;
        }
        let Change { config, pending } = config::change(&inner.running, wanted).map_err(Refused::Fixed)?;
        if let Some(open) = open_to_all(&config) {
            return Err(Refused::Open(open));
        }
        self.put(inner, config)?;
        let generation = self.latest.load().reloads.next();
        Ok(Reloaded { generation, pending })
    }

    fn put(&self, inner: &mut Inner, config: Config) -> Result<(), Refused> {
        let old = self.latest.load_full();
        inner.past.extend(inner.running.accounts.iter().map(|account| fingerprint(&account.key)));
        let (next, new) =
            app::next((&inner.running, &inner.past), &config, &old, inner.state.as_ref(), Instant::now())?;
        let next = Arc::new(next);
        inner.timers.extend(new.into_iter().map(|queue| self.runtime.spawn(queue.keep_time()).abort_handle()));
        inner.seats.retain(|seat| {
            seat.upgrade().is_some_and(|seat| {
                seat.serve(&next);
                true
            })
        });
        self.latest.store(next);
        // After the store: who sees this finds the newer one.
        old.supersede();
        inner.running = config;
        Ok(())
    }

    /// A configuration could not even be read: told like one that does not fit.
    pub(crate) fn refuse(&self, refused: Refused) -> Refused {
        self.latest.load().reloads.refused(&refused);
        refused
    }

    /// Ends the timers and lets the state directory go.
    pub(crate) fn end(&self) {
        let mut inner = self.inner();
        inner.ended = true;
        inner.timers.drain(..).for_each(|timer| timer.abort());
        drop(inner.state.take());
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys in whose place sockets were handed over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InPlace {
    pub(crate) data: bool,
    pub(crate) admin: bool,
}

/// A data port at which everybody may spend the quota, and should not.
pub(crate) fn open_to_all(config: &Config) -> Option<SocketAddr> {
    if !config.clients.is_empty() || config.server.allow_open {
        return None;
    }
    config.server.listen.iter().find(|address| !address.ip().is_loopback()).copied()
}
