//! The local end of a bridge: what it needs beyond reading and writing.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, Join};
use tokio::net::{TcpStream, UnixStream};

use crate::unacknowledged::unacknowledged;

/// Completes with the error of a connection.
pub type Failure = Pin<Box<dyn Future<Output = io::Error> + Send>>;

/// The local end of a bridge.
pub trait LocalSide: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the next drop a reset, if this kind of connection has one, so that the reader sees that the stream was cut.
    fn reset_on_drop(&self) {}

    /// Makes the next drop an ordinary close again.
    fn end_on_drop(&self) {}

    /// Bytes that were written and that have not reached the local program's kernel yet. Zero where a write is all that can be known.
    ///
    /// # Errors
    /// The connection failed.
    fn unacknowledged(&self) -> io::Result<usize> {
        Ok(0)
    }

    /// Watches for a failure of the connection that no read and no write would show, as a reset behind the program's end while nothing is to be
    /// written. `None` where there is no such thing. Drop it before the connection: it holds a descriptor of it.
    fn failure(&self) -> Option<Failure> {
        None
    }

    /// Whether what the local program sent can still be read after it stopped reading, as from a socket.
    fn is_socket(&self) -> bool {
        false
    }
}

impl LocalSide for TcpStream {
    fn reset_on_drop(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "cannot reset a local connection, closing it instead");
        }
    }

    fn end_on_drop(&self) {
        if let Err(error) = socket2::SockRef::from(self).set_linger(None) {
            tracing::debug!(%error, "cannot close a local connection, resetting it instead");
        }
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        unacknowledged(self)
    }

    /// It has a registration of its own, because the stream's stays ready for reading behind the end.
    fn failure(&self) -> Option<Failure> {
        let watched = Self::from_std(self.as_fd().try_clone_to_owned().ok()?.into()).ok()?;
        Some(Box::pin(async move {
            let failed = watched.ready(Interest::ERROR).await.and_then(|_| watched.take_error());
            failed.map_or_else(|error| error, |error| error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
        }))
    }

    fn is_socket(&self) -> bool {
        true
    }
}

/// Unix sockets have no reset: they are closed.
impl LocalSide for UnixStream {
    /// What was written is in the program's receive buffer. If it closed without reading that, this is an error.
    fn unacknowledged(&self) -> io::Result<usize> {
        self.take_error()?.map_or(Ok(0), Err)
    }

    fn is_socket(&self) -> bool {
        true
    }
}

impl LocalSide for DuplexStream {}
impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> LocalSide for Join<R, W> {}

macro_rules! forward_local_side {
    ($($pointer:ty),+) => {$(
        impl<L: LocalSide + ?Sized> LocalSide for $pointer {
            fn reset_on_drop(&self) {
                (**self).reset_on_drop();
            }

            fn end_on_drop(&self) {
                (**self).end_on_drop();
            }

            fn unacknowledged(&self) -> io::Result<usize> {
                (**self).unacknowledged()
            }

            fn failure(&self) -> Option<Failure> {
                (**self).failure()
            }

            fn is_socket(&self) -> bool {
                (**self).is_socket()
            }
        }
    )+};
}

// A side that is lent to a bridge is not dropped by it.
forward_local_side!(&mut L, Box<L>);

/// Any byte stream as a local side, without resets.
#[derive(Debug)]
pub struct Plain<S>(
    /// The stream.
    pub S,
);

impl<S: AsyncRead + AsyncWrite + Unpin + Send> LocalSide for Plain<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut tokio::io::ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
