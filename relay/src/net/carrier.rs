//! What carries a connection: TCP, TLS on TCP, or a pipe within the process. One enum, so that a connection is one exact type.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use moorline_tls::ServerStream;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::TcpStream;

/// What carries a connection.
#[derive(Debug)]
pub enum Carrier {
    /// TCP, behind a load balancer that terminates TLS.
    Plain(TcpStream),
    /// TLS on TCP.
    Tls(Box<ServerStream<TcpStream>>),
    /// A pipe within the process, for tests with a paused clock.
    Memory(DuplexStream),
}

macro_rules! each {
    ($carrier:expr, $io:ident => $call:expr) => {
        match $carrier {
            Carrier::Plain($io) => $call,
            Carrier::Tls($io) => $call,
            Carrier::Memory($io) => $call,
        }
    };
}

impl Carrier {
    /// The TCP socket, if there is one.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref()),
            Self::Memory(_) => None,
        }
    }

    /// Whether the next read would return the peer's end of stream, without waiting. Reads nothing.
    pub(super) fn is_at_end(&self) -> bool {
        let holds_bytes = matches!(self, Self::Tls(tls) if tls.holds_bytes());
        let peek = |tcp: &TcpStream| tcp.try_io(Interest::READABLE, || SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]));
        !holds_bytes && self.tcp().is_some_and(|tcp| matches!(peek(tcp), Ok(0)))
    }

    /// Bytes that were accepted for writing and that the socket has not taken yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        match self {
            Self::Tls(tls) => tls.unsent_bytes(),
            Self::Plain(_) | Self::Memory(_) => 0,
        }
    }
}

impl AsyncRead for Carrier {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut *self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(&mut *self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }
}
