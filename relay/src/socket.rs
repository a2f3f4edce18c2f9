//! One connection as bytes, whatever carries it. One exact type, so that hyper's upgraded connection can be turned back into it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::tls_stream::TlsStream;

/// A connection that was accepted, and bytes of it that were read ahead.
#[derive(Debug)]
pub struct Socket {
    carrier: Carrier,
    ahead: Bytes,
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

impl Socket {
    /// A connection of which nothing was read yet.
    pub fn new(carrier: Carrier) -> Self {
        Self { carrier, ahead: Bytes::new() }
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
        carrier!(self, io => Pin::new(io).poll_read(cx, buf))
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
