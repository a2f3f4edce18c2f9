//! The program's output: results on standard output, messages on standard error. Nothing else prints.

use std::io::{self, Write};

use moorline_files::Blocking;
use moorline_proto::failure::Style;
use moorline_proto::text::printable;
use serde::Serialize;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::exit::Failure;

/// Characters of one cell of a table.
const CELL_CHARS: usize = 400;

/// Messages and lines of the log that wait to be written.
const QUEUED_LINES: usize = 1_024;

/// Cheap to clone. Each message is written in one piece, so that messages of different tasks do not mix.
///
/// Writing to standard error never blocks: messages go through a bounded queue to a thread. If nobody reads standard error, the queue
/// fills up and further messages are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    style: Style,
    messages: NonBlocking,
}

/// Writes out the queued messages when it is dropped, for about a second at most.
#[must_use = "messages that are still queued are lost with the process"]
pub(crate) struct Flush {
    messages: NonBlocking,
    worker: Option<WorkerGuard>,
}

impl Output {
    /// Colours only if standard error is a terminal and the user did not disable them.
    pub(crate) fn new(no_color: bool) -> (Self, Flush) {
        Self::to(Blocking(io::stderr()), Style::for_output(&io::stderr(), no_color))
    }

    fn to(writer: impl Write + Send + 'static, style: Style) -> (Self, Flush) {
        let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUED_LINES);
        let (messages, worker) = queue.finish(writer);
        (Self { style, messages: messages.clone() }, Flush { messages, worker: Some(worker) })
    }

    /// Whether colours are written to standard error.
    pub(crate) fn has_colour(&self) -> bool {
        self.style == Style::Colour
    }

    /// The way to standard error, for the log.
    pub(crate) fn messages(&self) -> NonBlocking {
        self.messages.clone()
    }

    /// Writes text to standard output.
    ///
    /// # Errors
    /// The reader has closed the pipe, or the disk is full.
    pub(crate) fn print(&self, text: &str) -> io::Result<()> {
        Blocking(io::stdout()).write_all(text.as_bytes())
    }

    /// Writes one line of JSON to standard output.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(crate) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.print(&line)
    }

    /// Writes a message to standard error. It is lost if nobody can read it.
    pub(crate) fn note(&self, text: &str) {
        self.write_stderr(&format!("{text}\n"));
    }

    /// Writes what went wrong, why, and what to do next.
    pub(crate) fn failure(&self, failure: &Failure) {
        if let Some(report) = &failure.report {
            self.write_stderr(&report.render("moorline", self.style));
        }
    }

    fn write_stderr(&self, text: &str) {
        drop(self.messages.clone().write_all(text.as_bytes())); // there is no other place to report this
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        match self.messages.error_counter().dropped_lines() {
            0 => {}
            dropped => drop(writeln!(self.messages, "moorline: {dropped} messages were dropped because standard error was not read")),
        }
        drop(self.worker.take());
    }
}

/// A table whose columns are as wide as their widest cell, with two spaces between. The last column is not padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows.iter().map(|row| row.each_ref().map(|cell| printable(cell, CELL_CHARS))))
        .collect();
    let mut widths = [0; N];
    for (at, width) in widths.iter_mut().enumerate() {
        *width = rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let rows = [["lamp-1".to_owned(), "online".to_owned(), "ssh".to_owned()], ["x".to_owned(), "offline".to_owned(), String::new()]];
        assert_eq!(table(["DEVICE", "STATE", "SERVICES"], &rows), "DEVICE  STATE    SERVICES\nlamp-1  online   ssh\nx       offline\n");
        let rows = [["größe".to_owned(), "a".to_owned()], ["x".to_owned(), "b".to_owned()]];
        assert_eq!(table(["ID", "S"], &rows), "ID     S\ngröße  a\nx      b\n", "by characters, not bytes");
    }

    #[test]
    fn a_devices_text_cannot_control_the_terminal_and_is_bounded() {
        let rows = [["a\u{1b}[2J\u{202e}b".to_owned(), "x".repeat(100_000)]];
        let table = table(["DEVICE", "AGENT"], &rows);
        assert!(table.contains("a\u{fffd}[2J\u{fffd}b") && table.len() < 1_000, "{table}");
    }

    /// Accepts nothing until it is released.
    struct Stalled(mpsc::Receiver<()>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok(); // an error, once it is released
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn unread_messages_do_not_block_and_are_counted() {
        let (release, stalled) = mpsc::channel();
        let (output, flush) = Output::to(Stalled(stalled), Style::Plain);
        for _ in 0..3 * QUEUED_LINES {
            output.note("127.0.0.1:40000 was reset, no stream to lamp-1/http"); // would block without the limit
        }
        assert!(output.messages.error_counter().dropped_lines() >= QUEUED_LINES);
        drop(release); // the thread continues and ends
        drop(flush);
    }
}
