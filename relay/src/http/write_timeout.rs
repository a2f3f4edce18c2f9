//! A deadline for writes that make no progress. hyper has none: a client that sends requests and never reads the answers would be kept,
//! with its answers, for ever.
//!
//! An upgrade takes the connection out of here, so the deadline holds for HTTP alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::connection::Socket;

/// A connection whose writes fail with [`io::ErrorKind::TimedOut`] once the peer has taken nothing for a time.
#[derive(Debug)]
pub(crate) struct WriteTimeout {
    socket: Socket,
    timeout: Duration,
    /// There while a write, a flush or a shutdown waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What the socket had buffered when it was last looked at. Less of it is progress.
    unsent: usize,
}

impl WriteTimeout {
    /// Watches over a connection.
    pub(crate) fn new(socket: Socket, timeout: Duration) -> Self {
        Self { socket, timeout, stalled: None, unsent: 0 }
    }

    /// The connection, without a deadline.
    pub(crate) fn into_inner(self) -> Socket {
        self.socket
    }

    fn watch<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let before = std::mem::replace(&mut self.unsent, self.socket.unsent_bytes());
        let deadline = Instant::now() + self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if self.unsent < before {
            stalled.as_mut().reset(deadline);
        }
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read the answer")))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.watch(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.watch(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.watch(shut_down, cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::net::connection::Carrier;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn pair() -> (WriteTimeout, DuplexStream) {
        let (local, remote) = duplex(64);
        (WriteTimeout::new(Socket::new(Carrier::Memory(local)), TIMEOUT), remote)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_reads_fails_in_time() {
        let (mut local, _remote) = pair();
        let start = Instant::now();
        assert_eq!(local.write_all(&[0; 1_000]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_that_makes_progress_does_not_time_out() {
        let (mut local, mut remote) = pair();
        let start = Instant::now();
        let reading = async {
            for _ in 0..100 {
                tokio::time::sleep(TIMEOUT - Duration::from_millis(1)).await;
                remote.read_exact(&mut [0; 10]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(local.write_all(&[0; 1_000]), reading);
        written.unwrap();
        assert!(start.elapsed() > 90 * TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_writes_nothing_has_no_deadline() {
        let (mut local, mut remote) = pair();
        local.write_all(&[0; 10]).await.unwrap();
        let answer = async {
            tokio::time::sleep(100 * TIMEOUT).await;
            remote.write_all(b"?").await.unwrap();
        };
        assert_eq!(tokio::join!(local.read_u8(), answer).0.unwrap(), b'?');
        local.write_all(&[0; 10]).await.unwrap();
    }
}
