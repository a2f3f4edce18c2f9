//! The signals that ask the program to stop.

use std::fs;
use std::future::pending;
use std::io;

use signal_hook::low_level::emulate_default_handler;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

impl ShutdownSignal {
    /// Ends the process as the signal does where it is not caught: a shell that runs the program in a loop ends the loop after Ctrl-C only then.
    /// Returns only if that is not possible.
    pub(crate) fn end_process(self) {
        emulate_default_handler(self.kind().as_raw_value()).ok();
    }

    fn kind(self) -> SignalKind {
        match self {
            Self::Interrupt => SignalKind::interrupt(),
            Self::Terminate => SignalKind::terminate(),
            Self::HangUp => SignalKind::hangup(),
        }
    }

    /// The exit code of a shell whose command was ended by the signal.
    pub(crate) fn exit_code(self) -> u8 {
        u8::try_from(self.kind().as_raw_value()).map_or(1, |number| 128 + number)
    }
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// A handler could not be installed.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(ShutdownSignal::Interrupt.kind())?,
            terminate: signal(ShutdownSignal::Terminate.kind())?,
            hang_up: if is_hang_up_ignored() { None } else { Some(signal(ShutdownSignal::HangUp.kind())?) },
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
