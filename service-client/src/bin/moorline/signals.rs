//! The signals that ask the program to stop.

use std::fs;
use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// The signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownSignal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal has closed, or ssh is done with its ProxyCommand.
    HangUp,
}

/// Catches the signals for the life of the process: none of them terminates it by default any more. An ignored SIGHUP stays ignored, which
/// is what `nohup` asks for.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Option<Signal>,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// A handler could not be installed.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let caught = |kind| signal(kind).map_err(|error| Failure::new(Exit::Failed, "cannot catch signals").caused_by(&error));
        Ok(Self {
            interrupt: caught(SignalKind::interrupt())?,
            terminate: caught(SignalKind::terminate())?,
            hang_up: if is_hang_up_ignored() { None } else { Some(caught(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next signal. Cancel-safe: a signal that arrived is returned by the next call.
    pub(crate) async fn next(&mut self) -> ShutdownSignal {
        let (signal, received) = tokio::select! {
            received = self.interrupt.recv() => (ShutdownSignal::Interrupt, received),
            received = self.terminate.recv() => (ShutdownSignal::Terminate, received),
            received = recv(self.hang_up.as_mut()) => (ShutdownSignal::HangUp, received),
        };
        match received {
            Some(()) => signal,
            None => pending().await, // no more signals can arrive
        }
    }
}

async fn recv(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => pending().await,
    }
}

/// Reads `/proc/self/status` (Linux). If that fails, SIGHUP counts as not ignored.
fn is_hang_up_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hang_up(&status))
}

fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1) // SIGHUP is signal 1, the lowest bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_seen_in_the_process_status() {
        assert!(ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t1\n"));
        assert!(!ignores_hang_up(""));
    }
}
