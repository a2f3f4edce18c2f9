//! One connection to the relay as a byte stream, over TLS or anything else, and when it was last read.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use moorline_tls::ClientStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;

use crate::socket::Socket;

/// Bytes that one read takes from a connection other than TLS.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// What such a read reads into. TLS has its own.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A control channel's WebSocket.
pub type WebSocket = WebSocketStream<Connection>;

/// A connection to the relay.
#[derive(Debug)]
pub struct Connection {
    carrier: Carrier,
    last_read: Instant,
}

enum Carrier {
    Tls(Box<ClientStream<Socket>>),
    Custom(Box<dyn Duplex>),
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for S {}

impl Connection {
    /// A TLS connection. The end of its handshake goes out with the first write, or with a flush.
    pub(crate) fn tls(stream: ClientStream<Socket>) -> Self {
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

    /// Reads everything that the connection has at once and passes it to `sink`, in pieces. Returns the number of bytes, 0 at the relay's end.
    ///
    /// # Errors
    /// The connection's own.
    pub(crate) fn poll_read_pieces(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<io::Result<usize>> {
        let count = match &mut self.carrier {
            Carrier::Tls(tls) => ready!(tls.poll_read_pieces(cx, sink))?,
            Carrier::Custom(io) => {
                let mut buffer = READ_BUFFER.take();
                buffer.resize(READ_BYTES, 0);
                let mut read = ReadBuf::new(&mut buffer);
                let polled = Pin::new(io).poll_read(cx, &mut read);
                let count = read.filled().len();
                if count > 0 {
                    sink(read.filled());
                }
                READ_BUFFER.set(buffer);
                ready!(polled)?;
                count
            }
        };
        if count > 0 {
            self.last_read = Instant::now();
        }
        Poll::Ready(Ok(count))
    }

    /// Whether it owns a buffer, as TLS does while bytes are in flight.
    #[cfg(test)]
    pub(crate) fn owns_memory(&self) -> bool {
        matches!(&self.carrier, Carrier::Tls(tls) if tls.holds_bytes())
    }

    /// Makes the remaining writes share a segment with the FIN, which must follow at once.
    pub(crate) fn coalesce_with_fin(&mut self) {
        if let Carrier::Tls(tls) = &mut self.carrier {
            tls.get_mut().coalesce_with_fin();
        }
    }

    /// Makes the drop of this connection a TCP reset, if it is a TCP connection.
    pub fn reset_on_drop(&self) {
        let Carrier::Tls(tls) = &self.carrier else { return };
        if let Err(error) = tls.get_ref().tcp().set_zero_linger() {
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
            Self::Tls(tls) => write!(f, "Tls({:?})", tls.get_ref()),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}
