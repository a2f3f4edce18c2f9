//! One connection as bytes, whatever carries it. One exact type, so that hyper's upgraded connection can be turned back into it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::tls_stream::TlsStream;

/// A connection that was accepted, and bytes of it that were read ahead.
#[derive(Debug)]
pub struct Socket {
    carrier: Carrier,
    ahead: Bytes,
    /// Bytes since the last whole message, once messages are expected.
    unfinished: Option<usize>,
    /// How many there may be.
    most: usize,
}

/// A message that has more bytes of frames than these, and still no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message in more than {0} bytes of frames")]
pub struct Endless(usize);

/// Whose messages are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Of somebody who has not said yet who it is.
    Strangers,
    /// Of somebody who was admitted.
    Known,
}

/// What carries a connection.
#[derive(Debug)]
pub enum Carrier {
    /// TCP alone, behind a balancer that ends TLS.
    Plain(TcpStream),
    /// TLS on TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A pipe within the process, for worlds whose clock stands still.
    Memory(DuplexStream),
}

/// Bytes that a peer may still send after we closed, before we stop listening to it.
const LINGER_BYTES: usize = 1 << 20;
/// Bytes of frames that one message may take. The longest one takes 448 KiB where each frame carries a single byte; without this bound, one
/// whose frames carry nothing would never end, and never be too long.
const MESSAGE_FRAME_BYTES: usize = 1 << 20;
/// The same of a stranger: its one message of use is as long as 64 KiB at most, and nobody has to cut it small.
const STRANGERS_FRAME_BYTES: usize = 128 << 10;
/// Bytes of the header of a client's ping or pong.
const CONTROL_HEADER_BYTES: usize = 6;

impl Socket {
    /// A connection of which nothing was read yet.
    pub fn new(carrier: Carrier) -> Self {
        Self { carrier, ahead: Bytes::new(), unfinished: None, most: MESSAGE_FRAME_BYTES }
    }

    /// From here on come messages of a WebSocket, none of which may take frames for ever: see [`Endless`].
    pub fn expect_messages(&mut self, frames: Frames) {
        self.unfinished = Some(0);
        self.most = match frames {
            Frames::Strangers => STRANGERS_FRAME_BYTES,
            Frames::Known => MESSAGE_FRAME_BYTES,
        };
    }

    /// This message was read. Pings and pongs may stand between the frames of another, and finish nothing but themselves.
    pub fn finished(&mut self, message: &Message) {
        let Some(unfinished) = &mut self.unfinished else { return };
        *unfinished = match message {
            Message::Ping(payload) | Message::Pong(payload) => unfinished.saturating_sub(CONTROL_HEADER_BYTES + payload.len()),
            Message::Text(_) | Message::Binary(_) | Message::Close(_) | Message::Frame(_) => 0,
        };
    }

    /// Counts bytes that came; the error is given once.
    fn came(&mut self, bytes: usize) -> io::Result<()> {
        let Some(unfinished) = &mut self.unfinished else { return Ok(()) };
        *unfinished += bytes;
        if *unfinished <= self.most {
            return Ok(());
        }
        self.unfinished = None;
        Err(io::Error::other(Endless(self.most)))
    }

    /// Waits for the first byte, which stays to be read.
    ///
    /// # Errors
    /// The connection's own, or [`io::ErrorKind::UnexpectedEof`] if the peer closed it without a byte.
    ///
    /// # Cancel safety
    /// A byte may be lost; the connection is to be dropped then.
    pub async fn first_byte(&mut self) -> io::Result<()> {
        if self.ahead.is_empty() {
            self.ahead = Bytes::copy_from_slice(&[self.read_u8().await?]);
        }
        Ok(())
    }

    /// Puts bytes back that hyper had read beyond the request.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.ahead = if self.ahead.is_empty() { bytes } else { [&bytes[..], &self.ahead[..]].concat().into() };
    }

    /// Ends our direction and waits until the peer has ended its own, so that no reset eats what it has not read yet.
    pub async fn close(mut self, within: Duration) {
        let end = async {
            self.shutdown().await?;
            tokio::io::copy(&mut (&mut self).take(LINGER_BYTES as u64), &mut tokio::io::sink()).await
        };
        // Whatever goes wrong here, the connection is over.
        drop(timeout(within, end).await);
    }

    /// Drops the connection with a TCP reset: whoever reads from it sees that it was cut.
    pub fn reset(self) {
        let tcp = match &self.carrier {
            Carrier::Plain(tcp) => tcp,
            Carrier::Tls(tls) => tls.get_ref(),
            Carrier::Memory(_) => return,
        };
        if let Err(error) = tcp.set_zero_linger() {
            tracing::debug!(%error, "a connection could not be reset and is closed instead");
        }
    }
}

impl Endless {
    /// Itself, if that is what an error of the connection is.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|source| source.downcast_ref::<Self>()).copied()
    }
}

macro_rules! carrier {
    ($socket:expr, $io:ident => $call:expr) => {
        match &mut $socket.get_mut().carrier {
            Carrier::Plain($io) => $call,
            Carrier::Tls($io) => $call,
            Carrier::Memory($io) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let some = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..some]);
            self.ahead.advance(some);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(carrier!(self.as_mut(), io => Pin::new(io).poll_read(cx, buf)))?;
        Poll::Ready(self.came(buf.filled().len() - before))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        carrier!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carrier!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carrier!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        carrier!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(io) => io.is_write_vectored(),
            Carrier::Tls(io) => io.is_write_vectored(),
            Carrier::Memory(io) => io.is_write_vectored(),
        }
    }
}
