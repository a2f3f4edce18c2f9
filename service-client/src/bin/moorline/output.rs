//! The program's output: results on standard output, messages on standard error. Nothing else prints.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::exit::Failure;

/// Cheap to copy. Each message is written in one piece, so that messages of different tasks do not mix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    style: Style,
}

/// Whether colours are written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Colour,
    Plain,
}

impl Output {
    /// Colours only if standard error is a terminal and the user did not disable them.
    pub(crate) fn new(no_color: bool) -> Self {
        let style = if io::stderr().is_terminal() && !no_color { Style::Colour } else { Style::Plain };
        Self { style }
    }

    /// Whether colours are written to standard error.
    pub(crate) fn has_colour(self) -> bool {
        self.style == Style::Colour
    }

    /// Writes text to standard output.
    ///
    /// # Errors
    /// The reader has closed the pipe, or the disk is full.
    pub(crate) fn print(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Writes one line of JSON to standard output.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(crate) fn json(self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.print(&line)
    }

    /// Writes a message to standard error. It is lost if nobody can read it.
    pub(crate) fn note(self, text: &str) {
        self.write_stderr(&format!("{text}\n"));
    }

    /// Writes what went wrong, why, and what to do next.
    pub(crate) fn failure(self, failure: &Failure) {
        if !failure.what.is_empty() {
            self.write_stderr(&render(failure, self.style));
        }
    }

    fn write_stderr(self, text: &str) {
        drop(io::stderr().lock().write_all(text.as_bytes())); // there is no other place to report this
    }
}

fn render(failure: &Failure, style: Style) -> String {
    let (name, label, plain) = match style {
        Style::Colour => ("\x1b[1;31m", "\x1b[1m", "\x1b[0m"),
        Style::Plain => ("", "", ""),
    };
    let mut text = format!("{name}moorline:{plain} {}\n", visible(&failure.what));
    for why in &failure.why {
        text += &format!("  {label}why:{plain}  {}\n", visible(why));
    }
    if let Some(next) = &failure.next {
        text += &format!("  {label}next:{plain} {}\n", visible(next));
    }
    text
}

/// Replaces control characters in text from elsewhere, so that it cannot control the terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A table whose columns are as wide as their widest cell, with two spaces between. The last column is not padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        std::iter::once(head.map(str::to_owned)).chain(rows.iter().map(|row| row.each_ref().map(|cell| visible(cell)))).collect();
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
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_table_is_aligned() {
        let rows = [["lamp-1".to_owned(), "online".to_owned(), "ssh".to_owned()], ["x".to_owned(), "offline".to_owned(), String::new()]];
        assert_eq!(table(["DEVICE", "STATE", "SERVICES"], &rows), "DEVICE  STATE    SERVICES\nlamp-1  online   ssh\nx       offline\n");
    }

    #[test]
    fn a_failure_is_printed_with_reasons_and_advice() {
        let failure = Failure::new(Exit::Refused, "no stream to lamp-1/ssh").because("the device is off").next("switch it on");
        assert_eq!(render(&failure, Style::Plain), "moorline: no stream to lamp-1/ssh\n  why:  the device is off\n  next: switch it on\n");
        assert!(render(&failure, Style::Colour).contains("\x1b[1;31m"));
    }

    #[test]
    fn a_devices_text_cannot_control_the_terminal() {
        let failure = Failure::new(Exit::Refused, "refused").because("the device says: \x1b]0;owned\x07");
        assert!(!render(&failure, Style::Plain).contains('\x1b'));
    }
}
