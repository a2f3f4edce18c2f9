//! The signals that ask the program to end.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal is gone, or ssh is done with its ProxyCommand.
    HangUp,
}

/// Catches the signals for as long as the process lives: none of them ends it by itself any more.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Begins to catch them.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let caught = |kind| signal(kind).map_err(|error| Failure::new(Exit::Failed, "cannot catch signals").caused_by(&error));
        Ok(Self {
            interrupt: caught(SignalKind::interrupt())?,
            terminate: caught(SignalKind::terminate())?,
            hang_up: caught(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Cancel-safe: a signal that came is told at the next call.
    pub(crate) async fn next(&mut self) -> Asked {
        let (asked, came) = tokio::select! {
            came = self.interrupt.recv() => (Asked::Interrupt, came),
            came = self.terminate.recv() => (Asked::Terminate, came),
            came = self.hang_up.recv() => (Asked::HangUp, came),
        };
        match came {
            Some(()) => asked,
            None => pending().await, // no more signals can come; nothing to wait for
        }
    }
}
