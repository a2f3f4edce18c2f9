//! One accepted connection as bytes, whatever carries it. One exact type, so that hyper's upgraded connection can be turned back into it.
//!
//! Owns: bytes that were read ahead, and closing. The head of a 101 is held by `held_head`.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::time::timeout;

use crate::limits::LINGER_BYTES;
pub use crate::net::carrier::Carrier;
use crate::net::held_head::HeldHead;

/// The readiness of a connection whose peer has closed it (EPOLLRDHUP, EPOLLHUP), and of no other: urgent data, which this is made for, is not
/// asked for where the socket is registered. Readiness to read would return at once while bytes are left unread.
#[cfg(target_os = "linux")]
const PEER_CLOSED: Interest = Interest::PRIORITY;
/// Elsewhere only a reset is seen.
#[cfg(not(target_os = "linux"))]
const PEER_CLOSED: Interest = Interest::ERROR;

/// A connection that was accepted.
#[derive(Debug)]
pub struct Socket {
    carrier: Carrier,
    /// Bytes that were read and not taken yet.
    read_ahead: Bytes,
    held_head: HeldHead,
}

/// How much one read takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSize {
    /// At most what the buffer holds.
    Buffer,
    /// Everything that the connection has at once.
    Available,
}

impl Socket {
    /// A connection of which nothing was read yet.
    pub fn new(carrier: Carrier) -> Self {
        Self { carrier, read_ahead: Bytes::new(), held_head: HeldHead::default() }
    }

    /// Waits for the first byte, which stays to be read.
    ///
    /// # Errors
    /// The connection's own, or [`io::ErrorKind::UnexpectedEof`] if the peer closed without sending a byte.
    ///
    /// # Cancel safety
    /// Not cancel safe: a byte may be lost. Drop the connection then.
    pub async fn first_byte(&mut self) -> io::Result<()> {
        if self.read_ahead.is_empty() {
            self.read_ahead = Bytes::copy_from_slice(&[self.read_u8().await?]);
        }
        Ok(())
    }

    /// Puts bytes back that hyper read beyond the request.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.read_ahead = if self.read_ahead.is_empty() { bytes } else { [&bytes[..], &self.read_ahead[..]].concat().into() };
    }

    /// Bytes that were accepted for writing and that the socket has not taken yet.
    pub fn unsent_bytes(&self) -> usize {
        self.held_head.len() + self.carrier.unsent_bytes()
    }

    /// Shuts down our direction and waits for the peer to shut down its own, at most `within`: closed with bytes unread, TCP would send a
    /// reset, which discards what the peer has not read yet. A peer that has shut down already is not waited for.
    pub async fn close(mut self, within: Duration) {
        let closing = async {
            if self.carrier.is_at_end() {
                return Ok(0);
            }
            self.shutdown().await?;
            tokio::io::copy(&mut (&mut self).take(LINGER_BYTES), &mut tokio::io::sink()).await
        };
        // However this ends, the connection is dropped.
        drop(timeout(within, closing).await);
    }

    /// Reads once and passes what came to `sink`, in pieces. Returns the number of bytes, 0 at the peer's end of stream. Uses `input` as
    /// the buffer, except for TLS with [`ReadSize::Available`], which has its own.
    ///
    /// # Errors
    /// The connection's own.
    pub fn poll_read_pieces(
        &mut self,
        size: ReadSize,
        input: &mut [u8],
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        if let Carrier::Tls(tls) = &mut self.carrier
            && size == ReadSize::Available
            && self.read_ahead.is_empty()
            && self.held_head.is_empty()
        {
            return tls.poll_read_pieces(cx, sink);
        }
        let mut read = ReadBuf::new(input);
        ready!(Pin::new(self).poll_read(cx, &mut read))?;
        sink(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Waits until the peer has ended its direction or has reset the connection, without reading from it: also behind bytes that are left
    /// unread. Never returns for a pipe within the process.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn was_closed(&self) {
        match self.carrier.tcp() {
            // An error of the wait itself means the same.
            Some(tcp) => drop(tcp.ready(PEER_CLOSED).await),
            None => pending().await,
        }
    }

    /// Drops the connection with a TCP reset, so that the peer sees that it was cut.
    pub fn reset(self) {
        if let Some(tcp) = self.carrier.tcp()
            && let Err(error) = tcp.set_zero_linger()
        {
            tracing::debug!(%error, "connection is closed because it could not be reset");
        }
    }

    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held_head.poll_write(&mut self.carrier, cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let count = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead[..count]);
            self.read_ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        // The caller waits for the peer now, so no message will follow the head.
        if let Poll::Ready(Err(error)) = self.poll_write_held(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.carrier).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { carrier, held_head, .. } = &mut *self;
        if ready!(held_head.poll_take(carrier, buf, cx))? {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(carrier).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held_head.is_waiting() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        if !self.held_head.is_empty() || HeldHead::begins_with_head(first) {
            return self.poll_write(cx, first);
        }
        Pin::new(&mut self.carrier).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.carrier.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::limits::HELD_HEAD_JOIN_BYTES;

    const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    async fn receive(remote: &mut DuplexStream) -> Vec<u8> {
        let mut buffer = [0; 256];
        let count = remote.read(&mut buffer).await.unwrap();
        buffer[..count].to_vec()
    }

    async fn with_head() -> (Socket, DuplexStream) {
        let (local, remote) = duplex(1 << 10);
        let mut socket = Socket::new(Carrier::Memory(local));
        socket.write_all(HEAD).await.unwrap();
        socket.flush().await.unwrap();
        (socket, remote)
    }

    #[tokio::test]
    async fn the_first_message_is_sent_with_the_upgrade_response() {
        let (mut socket, mut remote) = with_head().await;
        assert_eq!(socket.unsent_bytes(), HEAD.len());
        socket.write_all(b"opened").await.unwrap();
        assert_eq!(receive(&mut remote).await, [HEAD, b"opened"].concat());
        socket.write_all(b"bytes").await.unwrap();
        assert_eq!((receive(&mut remote).await, socket.unsent_bytes()), (b"bytes".to_vec(), 0));
    }

    #[tokio::test]
    async fn the_upgrade_response_is_sent_alone_when_the_peer_sends_next() {
        let (mut socket, mut remote) = with_head().await;
        let (byte, head) = tokio::join!(socket.read_u8(), async {
            let head = receive(&mut remote).await;
            remote.write_all(b"?").await.unwrap();
            head
        });
        assert_eq!((byte.unwrap(), head), (b'?', HEAD.to_vec()));
    }

    #[tokio::test]
    async fn the_upgrade_response_is_sent_with_the_end_and_before_a_long_message() {
        let (mut socket, mut remote) = with_head().await;
        socket.shutdown().await.unwrap();
        assert_eq!(receive(&mut remote).await, HEAD);

        let (mut socket, mut remote) = with_head().await;
        let long = vec![b'x'; HELD_HEAD_JOIN_BYTES + 1];
        let (written, mut all) = tokio::join!(socket.write_all(&long), async {
            let mut all = vec![0; HEAD.len() + long.len()];
            remote.read_exact(&mut all).await.unwrap();
            all
        });
        written.unwrap();
        assert_eq!(all.split_off(HEAD.len()), long);
        assert_eq!(all, HEAD);
    }
}
