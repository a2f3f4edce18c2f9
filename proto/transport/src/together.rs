//! A TCP connection that can be told to keep what is written until more follows, so that one segment carries both and wakes the relay once.
//!
//! TLS writes the end of its handshake, and its goodbye, apart from the bytes that come right behind or before them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that are kept at most; what is longer goes at once.
const KEPT: usize = 4 * 1024;

/// A TCP connection, and what it keeps.
#[derive(Debug)]
pub(crate) struct Together {
    tcp: TcpStream,
    kept: Vec<u8>,
    keeps: bool,
}

impl Together {
    /// A connection that keeps what is written until something is to be read: who waits for the relay's answer has said all.
    pub(crate) fn keeping(tcp: TcpStream) -> Self {
        Self { tcp, kept: Vec::new(), keeps: true }
    }

    /// From now on what is written is kept again: what is left to be said goes with the end.
    pub(crate) fn keep(&mut self) {
        self.keeps = true;
    }

    /// From now on what is written goes. What was kept goes with the next write or flush, and not before.
    pub(crate) fn go_on(&mut self) {
        self.keeps = false;
    }

    /// The connection itself.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.kept))?;
            self.kept.drain(..written);
        }
        self.kept = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Hands over what is kept with word that more follows, so that the end which follows at once is in the same segment. What is not taken
    /// so goes the usual way.
    #[cfg(target_os = "linux")]
    fn send_with_end(&mut self) {
        use rustix::net::{SendFlags, send};
        let (tcp, kept) = (&self.tcp, &self.kept);
        let send_more = || send(tcp, kept, SendFlags::MORE | SendFlags::NOSIGNAL).map_err(io::Error::from);
        if !kept.is_empty()
            && let Ok(sent) = tcp.try_io(Interest::WRITABLE, send_more)
        {
            self.kept.drain(..sent);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn send_with_end(&mut self) {}

    /// Adds to what is kept, and has it all written unless it is to be kept. Nothing, where it is too much to be kept.
    fn join(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.kept.len() + bytes > KEPT {
            return None;
        }
        bufs.iter().for_each(|buf| self.kept.extend_from_slice(buf));
        if !self.keeps
            && let Poll::Ready(Err(error)) = self.poll_kept(cx)
        {
            return Some(Err(error));
        }
        Some(Ok(bytes))
    }

    fn is_plain(&self) -> bool {
        !self.keeps && self.kept.is_empty()
    }
}

impl AsyncRead for Together {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.keeps
            && let Poll::Ready(Err(error)) = self.poll_kept(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Together {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.is_plain() {
            if let Some(joined) = self.join(cx, &[IoSlice::new(buf)]) {
                return Poll::Ready(joined);
            }
            ready!(self.poll_kept(cx))?;
        }
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if !self.is_plain() {
            if let Some(joined) = self.join(cx, bufs) {
                return Poll::Ready(joined);
            }
            ready!(self.poll_kept(cx))?;
        }
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.keeps {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send_with_end();
        ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Together, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Together::keeping(near), listener.accept().await.unwrap().0)
    }

    async fn heard(far: &mut TcpStream) -> String {
        let mut buffer = [0; 64];
        let count = far.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_question_goes_when_the_answer_is_waited_for() {
        let (mut near, mut far) = pair().await;
        near.write_all(b"hel").await.unwrap();
        near.write_all(b"lo?").await.unwrap();
        near.flush().await.unwrap();
        let (mut answer, question) = tokio::join!(near.read_u8(), async {
            let question = heard(&mut far).await;
            far.write_all(b"!").await.unwrap();
            question
        });
        assert_eq!((question.as_str(), answer.as_mut().unwrap()), ("hello?", &mut b'!'));
    }

    #[tokio::test]
    async fn what_was_kept_goes_with_what_is_said_next_or_with_a_flush() {
        let (mut near, mut far) = pair().await;
        near.write_all(b"finished, ").await.unwrap();
        near.go_on();
        near.write_all(b"GET").await.unwrap();
        assert_eq!(heard(&mut far).await, "finished, GET");

        let (mut near, mut far) = pair().await;
        near.write_all(b"finished").await.unwrap();
        near.go_on();
        near.flush().await.unwrap();
        assert_eq!(heard(&mut far).await, "finished");
        near.write_all(b"GET").await.unwrap();
        assert_eq!(heard(&mut far).await, "GET");
    }

    #[tokio::test]
    async fn last_words_go_with_the_end_and_long_ones_are_not_kept() {
        let (mut near, mut far) = pair().await;
        near.write_all(&[b'x'; KEPT + 1]).await.unwrap();
        far.read_exact(&mut [0; KEPT + 1]).await.unwrap();
        near.write_all(b"bye").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(heard(&mut far).await, "bye");
        assert_eq!(heard(&mut far).await, "");
    }
}
