//! One TLS connection, server side, that owns no buffer while nothing is in flight.
//!
//! `rustls::ServerConnection` keeps a read buffer of 4 KiB for life, which is more than everything else that an idle device costs. The
//! unbuffered API leaves the buffers to its caller: here they belong to the thread, or are freed when they are empty.
//!
//! For use by one task at a time: it cannot be split into a read and a write half that two tasks poll.
//!
//! Does not own: certificates and protocol versions ([`crate::net::tls`]), deadlines.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

mod session;

use session::{Pieces, ReadState, Session, Sink};

/// Bytes that one read takes from the socket where the reader may take less: two full records and a little more.
const READ_BYTES: usize = 34 * 1024;
/// Bytes that one read takes from the socket where everything is taken at once.
const READ_PIECES_BYTES: usize = 128 * 1024;
/// A full record, with what TLS 1.2 may add to it.
const RECORD_BYTES: usize = 18 * 1024;
/// Queued ciphertext that is no longer than this (session tickets, for example) goes in one write with the next message.
const JOIN_BYTES: usize = 4 * 1024;
/// Plaintext that one write encrypts for one system call: two of the longest messages of a leg, each with its header.
const WRITE_BYTES: usize = 2 * (64 * 1024 + 16);
/// A handshake message may span records; rustls itself bounds it at 64 KiB.
const INCOMPLETE_BYTES: usize = 72 * 1024;

thread_local! {
    /// What a read reads into and decrypts in place.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// What a write encrypts into. The socket takes nearly everything at once, so that the connection needs no buffer of its own.
    static WRITE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TLS connection, server side.
pub struct TlsStream<S> {
    io: S,
    session: Session,
    /// Ciphertext of a record that is not complete.
    incomplete: Vec<u8>,
    /// Our `close_notify` is queued or sent.
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Performs the handshake.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the peer broke TLS; it was sent an alert. Otherwise the socket's own.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn accept(config: Arc<ServerConfig>, io: S) -> io::Result<Self> {
        let session = Session::new(config)?;
        let mut stream = Self { io, session, incomplete: Vec::new(), closing: false };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// The socket.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Whether bytes of either direction are buffered here. False for an idle connection.
    pub fn holds_bytes(&self) -> bool {
        self.session.holds_bytes() || self.incomplete.capacity() > 0
    }

    /// Encrypted bytes that the socket has not taken yet.
    pub fn unsent_bytes(&self) -> usize {
        self.session.out.len()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.session.established && self.session.is_tls13() {
                // Session tickets stay queued: written now, they would wake the peer for nothing.
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write_records(cx))?;
            if self.session.established {
                return Poll::Ready(Ok(()));
            }
            if self.session.read_state != ReadState::Open {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Err(error) = ready!(self.poll_read_records(cx, &mut ReadBuf::new(&mut []))) {
                // The alert is sent if the socket takes it at once.
                drop(self.poll_write_records(cx));
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Reads once and passes everything that came to `to`. Returns the number of bytes, 0 at the peer's `close_notify`.
    ///
    /// # Errors
    /// As for [`AsyncRead`].
    pub fn poll_read_pieces(&mut self, cx: &mut Context<'_>, to: &mut dyn FnMut(&[u8])) -> Poll<io::Result<usize>> {
        let mut pieces = Pieces { to, count: 0 };
        ready!(self.poll_plaintext(cx, &mut pieces, |pieces| pieces.count > 0))?;
        Poll::Ready(Ok(pieces.count))
    }

    /// Reads until there is plaintext, or the end.
    fn poll_plaintext<K: Sink>(&mut self, cx: &mut Context<'_>, to: &mut K, has_some: impl Fn(&K) -> bool) -> Poll<io::Result<()>> {
        loop {
            if !self.session.plain.is_empty() {
                self.session.take_plain(to);
            }
            if has_some(to) {
                return Poll::Ready(Ok(()));
            }
            match self.session.read_state {
                // Answers of TLS itself, to a key update for example, go with the next write.
                ReadState::Open => {
                    if let Err(error) = ready!(self.poll_read_records(cx, to)) {
                        drop(self.poll_write_records(cx)); // the alert, as in the handshake
                        return Poll::Ready(Err(error));
                    }
                }
                ReadState::Closed => return Poll::Ready(Ok(())),
                ReadState::Truncated => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    /// Reads from the socket once and processes what came.
    fn poll_read_records(&mut self, cx: &mut Context<'_>, to: &mut impl Sink) -> Poll<io::Result<()>> {
        let mut scratch = READ_BUFFER.take();
        scratch.resize(READ_PIECES_BYTES, 0);
        let size = if to.takes_everything() { READ_PIECES_BYTES } else { READ_BYTES };
        let taken = self.poll_process(cx, &mut scratch[..size], to);
        READ_BUFFER.set(scratch);
        taken
    }

    fn poll_process(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], to: &mut impl Sink) -> Poll<io::Result<()>> {
        let mut read = ReadBuf::new(scratch);
        let ahead = self.incomplete.len();
        if ahead <= read.capacity() - RECORD_BYTES {
            read.put_slice(&self.incomplete);
        }
        let before = read.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        if read.filled().len() == before {
            self.session.read_state = ReadState::Truncated;
        } else if before == ahead {
            self.incomplete.clear();
            let cipher = read.filled_mut();
            let used = self.session.process(cipher, to)?;
            self.keep(&cipher[used..]);
        } else {
            // A handshake message that spans records.
            if ahead > INCOMPLETE_BYTES {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS message that is too large")));
            }
            let mut cipher = take(&mut self.incomplete);
            cipher.extend_from_slice(read.filled());
            let used = self.session.process(&mut cipher, to)?;
            self.keep(&cipher[used..]);
        }
        Poll::Ready(Ok(()))
    }

    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.incomplete = Vec::new();
        } else {
            self.incomplete.extend_from_slice(rest);
        }
    }

    /// Writes the queued ciphertext, and frees the queue once it is empty.
    fn poll_write_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while sent < self.session.out.len() {
            match Pin::new(&mut self.io).poll_write(cx, &self.session.out[sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.session.out.drain(..sent);
                    return Poll::Pending;
                }
            }
        }
        self.session.out = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Writes ciphertext and queues what the socket does not take.
    fn write_or_queue(&mut self, cx: &mut Context<'_>, cipher: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        while sent < cipher.len() {
            match Pin::new(&mut self.io).poll_write(cx, &cipher[sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.session.out.extend_from_slice(&cipher[sent..]);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    /// Ends at `close_notify`. A socket that ends without one is [`io::ErrorKind::UnexpectedEof`].
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        self.poll_plaintext(cx, to, |to| to.filled().len() > before || to.remaining() == 0)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    /// Bytes count as written once they are encrypted. What the socket does not take at once goes with the next write or flush.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        if self.session.out.len() > JOIN_BYTES {
            ready!(self.poll_write_records(cx))?;
        }
        let plain = &from[..from.len().min(WRITE_BYTES)];
        self.session.queue_pending()?;
        if self.session.out.is_empty() {
            WRITE_BUFFER.with_borrow_mut(|scratch| {
                let end = self.session.encrypt(plain, scratch)?;
                self.write_or_queue(cx, &scratch[..end])
            })?;
        } else {
            self.session.queue(plain)?;
            if let Poll::Ready(Err(error)) = self.poll_write_records(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(plain.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_records(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session.established && !self.closing {
            self.closing = true;
            self.session.close_notify()?;
        }
        ready!(self.poll_write_records(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { established, read_state, .. } = &self.session;
        f.debug_struct("TlsStream")
            .field("established", established)
            .field("read_state", read_state)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tls_stream_tests.rs"]
mod tests;
