//! One connection to the relay as a byte stream, over TLS or anything else, and when it was last read.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;

use crate::buffered_tcp::BufferedTcp;

/// A control channel's WebSocket.
pub type WebSocket = WebSocketStream<Connection>;

/// A connection to the relay.
#[derive(Debug)]
pub struct Connection {
    carrier: Carrier,
    last_read: Instant,
}

enum Carrier {
    Tls(Box<TlsStream<BufferedTcp>>),
    Custom(Box<dyn Duplex>),
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for S {}

impl Connection {
    /// A TLS connection. The end of its handshake goes out with the first write, or with a flush.
    pub(crate) fn tls(mut stream: TlsStream<BufferedTcp>) -> Self {
        stream.get_mut().0.release_writes();
        Self { carrier: Carrier::Tls(Box::new(stream)), last_read: Instant::now() }
    }

    /// A connection over any other byte stream, such as an in-process pipe. It adds no protection.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self { carrier: Carrier::Custom(Box::new(stream)), last_read: Instant::now() }
    }

    /// When the last byte was received.
    pub fn last_read(&self) -> Instant {
        self.last_read
    }

    /// Makes the remaining writes share a segment with the FIN, which must follow at once.
    pub(crate) fn coalesce_with_fin(&mut self) {
        if let Carrier::Tls(tls) = &mut self.carrier {
            tls.get_mut().0.hold_writes();
        }
    }

    /// Makes the drop of this connection a TCP reset, if it is a TCP connection.
    pub fn reset_on_drop(&self) {
        let Carrier::Tls(tls) = &self.carrier else { return };
        if let Err(error) = tls.get_ref().0.tcp().set_zero_linger() {
            tracing::debug!(%error, "cannot reset a connection, closing it instead");
        }
    }
}

macro_rules! carrier {
    ($connection:expr, $io:ident => $call:expr) => {
        match &mut $connection.carrier {
            Carrier::Tls($io) => $call,
            Carrier::Custom($io) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(carrier!(self, io => Pin::new(io).poll_read(cx, buf)))?;
        if buf.filled().len() > before {
            self.last_read = Instant::now();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        carrier!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carrier!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carrier!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        carrier!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Tls(io) => io.is_write_vectored(),
            Carrier::Custom(io) => io.is_write_vectored(),
        }
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(tls) => write!(f, "Tls({:?})", tls.get_ref().0),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}
