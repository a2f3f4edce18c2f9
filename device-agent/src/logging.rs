//! The program's log: lines on standard error, written by a thread of its own, so that a reader that hangs cannot stop the agent.
//!
//! Lines that find the queue full are dropped and counted.

use std::io::{self, IsTerminal as _, Write};
use std::sync::mpsc;
use std::thread;

use clap::ValueEnum;
use moorline_files::Blocking;
use tokio::time::sleep;
use tracing::warn;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::limits::{LOG_DROPS_INTERVAL, LOG_FLUSH_TIMEOUT, LOG_QUEUE_LINES};

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The log, while the program runs.
#[derive(Debug)]
#[must_use = "lines are written only while this is held"]
pub(crate) struct Log {
    worker: WorkerGuard,
    dropped: ErrorCounter,
}

impl Log {
    /// Starts the log of this process.
    pub(crate) fn start(format: LogFormat, filter: EnvFilter) -> Self {
        let (writer, worker) = non_blocking(Blocking(io::stderr()));
        let dropped = writer.error_counter();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(io::stderr().is_terminal());
        match format {
            LogFormat::Text => log.with_target(false).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
        Self { worker, dropped }
    }

    /// Logs now and then how many lines were dropped. Never returns.
    pub(crate) async fn report_drops(&self) {
        let mut reported = 0;
        loop {
            sleep(LOG_DROPS_INTERVAL).await;
            reported = self.report_since(reported);
        }
    }

    fn report_since(&self, reported: usize) -> usize {
        let dropped = self.dropped.dropped_lines();
        if dropped > reported {
            warn!(lines = dropped, "log lines were dropped: standard error is not read fast enough");
        }
        dropped
    }

    /// Writes out the queue, as far as standard error takes it in a second.
    pub(crate) fn finish(self) {
        self.report_since(0);
        let (done, written) = mpsc::sync_channel::<()>(1);
        // In a thread of its own, since the worker may hang in a write for ever; it ends with the process then.
        let flush = thread::Builder::new().spawn(move || {
            drop(self.worker);
            drop(done);
        });
        if flush.is_ok() {
            written.recv_timeout(LOG_FLUSH_TIMEOUT).ok();
        }
    }
}

/// A writer that never waits, in front of one that may.
fn non_blocking(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_QUEUE_LINES).thread_name("log").finish(writer)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Accepts nothing before the sender is dropped.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue whose reader is blocked until the sender is dropped, and a hundred lines more than it holds.
    fn overfilled() -> (mpsc::SyncSender<()>, NonBlocking, WorkerGuard) {
        let (release, stuck) = mpsc::sync_channel(1);
        let (mut writer, worker) = non_blocking(Stuck(stuck));
        for _ in 0..LOG_QUEUE_LINES + 100 {
            writer.write_all(b"a line").unwrap();
        }
        (release, writer, worker)
    }

    #[test]
    fn a_blocked_reader_loses_log_lines_and_delays_nothing() {
        let (release, writer, worker) = overfilled();
        // The worker holds one line.
        assert!((99..=100).contains(&writer.error_counter().dropped_lines()));
        drop(release);
        drop(worker);
    }

    #[test]
    fn dropped_lines_are_reported_once() {
        let (release, writer, worker) = overfilled();
        let log = Log { worker, dropped: writer.error_counter() };
        let (mut printed, output) = io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(output)).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            let reported = log.report_since(0);
            assert_eq!(log.report_since(reported), reported);
        });
        let mut text = String::new();
        printed.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches("log lines were dropped").count(), 1, "{text}");
        drop((release, log));
    }
}
