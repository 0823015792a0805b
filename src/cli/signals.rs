//! SIGINT, SIGTERM and SIGHUP.

use std::io::{self, IsTerminal, stderr};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals that ask for an end; from here on they no longer end the process by themselves.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Which one came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Interrupt,
    Terminate,
    /// The terminal is gone.
    Hangup,
}

/// SIGHUP: the configuration is to be read again; or the terminal is gone, if there was one.
pub(super) struct Hangup {
    signal: Signal,
    terminal: bool,
}

impl Hangup {
    /// From here on it no longer ends the process by itself.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { signal: signal(SignalKind::hangup())?, terminal: stderr().is_terminal() })
    }

    /// The next one. An error: whoever started us in a terminal has closed it.
    pub(super) async fn next(&mut self) -> Result<(), Stop> {
        self.signal.recv().await;
        // A terminal that has hung up is none any more.
        if self.terminal && !stderr().is_terminal() { Err(Stop::Hangup) } else { Ok(()) }
    }
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next of either kind.
    pub(super) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }
}

impl Stop {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }

    /// 128 and the signal's number, as shells say it.
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::Hangup => 129,
        }
    }
}
