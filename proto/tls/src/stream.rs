//! One side of a TLS connection on a socket.
//!
//! rustls' buffered connections keep a read buffer of 4 KiB for life, which is more than everything else that an idle device costs. The
//! unbuffered API leaves the buffers to its caller: here they belong to the thread, or are freed when they are empty.
//!
//! For use by one task at a time: it cannot be split into a read and a write half that two tasks poll.
//!
//! Does not own: TLS without a socket ([`crate::session`]).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::session::{Pieces, ReadState, Session, Sink, invalid};
use crate::side::Side;

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

/// The client's side of a TLS connection.
pub type ClientStream<S> = TlsStream<S, UnbufferedClientConnection>;
/// The server's side of a TLS connection.
pub type ServerStream<S> = TlsStream<S, UnbufferedServerConnection>;

/// One side of a TLS connection.
pub struct TlsStream<S, T> {
    io: S,
    session: Session<T>,
    /// Our `close_notify` is queued or sent.
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerStream<S> {
    /// Performs the handshake. Session tickets stay queued, and go out with the first write or flush.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] with the [`rustls::Error`] if the peer broke TLS; it was sent an alert. Otherwise the socket's own.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn accept(config: Arc<ServerConfig>, io: S) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
        Self { io, session: Session::new(tls), closing: false }.handshake().await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientStream<S> {
    /// Performs the handshake with the server of this name. The end of it stays queued, and goes out with the first write or flush: a segment
    /// that carries it and the request wakes the server once.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] with the [`rustls::Error`] if the server broke TLS or is not trusted; it was sent an alert. Otherwise the
    /// socket's own.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn connect(config: Arc<ClientConfig>, server: ServerName<'static>, io: S) -> io::Result<Self> {
        let mut session = Session::new(UnbufferedClientConnection::new(config, server).map_err(invalid)?);
        session.queue_pending()?;
        Self { io, session, closing: false }.handshake().await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, T: Side> TlsStream<S, T> {
    async fn handshake(mut self) -> io::Result<Self> {
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self)
    }

    /// The socket.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// The socket. Bytes that are read from it or written to it are missing in the TLS connection.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Whether bytes of either direction are buffered here. False for an idle connection.
    pub fn holds_bytes(&self) -> bool {
        self.session.holds_bytes()
    }

    /// Encrypted bytes that the socket has not taken yet.
    pub fn unsent_bytes(&self) -> usize {
        self.session.out.len()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.session.established && !self.session.is_awaited_by_peer() {
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
                ReadState::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
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
        let ahead = self.session.incomplete.len();
        if ahead <= read.capacity() - RECORD_BYTES {
            read.put_slice(&self.session.incomplete);
        }
        let before = read.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        if read.filled().len() == before {
            self.session.read_state = ReadState::Truncated;
        } else if before == ahead {
            self.session.incomplete.clear();
            let cipher = read.filled_mut();
            let used = self.session.process(cipher, to)?;
            self.session.keep(&cipher[used..]);
        } else {
            // A handshake message that spans records.
            if ahead > INCOMPLETE_BYTES {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS message that is too large")));
            }
            let mut cipher = take(&mut self.session.incomplete);
            cipher.extend_from_slice(read.filled());
            let used = self.session.process(&mut cipher, to)?;
            self.session.keep(&cipher[used..]);
        }
        Poll::Ready(Ok(()))
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

impl<S: AsyncRead + AsyncWrite + Unpin, T: Side> AsyncRead for TlsStream<S, T> {
    /// Ends at `close_notify`. A socket that ends without one is [`io::ErrorKind::UnexpectedEof`].
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        self.poll_plaintext(cx, to, |to| to.filled().len() > before || to.remaining() == 0)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, T: Side> AsyncWrite for TlsStream<S, T> {
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
        if self.session.established && self.session.read_state != ReadState::Broken && !self.closing {
            self.closing = true;
            self.session.close_notify()?;
        }
        ready!(self.poll_write_records(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S, T> fmt::Debug for TlsStream<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { established, read_state, .. } = &self.session;
        f.debug_struct("TlsStream")
            .field("established", established)
            .field("read_state", read_state)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}
