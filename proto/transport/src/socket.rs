//! The TCP socket under TLS, whose last bytes share a segment with the FIN.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct Socket {
    tcp: TcpStream,
    /// Nothing follows but what is written at once, and the FIN.
    ends: bool,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self { tcp, ends: false }
    }

    /// Leaves the remaining writes to the kernel until the FIN, which must follow at once: a Close, the `close_notify` and the FIN wake the
    /// relay once. On systems other than Linux they are written as usual.
    pub(crate) fn coalesce_with_fin(&mut self) {
        self.ends = true;
    }

    /// The underlying connection.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    #[cfg(target_os = "linux")]
    fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        use std::task::ready;

        use rustix::net::{SendFlags, send};
        use tokio::io::Interest;

        let send_more = || send(&self.tcp, bytes, SendFlags::MORE | SendFlags::NOSIGNAL).map_err(io::Error::from);
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tcp.try_io(Interest::WRITABLE, send_more) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ends { self.poll_write_last(cx, buf) } else { Pin::new(&mut self.tcp).poll_write(cx, buf) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Read;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_last_writes_are_sent_with_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut local = Socket::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        local.tcp().set_nodelay(true).unwrap();
        let mut remote = listener.accept().await.unwrap().0.into_std().unwrap();
        let mut received = [0; 16];
        local.write_all(b"bytes").await.unwrap();
        assert_eq!(remote.read(&mut received).unwrap(), 5, "loopback delivers at once");
        local.coalesce_with_fin();
        for last in [b"Close", b"alert"] {
            local.write_all(last).await.unwrap();
            local.flush().await.unwrap();
            assert_eq!(remote.read(&mut received).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        local.shutdown().await.unwrap();
        assert_eq!(remote.read(&mut received).unwrap(), 10);
        assert_eq!(remote.read(&mut received).unwrap(), 0);
    }
}
