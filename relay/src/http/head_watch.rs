//! What hyper leaves out of a request's head, noted while hyper reads it: a fragment in the target, and a second `Content-Length` with the
//! same number.
//!
//! Lines are looked at one by one, without knowing where heads end and bodies begin: no line of a body can be taken for a request line or
//! for a header unless it breaks the one form that bodies have, JSON, where a line break does not stand inside a text.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::write_timeout::WriteTimeout;
use crate::net::connection::Socket;

/// What is wrong with a head that hyper accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// The request's target has a `#`.
    Fragment,
    /// `Content-Length` stands twice.
    RepeatedLength,
}

/// The first fault of a connection's heads, once there is one. Clones share it. Requests that were read by then, and not answered, are
/// refused for it as well: the connection ends with that.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadFaults(Arc<OnceLock<HeadFault>>);

impl HeadFaults {
    /// The fault, if there is one.
    pub(super) fn get(&self) -> Option<HeadFault> {
        self.0.get().copied()
    }
}

/// A connection whose requests are looked at while they are read.
#[derive(Debug)]
pub(crate) struct HeadWatch {
    connection: WriteTimeout,
    lines: Lines,
    faults: HeadFaults,
}

impl HeadWatch {
    /// Watches what is read from a connection.
    pub(super) fn new(connection: WriteTimeout, faults: HeadFaults) -> Self {
        Self { connection, lines: Lines::default(), faults }
    }

    /// The connection, unwatched.
    pub(crate) fn into_inner(self) -> Socket {
        self.connection.into_inner()
    }
}

const LENGTH: &[u8] = b"content-length:";
const VERSION: &[u8] = b" HTTP/1.";

/// The present line, as far as it matters.
#[derive(Debug, Default)]
struct Lines {
    begins: [u8; LENGTH.len()],
    /// Its last bytes, without carriage returns.
    ends: [u8; VERSION.len() + 1],
    length: usize,
    /// It begins with a header's name and a colon. (A request line behind a body, in the same line, does not.)
    is_header: bool,
    /// A byte stood in it that a header's name does not have.
    is_past_name: bool,
    has_fragment: bool,
    /// Lines with a `Content-Length` since the last request line.
    lengths: usize,
}

impl Lines {
    /// Takes what was read; returns the first fault in it.
    fn read(&mut self, bytes: &[u8]) -> Option<HeadFault> {
        bytes.iter().filter_map(|&byte| if byte == b'\n' { self.end() } else { self.push(byte) }).next()
    }

    fn push(&mut self, byte: u8) -> Option<HeadFault> {
        if byte == b'\r' {
            return None;
        }
        if let Some(place) = self.begins.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
        }
        self.ends.rotate_left(1);
        self.ends[VERSION.len()] = byte;
        self.length += 1;
        self.has_fragment |= byte == b'#';
        if !self.is_past_name {
            self.is_header = byte == b':' && self.length > 1;
            self.is_past_name = !is_name_byte(byte);
        }
        None
    }

    fn end(&mut self) -> Option<HeadFault> {
        let line = std::mem::take(self);
        self.lengths = line.lengths;
        if !line.is_header && line.ends.starts_with(VERSION) {
            self.lengths = 0;
            return line.has_fragment.then_some(HeadFault::Fragment);
        }
        if line.length >= LENGTH.len() && line.begins == LENGTH {
            self.lengths += 1;
        }
        (self.lengths > 1).then_some(HeadFault::RepeatedLength)
    }
}

/// Whether a header's name may have this byte (RFC 9110, 5.6.2).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

impl AsyncRead for HeadWatch {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.connection).poll_read(cx, buf);
        if let Some(fault) = self.lines.read(&buf.filled()[before..]) {
            self.faults.0.get_or_init(|| fault);
        }
        read
    }
}

impl AsyncWrite for HeadWatch {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Option<HeadFault> {
        let (mut whole, mut bytewise) = (Lines::default(), Lines::default());
        let found = whole.read(text.as_bytes());
        assert_eq!(text.as_bytes().chunks(1).find_map(|byte| bytewise.read(byte)), found, "however it is cut: {text:?}");
        found
    }

    #[test]
    fn a_fragment_is_found_in_targets_alone() {
        let fragment = Some(HeadFault::Fragment);
        assert_eq!(fault("GET /v1/about#x HTTP/1.1\r\n"), fragment);
        assert_eq!(fault("GET http://h:1/v1/about?a#b:c HTTP/1.1\n"), fragment);
        assert_eq!(fault("GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /# HTTP/1.0\r\n"), fragment);
        assert_eq!(fault("GET / HTTP/1.1\r\nX: #\r\nUser-Agent: a#b HTTP/1.1\r\n\r\n{\"reason\":\"#1\"}"), None);
    }

    #[test]
    fn a_length_counts_from_its_own_request_line() {
        let (head, length) = ("POST / HTTP/1.1\r\nHost: h\r\n", "Content-Length: 2\r\n");
        assert_eq!(fault(&format!("{head}{length}content-LENGTH:2\r\n\r\n{{}}")), Some(HeadFault::RepeatedLength));
        for body in ["{}", r#"{"a":1}"#, "{\"a\":1,\n \"b\":\n2}", "x"] {
            let one = format!("{head}{length}\r\n{body}");
            assert_eq!(fault(&format!("{one}{one}{one}")), None);
            assert_eq!(fault(&format!("{one}GET /# HTTP/1.1\r\n")), Some(HeadFault::Fragment));
        }
        assert_eq!(fault(&format!("{head}{length}X: content-length:\r\ncontent-length-x: 2\r\n\r\n")), None);
    }
}
