//! What systemd is told, and the sockets that it hands over. Without systemd nothing of this does anything.

use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::server::Handed;

use super::Failure;

/// How `LISTEN_FDNAMES` calls the sockets of apps.
const DATA: &str = "data";
/// And the operator's.
const ADMIN: &str = "admin";

/// The sockets that were handed over. To be called before anything else is started: it takes them out of the environment.
pub(super) fn sockets() -> Result<Handed, Failure> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut given = ListenFd::from_env();
    let names = names_of(&names, given.len()).map_err(Failure::wrong)?;
    let mut handed = Handed::default();
    for (index, name) in names.into_iter().enumerate() {
        let socket = given.take_tcp_listener(index);
        let Ok(Some(socket)) = socket.and_then(|socket| socket.map(waiting).transpose()) else {
            return Err(Failure::wrong(format_args!("the socket {name} that was handed over is not a TCP listener")));
        };
        match name {
            Name::Data => handed.data.push(socket),
            Name::Admin => handed.admin = Some(socket),
        }
    }
    Ok(handed)
}

fn waiting(socket: TcpListener) -> std::io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Data,
    Admin,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Data => DATA,
            Self::Admin => ADMIN,
        })
    }
}

/// What each of so many sockets is for. Without names all are for apps.
fn names_of(names: &str, count: usize) -> Result<Vec<Name>, String> {
    if names.is_empty() || count == 0 {
        return Ok(vec![Name::Data; count]);
    }
    let names: Vec<&str> = names.split(':').collect();
    if names.len() != count {
        return Err(format!("{count} sockets were handed over, but LISTEN_FDNAMES has {} names", names.len()));
    }
    let name = |name: &&str| match *name {
        DATA => Ok(Name::Data),
        ADMIN => Ok(Name::Admin),
        other => {
            Err(format!("a socket was handed over that is called {other:?}: FileDescriptorName= is data or admin"))
        }
    };
    let names = names.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    if names.iter().filter(|name| **name == Name::Admin).count() > 1 {
        return Err("several sockets called admin were handed over: there is one admin port".to_owned());
    }
    Ok(names)
}

/// Serves: apps may come.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reads its configuration again; `ready` follows.
pub(super) fn reloading() {
    // The time is demanded with it: systemd takes it for the beginning of the reload.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")]),
        Err(error) => tracing::warn!(%error, "systemd is not told of the reload: there is no monotonic clock"),
    }
}

/// Ends.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells the watchdog, if there is one, twice as often as it wants to hear, from the thread that accepts.
pub(super) fn feed_watchdog() {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else { return };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_by_their_names() {
        assert_eq!(names_of("", 2), Ok(vec![Name::Data, Name::Data]));
        assert_eq!(names_of("data:admin:data", 3), Ok(vec![Name::Data, Name::Admin, Name::Data]));
        assert_eq!(names_of("unknown", 0), Ok(vec![]), "meant for another process");
        for (names, count) in [("data", 2), ("sluicegate.socket", 1), ("admin:admin", 2), ("data:", 2)] {
            assert!(names_of(names, count).is_err(), "{names}");
        }
    }
}
