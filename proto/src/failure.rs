//! How the programs report a failure to a person: what happened, why, and what to do next.
//!
//! ```text
//! moorline: no stream to lamp-1/ssh: the device is not connected (device_offline)
//!   because: lamp-1 is not connected
//!   next: check that the device has power and network
//! ```
//!
//! This is text only. Each program decides where it is written, and with which exit code it ends.

use std::error::Error;
use std::fmt::Write as _;
use std::io::IsTerminal;

/// Characters of one line; the rest is cut. Long enough for any path and any advice.
const LINE_CHARS: usize = 2_000;
/// Lines of one cause: what a parser prints about a place in a file has five.
const CAUSE_LINES: usize = 16;
/// Errors below one error; a chain that is longer has lost its point.
const CHAIN: usize = 16;

/// What happened, why, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a failure that nobody prints is lost"]
pub struct Failure {
    what: String,
    causes: Vec<String>,
    next: Option<String>,
}

/// Whether a rendered failure has the colours of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Text alone: for files, pipes and `NO_COLOR`.
    #[default]
    Plain,
    /// ANSI colours.
    Colour,
}

impl Style {
    /// Colours if `output` is a terminal and the user did not disable them (the environment variable `NO_COLOR` is set).
    pub fn for_output(output: &impl IsTerminal, no_color: bool) -> Self {
        if output.is_terminal() && !no_color { Self::Colour } else { Self::Plain }
    }
}

impl Failure {
    /// A failure without causes and advice yet.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), next: None }
    }

    /// A failure that is one error: the error is what happened, its sources are the causes.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        Self { causes: chain(error.source()), ..Self::new(error.to_string()) }
    }

    /// Adds a cause in words.
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds an error and its sources, one cause each.
    pub fn caused_by(mut self, error: &(dyn Error + 'static)) -> Self {
        self.causes.extend(chain(Some(error)));
        self
    }

    /// Sets the advice.
    pub fn next(mut self, advice: impl Into<String>) -> Self {
        self.next = Some(advice.into());
        self
    }

    /// What happened.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The causes, the nearest first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// The advice.
    pub fn advice(&self) -> Option<&str> {
        self.next.as_deref()
    }

    /// The lines to print, each with its newline. Control characters are replaced, since parts of it may come from a peer.
    pub fn render(&self, program: &str, style: Style) -> String {
        let (name, label, plain) = match style {
            Style::Colour => ("\x1b[1;31m", "\x1b[1m", "\x1b[0m"),
            Style::Plain => ("", "", ""),
        };
        let mut text = format!("{name}{program}:{plain} {}\n", lines(&self.what));
        for (title, cause) in self.causes.iter().map(|cause| ("because", cause)).chain(self.next.iter().map(|next| ("next", next))) {
            writeln!(text, "  {label}{title}:{plain} {}", lines(cause)).ok(); // a String takes everything
        }
        text
    }
}

/// An error and what stands below it, each once: some libraries include their source in their own text.
fn chain(mut error: Option<&(dyn Error + 'static)>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    for _ in 0..CHAIN {
        let Some(this) = error else { break };
        let text = this.to_string();
        if !causes.iter().any(|cause| cause.contains(&text)) {
            causes.push(text);
        }
        error = this.source();
    }
    causes
}

/// Text whose further lines are indented below the first one, cut and without control characters.
fn lines(text: &str) -> String {
    let lines: Vec<String> = text.trim_end().lines().take(CAUSE_LINES).map(|line| crate::text::printable(line, LINE_CHARS)).collect();
    lines.join("\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("parse error: no such key")]
    struct Inner(#[source] std::fmt::Error);

    #[test]
    fn a_failure_is_rendered_with_its_causes_and_the_advice() {
        let failure = Failure::new("no stream to lamp-1/ssh").because("the device is off").because("for an hour").next("switch it on");
        assert_eq!(
            failure.render("moorline", Style::Plain),
            "moorline: no stream to lamp-1/ssh\n  because: the device is off\n  because: for an hour\n  next: switch it on\n"
        );
        assert!(failure.render("moorline", Style::Colour).starts_with("\x1b[1;31mmoorline:\x1b[0m no stream"));
        assert_eq!(Failure::new("stopped").render("moorline-relay", Style::Plain), "moorline-relay: stopped\n");
    }

    #[test]
    fn the_sources_of_an_error_are_its_causes() {
        let error = Outer(Inner(std::fmt::Error));
        let below = ["parse error: no such key", "an error occurred when formatting an argument"];
        assert_eq!((Failure::of(&error).what(), Failure::of(&error).causes()), ("cannot read the file", &below.map(str::to_owned)[..]));
        assert_eq!(Failure::new("x").caused_by(&error).causes()[0], "cannot read the file");
        assert_eq!(Failure::new("x").caused_by(&error).causes()[1..], below);
    }

    #[test]
    fn further_lines_are_indented_and_a_peers_text_cannot_control_the_terminal() {
        let failure = Failure::new("no").because("line 1\nline 2\n").because("the device says: \x1b]0;owned\x07\u{202e}");
        let text = failure.render("x", Style::Plain);
        assert!(text.starts_with("x: no\n  because: line 1\n    line 2\n  because: the device says: "), "{text}");
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text:?}");
        let long = Failure::new("y".repeat(100_000)).because("z\n".repeat(100_000));
        assert!(long.render("x", Style::Plain).len() < 10_000);
    }
}
