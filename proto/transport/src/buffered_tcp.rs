//! A TCP connection under TLS that saves system calls.
//!
//! TLS writes the end of its handshake and its close_notify separately from the data next to them. This type can hold writes back until
//! more follows, so that one segment carries both and the relay wakes once. On the read side rustls reads 4 KiB at a time; during bulk
//! transfers this type reads ahead.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The most bytes that are held back; longer writes go out at once.
const MAX_PENDING: usize = 4 * 1024;
/// The size of one read during a bulk transfer.
const READ_AHEAD: usize = 64 * 1024;
/// A read of at least this many bytes keeps the bulk mode on.
const READ_AHEAD_THRESHOLD: usize = 8 * 1024;

/// A TCP connection with a small write buffer and an optional read-ahead buffer.
#[derive(Debug)]
pub(crate) struct BufferedTcp {
    tcp: TcpStream,
    pending: Vec<u8>,
    holds_writes: bool,
    /// Bytes read ahead. Has no allocation outside bulk transfers.
    read_ahead: BytesMut,
    /// The last read filled its buffer.
    is_bulk: bool,
}

impl BufferedTcp {
    /// A connection that holds writes until something is read: a peer that waits for an answer has sent all of its question.
    pub(crate) fn holding(tcp: TcpStream) -> Self {
        Self { tcp, pending: Vec::new(), holds_writes: true, read_ahead: BytesMut::new(), is_bulk: false }
    }

    /// Holds writes again, so that the last bytes and the FIN share a segment.
    pub(crate) fn hold_writes(&mut self) {
        self.holds_writes = true;
    }

    /// Stops holding writes. What is pending goes out with the next write or flush, not before.
    pub(crate) fn release_writes(&mut self) {
        self.holds_writes = false;
    }

    /// The underlying connection.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.pending))?;
            self.pending.drain(..written);
        }
        self.pending = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Sends what is pending with `MSG_MORE`, so that the FIN that follows at once shares its segment. What is not taken this way is written as
    /// usual.
    #[cfg(target_os = "linux")]
    fn send_with_end(&mut self) {
        use rustix::net::{SendFlags, send};
        let (tcp, pending) = (&self.tcp, &self.pending);
        let send_more = || send(tcp, pending, SendFlags::MORE | SendFlags::NOSIGNAL).map_err(io::Error::from);
        if !pending.is_empty()
            && let Ok(sent) = tcp.try_io(Interest::WRITABLE, send_more)
        {
            self.pending.drain(..sent);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn send_with_end(&mut self) {}

    /// Appends to the pending bytes and writes them unless writes are held. `None` if it would not fit.
    fn buffer(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.pending.len() + bytes > MAX_PENDING {
            return None;
        }
        bufs.iter().for_each(|buf| self.pending.extend_from_slice(buf));
        if !self.holds_writes
            && let Poll::Ready(Err(error)) = self.poll_pending(cx)
        {
            return Some(Err(error));
        }
        Some(Ok(bytes))
    }

    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, read_ahead, is_bulk, .. } = self;
        read_ahead.reserve(READ_AHEAD);
        let read = pin!(tcp.read_buf(read_ahead)).poll(cx);
        *is_bulk = matches!(read, Poll::Ready(Ok(READ_AHEAD_THRESHOLD..)));
        if read_ahead.is_empty() {
            *read_ahead = BytesMut::new(); // an idle connection has no buffer
        }
        read.map_ok(drop)
    }

    fn is_passthrough(&self) -> bool {
        !self.holds_writes && self.pending.is_empty()
    }
}

impl AsyncRead for BufferedTcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.holds_writes
            && let Poll::Ready(Err(error)) = self.poll_pending(cx)
        {
            return Poll::Ready(Err(error));
        }
        if self.read_ahead.is_empty() {
            if !self.is_bulk {
                let (before, room) = (buf.filled().len(), buf.remaining());
                ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
                self.is_bulk = buf.filled().len() - before == room;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read_ahead(cx))?;
        }
        let some = self.read_ahead.len().min(buf.remaining());
        buf.put_slice(&self.read_ahead[..some]);
        self.read_ahead.advance(some);
        if self.read_ahead.is_empty() && !self.is_bulk {
            self.read_ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BufferedTcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.is_passthrough() {
            if let Some(buffered) = self.buffer(cx, &[IoSlice::new(buf)]) {
                return Poll::Ready(buffered);
            }
            ready!(self.poll_pending(cx))?;
        }
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if !self.is_passthrough() {
            if let Some(buffered) = self.buffer(cx, bufs) {
                return Poll::Ready(buffered);
            }
            ready!(self.poll_pending(cx))?;
        }
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_writes {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send_with_end();
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (BufferedTcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (BufferedTcp::holding(local), listener.accept().await.unwrap().0)
    }

    async fn receive(remote: &mut TcpStream) -> String {
        let mut buffer = [0; 64];
        let count = remote.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn pending_writes_are_sent_when_the_answer_is_read() {
        let (mut local, mut remote) = pair().await;
        local.write_all(b"hel").await.unwrap();
        local.write_all(b"lo?").await.unwrap();
        local.flush().await.unwrap();
        let (mut answer, request) = tokio::join!(local.read_u8(), async {
            let request = receive(&mut remote).await;
            remote.write_all(b"!").await.unwrap();
            request
        });
        assert_eq!((request.as_str(), answer.as_mut().unwrap()), ("hello?", &mut b'!'));
    }

    #[tokio::test]
    async fn held_writes_are_sent_with_the_next_write_or_with_a_flush() {
        let (mut local, mut remote) = pair().await;
        local.write_all(b"finished, ").await.unwrap();
        local.release_writes();
        local.write_all(b"GET").await.unwrap();
        assert_eq!(receive(&mut remote).await, "finished, GET");

        let (mut local, mut remote) = pair().await;
        local.write_all(b"finished").await.unwrap();
        local.release_writes();
        local.flush().await.unwrap();
        assert_eq!(receive(&mut remote).await, "finished");
        local.write_all(b"GET").await.unwrap();
        assert_eq!(receive(&mut remote).await, "GET");
    }

    #[tokio::test]
    async fn the_last_write_is_sent_with_the_end_and_a_long_one_is_not_held() {
        let (mut local, mut remote) = pair().await;
        local.write_all(&[b'x'; MAX_PENDING + 1]).await.unwrap();
        remote.read_exact(&mut [0; MAX_PENDING + 1]).await.unwrap();
        local.write_all(b"bye").await.unwrap();
        local.shutdown().await.unwrap();
        assert_eq!(receive(&mut remote).await, "bye");
        assert_eq!(receive(&mut remote).await, "");
    }

    #[tokio::test]
    async fn bulk_data_is_read_ahead_in_order_and_the_buffer_is_freed() {
        let (mut local, mut remote) = pair().await;
        let sent: Vec<u8> = (0..1_000_003_u32).map(|at| (at / 7).to_le_bytes()[0]).collect();
        let mut read = Vec::new();
        let (written, ()) = tokio::join!(
            async {
                remote.write_all(&sent).await?;
                remote.write_all(b"z").await
            },
            async {
                let mut chunk = [0; 4096];
                while read.len() < sent.len() + 1 {
                    let count = local.read(&mut chunk).await.unwrap();
                    read.extend_from_slice(&chunk[..count]);
                }
            }
        );
        written.unwrap();
        assert!(read[..sent.len()] == sent && read[sent.len()] == b'z');
        remote.write_all(b"end").await.unwrap();
        drop(remote);
        let mut rest = String::new();
        local.read_to_string(&mut rest).await.unwrap();
        assert_eq!((rest.as_str(), local.read_ahead.capacity()), ("end", 0));
    }
}
