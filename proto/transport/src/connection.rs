//! One connection to a relay as bytes: TLS on TCP, or a pipe within the process where a test wants its clock to stand still.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection to a relay.
#[derive(Debug)]
pub enum Connection {
    /// TLS on TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A pipe within the process.
    Memory(DuplexStream),
}

impl Connection {
    /// Drops the connection with a TCP reset.
    pub fn reset(self) {
        if let Self::Tls(tls) = &self
            && let Err(error) = tls.get_ref().0.set_zero_linger()
        {
            tracing::debug!(%error, "a connection could not be reset and is closed instead");
        }
    }
}

macro_rules! each {
    ($connection:expr, $io:ident => $call:expr) => {
        match $connection.get_mut() {
            Connection::Tls($io) => $call,
            Connection::Memory($io) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
