//! Logging that never blocks the relay: lines wait in a bounded queue for a thread that writes them, and are dropped and counted when
//! nobody reads them. And a limit for lines that unauthenticated peers can cause.
//!
//! `tracing-appender` does the first too, but its guard prints to standard output when the queue is full at the end, which may never end where
//! nobody reads that.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use moorline_files::Blocking;
use tokio::time::Instant;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

use crate::limits::{LOG_BUFFER_KEPT_BYTES, LOG_FLUSH_TIMEOUT, LOG_LINES_BURST, LOG_LINES_PER_SECOND, LOG_QUEUE_BYTES, LOG_WRITE_PAUSE};
use crate::sync::lock;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs what `filter` lets through to standard error from now on, panics too. Keep the guard until the program ends.
///
/// # Errors
/// The operating system's, if there is no thread to be had; or another logger is set up already.
pub fn init(format: LogFormat, filter: EnvFilter) -> io::Result<LogGuard> {
    let is_terminal = io::stderr().is_terminal();
    let (lines, guard) = LogQueue::start(Blocking(io::stderr()), LOG_QUEUE_BYTES)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || lines.clone()).with_ansi(is_terminal);
    let set = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(io::Error::other)?;
    // The default hook writes to standard error itself, and would block there.
    std::panic::set_hook(Box::new(|panic| error!(%panic, "a task panicked")));
    Ok(guard)
}

/// The queue of lines, as something to write to. Each write is one line, and returns at once. Clones share the queue.
#[derive(Clone, Debug)]
struct LogQueue(Arc<Shared>);

/// Waits at its end until the lines were written, for a second at most.
#[must_use = "what is logged last would be lost"]
#[derive(Debug)]
pub struct LogGuard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max_bytes: usize,
    queue: Mutex<Queue>,
    /// Notified when the first line comes after a time without any: further ones wake nobody.
    filled: Condvar,
    /// Notified when there is nothing left to write.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines, one behind the other.
    lines: Vec<u8>,
    writer: Writer,
    /// Lines that were dropped so far.
    dropped: u64,
}

/// What the thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    /// It has written everything, and sleeps until it is notified.
    #[default]
    Idle,
    /// It writes, or pauses before it looks again.
    Busy,
}

impl LogQueue {
    /// Starts the thread that writes to `output`. At most `max_bytes` wait in the queue, and as many are being written.
    fn start(output: impl Write + Send + 'static, max_bytes: usize) -> io::Result<(Self, LogGuard)> {
        let shared = Shared { max_bytes, queue: Mutex::default(), filled: Condvar::new(), written: Condvar::new() };
        let shared = Arc::new(shared);
        let writing = Arc::clone(&shared);
        thread::Builder::new().name("log".to_owned()).spawn(move || writing.write_to(output))?;
        Ok((Self(Arc::clone(&shared)), LogGuard(shared)))
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = lock(&self.0.queue);
        if queue.lines.len() + line.len() > self.0.max_bytes {
            queue.dropped += 1;
            return Ok(line.len());
        }
        queue.lines.extend_from_slice(line);
        let was_idle = std::mem::replace(&mut queue.writer, Writer::Busy) == Writer::Idle;
        drop(queue);
        if was_idle {
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Writes lines for as long as the program runs. After lines were dropped, it logs their number once the output accepts bytes again.
    fn write_to(&self, mut output: impl Write) {
        let mut reported = 0;
        let mut lines = Vec::new();
        loop {
            let dropped = self.take(&mut lines);
            // Where standard error is closed or its disk is full, there is nowhere to say so.
            output.write_all(&lines).and_then(|()| output.flush()).ok();
            if dropped > reported {
                warn!(dropped = dropped - reported, "log lines were dropped: standard error was not read fast enough");
                reported = dropped;
            }
            // A line for each of a thousand streams a second costs few writes, and no wake-up, when they are written together.
            thread::park_timeout(LOG_WRITE_PAUSE);
        }
    }

    /// Waits for lines and exchanges them for the buffer that was written. Returns how many were dropped so far.
    fn take(&self, buffer: &mut Vec<u8>) -> u64 {
        buffer.clear();
        buffer.shrink_to(LOG_BUFFER_KEPT_BYTES);
        let mut queue = lock(&self.queue);
        if queue.lines.is_empty() {
            queue.writer = Writer::Idle;
            self.written.notify_all();
        }
        queue = self.filled.wait_while(queue, |queue| queue.lines.is_empty()).unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.lines, buffer);
        queue.dropped
    }

    fn wait_until_written(&self, within: Duration) {
        let queue = lock(&self.queue);
        let waited = self.written.wait_timeout_while(queue, within, |queue| queue.writer == Writer::Busy);
        // Either everything is written, or nobody reads it.
        drop(waited);
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.wait_until_written(LOG_FLUSH_TIMEOUT);
    }
}

/// Limits the lines of one place in the source: a token bucket of [`LOG_LINES_BURST`], refilled with [`LOG_LINES_PER_SECOND`].
#[derive(Debug)]
pub(crate) struct LogLimiter(Mutex<Option<Bucket>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
    suppressed: u64,
}

impl LogLimiter {
    /// A limiter with a full bucket.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line may be logged now; if so, how many were suppressed since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut bucket = lock(&self.0);
        let full = Bucket { tokens: f64::from(LOG_LINES_BURST), filled_at: now, suppressed: 0 };
        let bucket = bucket.get_or_insert(full);
        let refill = now.duration_since(bucket.filled_at).as_secs_f64() * f64::from(LOG_LINES_PER_SECOND);
        (bucket.tokens, bucket.filled_at) = ((bucket.tokens + refill).min(f64::from(LOG_LINES_BURST)), now);
        if bucket.tokens < 1.0 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

/// As [`tracing::warn`], for lines that an unauthenticated peer can cause: a few a second at each place. The next line has the number of
/// those that were suppressed before it, as the field `suppressed`.
macro_rules! warn_limited {
    ($($line:tt)+) => {{
        static LIMITER: $crate::logging::LogLimiter = $crate::logging::LogLimiter::new();
        if let Some(suppressed) = LIMITER.admit(tokio::time::Instant::now()) {
            if suppressed > 0 {
                tracing::warn!(suppressed, $($line)+);
            } else {
                tracing::warn!($($line)+);
            }
        }
    }};
}
pub(crate) use warn_limited;

#[cfg(test)]
#[path = "logging_tests.rs"]
mod tests;
