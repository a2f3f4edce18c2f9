//! One TLS connection of the relay, that owns no buffer while nothing is in flight.
//!
//! `rustls::ServerConnection` keeps a read buffer of 4 KiB for life, which is more than all else that an idle device costs. The unbuffered API
//! leaves the buffers to its caller: here they are on the stack for a read, and in vectors that are given up when they are empty.
//!
//! For one task at a time: it is not made to be split between two.
//!
//! Does not own: certificates and what is offered ([`crate::listen::tls`]), deadlines.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::mem::{MaybeUninit, take};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one read takes from the socket: two full records and a little more.
const READ: usize = 34 * 1024;
/// A full record, with what TLS 1.2 may add to it.
const RECORD: usize = 18 * 1024;
/// Ciphertext that is queued and is no longer than this goes in one write with what is said next: session tickets, for one.
const TOGETHER: usize = 4 * 1024;
/// What one write encrypts for one system call: two of a leg's longest messages, each with its header.
const WRITE: usize = 2 * (64 * 1024 + 16);
/// The plaintext of a full record.
const RECORD_PLAIN: usize = 16 * 1024;
/// Header, content type and tag of a record, with room to spare. An alert fits in it too.
const RECORD_OVERHEAD: usize = 64;
/// A handshake message may span records; rustls itself bounds it at 64 KiB.
const INCOMPLETE: usize = 72 * 1024;

thread_local! {
    /// Where a write encrypts to. What the socket takes at once, which is nearly everything, needs no buffer of its connection's own.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the peer has said about its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    /// It said `close_notify`.
    Closed,
    /// The socket ended without one.
    Truncated,
}

/// The part that knows no socket: ciphertext in; plaintext, and ciphertext to be sent, out.
struct Session {
    tls: UnbufferedServerConnection,
    /// Decrypted, and not taken by the reader yet.
    plain: BytesMut,
    /// Encrypted, and not taken by the socket yet.
    out: Vec<u8>,
    established: bool,
    input: Input,
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Session {
    /// Takes ciphertext in, and says how many bytes of its front are done with. Plaintext goes to `to` as far as it fits there.
    fn process(&mut self, cipher: &mut [u8], to: &mut ReadBuf<'_>) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut cipher[used..]);
            let mut waits = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while let Some(record) = records.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        let direct = if self.plain.is_empty() { record.payload.len().min(to.remaining()) } else { 0 };
                        to.put_slice(&record.payload[..direct]);
                        self.plain.extend_from_slice(&record.payload[direct..]);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut self.out)?,
                Ok(ConnectionState::TransmitTlsData(queued)) => queued.done(),
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.established = true;
                    waits = true;
                }
                Ok(ConnectionState::PeerClosed) => self.input = Input::Closed,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => waits = true,
                Ok(other) => return Err(io::Error::other(format!("TLS came to a state that is not expected: {other:?}"))),
                Err(error) => {
                    self.queue_alert();
                    return Err(invalid(error));
                }
            }
            used += discard;
            if waits {
                return Ok(used);
            }
        }
    }

    /// After an error rustls has an alert ready that tells the peer, behind what it had to say before that.
    fn queue_alert(&mut self) {
        loop {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(message)) => drop(encode(message, &mut self.out)),
                Ok(ConnectionState::TransmitTlsData(queued)) => queued.done(),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Encrypts to where [`Session::out`] has bytes already that go first.
    fn queue(&mut self, plain: &[u8]) -> io::Result<()> {
        self.when_writable(|traffic, out| {
            let at = out.len();
            let end = seal(traffic, plain, out, at)?;
            out.truncate(end);
            Ok(())
        })
    }

    /// Encrypts to the front of `scratch`, and says how much it became.
    fn encrypt(&mut self, plain: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        self.when_writable(|traffic, _| seal(traffic, plain, scratch, 0))
    }

    fn close_notify(&mut self) -> io::Result<()> {
        self.settle()?;
        self.when_writable(|traffic, out| {
            let mut alert = [0; RECORD_OVERHEAD];
            let count = traffic.queue_close_notify(&mut alert).map_err(invalid)?;
            out.extend_from_slice(&alert[..count]);
            Ok(())
        })
    }

    /// What earlier reads made rustls say, such as the answer to a key update, is queued and goes first.
    fn settle(&mut self) -> io::Result<()> {
        self.process(&mut [], &mut ReadBuf::new(&mut [])).map(drop)
    }

    fn when_writable<T>(
        &mut self,
        act: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>, &mut Vec<u8>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.tls.process_tls_records(&mut []).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => act(&mut traffic, &mut self.out),
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(invalid(error)),
        }
    }
}

fn encode(mut message: EncodeTlsData<'_, ServerConnectionData>, into: &mut Vec<u8>) -> io::Result<()> {
    let at = into.len();
    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
        into.resize(at + size.required_size, 0);
        message.encode(&mut into[at..]).map_err(invalid)?;
    }
    Ok(())
}

/// Encrypts `plain` to `into[at..]`, which is made longer where it is too short. Where it ends.
fn seal(traffic: &mut WriteTraffic<'_, ServerConnectionData>, plain: &[u8], into: &mut Vec<u8>, at: usize) -> io::Result<usize> {
    let records = plain.len() / RECORD_PLAIN + 1;
    let enough = at + plain.len() + records * RECORD_OVERHEAD;
    if into.len() < enough {
        into.resize(enough, 0);
    }
    let mut done = traffic.encrypt(plain, &mut into[at..]);
    if let Err(EncryptError::InsufficientSize(size)) = &done {
        into.resize(at + size.required_size, 0);
        done = traffic.encrypt(plain, &mut into[at..]);
    }
    done.map(|count| at + count).map_err(invalid)
}

/// A TLS connection, on the server's side.
pub struct TlsStream<S> {
    io: S,
    session: Session,
    /// Ciphertext of a record that is not complete.
    incomplete: Vec<u8>,
    /// Our `close_notify` is queued or sent.
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Does the handshake.
    ///
    /// # Errors
    /// The peer's, of kind [`io::ErrorKind::InvalidData`]: it was told by an alert. Or the socket's.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn accept(config: Arc<ServerConfig>, io: S) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let session = Session { tls, plain: BytesMut::new(), out: Vec::new(), established: false, input: Input::Open };
        let mut stream = Self { io, session, incomplete: Vec::new(), closing: false };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// What carries it.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Whether bytes are buffered here, which they are not in a connection that is idle.
    pub fn holds_bytes(&self) -> bool {
        let vectors = [self.session.plain.capacity(), self.session.out.capacity(), self.incomplete.capacity()];
        vectors != [0; 3]
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.session.established && self.session.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                // Session tickets go with what is said next: written now, they would wake the peer for nothing.
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_out(cx))?;
            if self.session.established {
                return Poll::Ready(Ok(()));
            }
            if self.session.input != Input::Open {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Err(error) = ready!(self.poll_in(cx, &mut ReadBuf::new(&mut []))) {
                // The alert is said if the socket takes it at once.
                drop(self.poll_out(cx));
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Reads from the socket once, and takes in what came.
    fn poll_in(&mut self, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [const { MaybeUninit::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut scratch);
        let ahead = self.incomplete.len();
        if ahead <= READ - RECORD {
            read.put_slice(&self.incomplete);
        }
        let before = read.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        if read.filled().len() == before {
            self.session.input = Input::Truncated;
        } else if before == ahead {
            self.incomplete.clear();
            let cipher = read.filled_mut();
            let used = self.session.process(cipher, to)?;
            self.keep(&cipher[used..]);
        } else {
            // A handshake message that spans records.
            if ahead > INCOMPLETE {
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

    /// Writes what is queued, and gives up the queue when it is empty.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// Writes ciphertext, and queues what the socket does not take.
    fn write_or_keep(&mut self, cx: &mut Context<'_>, cipher: &[u8]) -> io::Result<()> {
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

    /// Hands over plaintext that did not fit before.
    fn take_plain(&mut self, to: &mut ReadBuf<'_>) {
        let plain = &mut self.session.plain;
        let some = to.remaining().min(plain.len());
        to.put_slice(&plain[..some]);
        plain.advance(some);
        if plain.is_empty() {
            *plain = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    /// The end is `close_notify`; a socket that ends without one is [`io::ErrorKind::UnexpectedEof`].
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        loop {
            if !self.session.plain.is_empty() {
                self.take_plain(to);
            }
            if to.filled().len() > before || to.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match self.session.input {
                // TLS' own answers, to a key update for one, go with what is said next.
                Input::Open => {
                    if let Err(error) = ready!(self.poll_in(cx, to)) {
                        drop(self.poll_out(cx)); // the alert, as in the handshake
                        return Poll::Ready(Err(error));
                    }
                }
                Input::Closed => return Poll::Ready(Ok(())),
                Input::Truncated => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    /// Bytes count as written once they are encrypted: what the socket does not take at once goes with the next write or flush.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        if self.session.out.len() > TOGETHER {
            ready!(self.poll_out(cx))?;
        }
        let plain = &from[..from.len().min(WRITE)];
        self.session.settle()?;
        if self.session.out.is_empty() {
            SCRATCH.with_borrow_mut(|scratch| {
                let end = self.session.encrypt(plain, scratch)?;
                self.write_or_keep(cx, &scratch[..end])
            })?;
        } else {
            self.session.queue(plain)?;
            if let Poll::Ready(Err(error)) = self.poll_out(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(plain.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session.established && !self.closing {
            self.closing = true;
            self.session.close_notify()?;
        }
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { established, input, .. } = &self.session;
        f.debug_struct("TlsStream")
            .field("established", established)
            .field("input", input)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tls_stream_tests.rs"]
mod tests;
