//! One connection as bytes, whatever carries it. One exact type, so that hyper's upgraded connection can be turned back into it.

use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::net::tls_stream::TlsStream;

/// A connection that was accepted, and bytes of it that were read ahead.
#[derive(Debug)]
pub struct Socket {
    carrier: Carrier,
    ahead: Bytes,
    /// The head of a 101, and what goes with it.
    head: Vec<u8>,
    head_state: HeadState,
    /// Bytes since the last whole message, once messages are expected.
    unfinished: Option<usize>,
    /// How many there may be.
    max: usize,
}

/// A message that has more bytes of frames than these, and still no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message in more than {0} bytes of frames")]
pub struct MessageTooLong(usize);

/// Whose messages are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessagesFrom {
    /// Of somebody who has not said yet who it is.
    Unauthenticated,
    /// Of somebody who was admitted.
    Authenticated,
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

/// How much is wanted of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSize {
    /// What the buffer holds.
    Buffer,
    /// All that the connection gives at once.
    Available,
}

/// How it stands with the head of a 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadState {
    /// There is none.
    None,
    /// It waits for what is said next, until something is to be read: who waits for the peer's answer has said all.
    Waiting,
    /// It is on its way.
    Writing,
}

macro_rules! carrier {
    ($socket:expr, $io:ident => $call:expr) => {
        match &mut $socket.carrier {
            Carrier::Plain($io) => $call,
            Carrier::Tls($io) => $call,
            Carrier::Memory($io) => $call,
        }
    };
}

/// Bytes that a peer may still send after we closed, before we stop listening to it.
const LINGER_BYTES: usize = 1 << 20;
/// Bytes of frames that one message may take. The longest one takes 448 KiB where each frame carries a single byte; without this bound, one
/// whose frames carry nothing would never end, and never be too long.
const MESSAGE_FRAME_BYTES: usize = 1 << 20;
/// The same of a stranger: its one message of use is as long as 64 KiB at max, and nobody has to cut it small.
const UNAUTHENTICATED_FRAME_BYTES: usize = 128 << 10;
/// Bytes of the header of a client's ping or pong.
const CONTROL_HEADER_BYTES: usize = 6;
/// How the answer to an upgrade begins, as hyper writes it. Most often the WebSocket's first message is there in the same moment: with it goes
/// one segment that wakes the peer once, instead of two.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";
/// What is said next is joined to a head that waits if it is not longer.
const JOIN_BYTES: usize = 4 * 1024;

impl Socket {
    /// A connection of which nothing was read yet.
    pub fn new(carrier: Carrier) -> Self {
        Self { carrier, ahead: Bytes::new(), head: Vec::new(), head_state: HeadState::None, unfinished: None, max: MESSAGE_FRAME_BYTES }
    }

    /// From here on come messages of a WebSocket, none of which may take frames for ever: see [`MessageTooLong`].
    pub fn limit_messages(&mut self, frames: MessagesFrom) {
        self.unfinished = Some(0);
        self.max = match frames {
            MessagesFrom::Unauthenticated => UNAUTHENTICATED_FRAME_BYTES,
            MessagesFrom::Authenticated => MESSAGE_FRAME_BYTES,
        };
    }

    /// This message was read. Pings and pongs may stand between the frames of another, and finish nothing but themselves.
    pub fn message_received(&mut self, message: &Message) {
        let Some(unfinished) = &mut self.unfinished else { return };
        *unfinished = match message {
            Message::Ping(payload) | Message::Pong(payload) => unfinished.saturating_sub(CONTROL_HEADER_BYTES + payload.len()),
            Message::Text(_) | Message::Binary(_) | Message::Close(_) | Message::Frame(_) => 0,
        };
    }

    /// Counts bytes that came; the error is given once.
    fn count_bytes(&mut self, bytes: usize) -> io::Result<()> {
        let Some(unfinished) = &mut self.unfinished else { return Ok(()) };
        *unfinished += bytes;
        if *unfinished <= self.max {
            return Ok(());
        }
        self.unfinished = None;
        Err(io::Error::other(MessageTooLong(self.max)))
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

    /// Ends our direction and waits until the peer has ended its own, so that no reset eats what it has not read yet. A peer that has ended
    /// already reads nothing more, and is told nothing.
    pub async fn close(mut self, within: Duration) {
        let end = async {
            if self.peer_has_closed() {
                return Ok(0);
            }
            self.shutdown().await?;
            tokio::io::copy(&mut (&mut self).take(LINGER_BYTES as u64), &mut tokio::io::sink()).await
        };
        // Whatever goes wrong here, the connection is over.
        drop(timeout(within, end).await);
    }

    /// Whether the peer's end is all that is left: nothing to be read before it, and nothing that we have still to say.
    fn peer_has_closed(&self) -> bool {
        let peek = |tcp: &TcpStream| tcp.try_io(Interest::READABLE, || SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]));
        match &self.carrier {
            Carrier::Plain(tcp) => matches!(peek(tcp), Ok(0)),
            Carrier::Tls(tls) => !tls.holds_bytes() && matches!(peek(tls.get_ref()), Ok(0)),
            Carrier::Memory(_) => false,
        }
    }

    /// Reads once, and gives what came to `sink`, in pieces. Says how many bytes they were: none at the peer's end. Without TLS, or where no more
    /// is wanted than `input` holds, by way of that.
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
            && self.ahead.is_empty()
            && self.head_state == HeadState::None
            && self.unfinished.is_none()
        {
            return tls.poll_read_pieces(cx, sink);
        }
        let mut read = ReadBuf::new(input);
        ready!(Pin::new(self).poll_read(cx, &mut read))?;
        sink(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Has the head of a 101 written, and what goes with it.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.head_state == HeadState::None {
            return Poll::Ready(Ok(()));
        }
        self.head_state = HeadState::Writing;
        while !self.head.is_empty() {
            let written = ready!(carrier!(self, io => Pin::new(io).poll_write(cx, &self.head)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.head.drain(..written);
        }
        ready!(carrier!(self, io => Pin::new(io).poll_flush(cx)))?;
        (self.head, self.head_state) = (Vec::new(), HeadState::None);
        Poll::Ready(Ok(()))
    }

    /// Waits until the peer has reset the connection, without reading from it.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn was_reset(&self) {
        let tcp = match &self.carrier {
            Carrier::Plain(tcp) => tcp,
            Carrier::Tls(tls) => tls.get_ref(),
            Carrier::Memory(_) => return pending().await,
        };
        drop(tcp.ready(Interest::ERROR).await); // an error of it says the same
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

impl MessageTooLong {
    /// Itself, if that is what an error of the connection is.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|source| source.downcast_ref::<Self>()).copied()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let some = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..some]);
            self.ahead.advance(some);
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(Err(error)) = self.poll_head(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        ready!(carrier!(self, io => Pin::new(io).poll_read(cx, buf)))?;
        Poll::Ready(self.count_bytes(buf.filled().len() - before))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.head_state {
            HeadState::None if buf.starts_with(SWITCHING) => {
                self.head.extend_from_slice(buf);
                self.head_state = HeadState::Waiting;
                return Poll::Ready(Ok(buf.len()));
            }
            HeadState::Waiting if buf.len() <= JOIN_BYTES => {
                self.head.extend_from_slice(buf);
                return match self.poll_head(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
                };
            }
            HeadState::None => {}
            HeadState::Waiting | HeadState::Writing => ready!(self.poll_head(cx))?,
        }
        carrier!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.head_state == HeadState::Waiting {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_head(cx))?;
        carrier!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_head(cx))?;
        carrier!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        if self.head_state != HeadState::None || first.starts_with(SWITCHING) {
            return self.poll_write(cx, first);
        }
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

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    async fn heard(far: &mut DuplexStream) -> Vec<u8> {
        let mut buffer = [0; 256];
        let count = far.read(&mut buffer).await.unwrap();
        buffer[..count].to_vec()
    }

    async fn with_head() -> (Socket, DuplexStream) {
        let (near, far) = duplex(1 << 10);
        let mut socket = Socket::new(Carrier::Memory(near));
        socket.write_all(HEAD).await.unwrap();
        socket.flush().await.unwrap();
        (socket, far)
    }

    #[tokio::test]
    async fn the_first_message_goes_with_the_answer_to_the_upgrade() {
        let (mut socket, mut far) = with_head().await;
        socket.write_all(b"opened").await.unwrap();
        assert_eq!(heard(&mut far).await, [HEAD, b"opened"].concat());
        socket.write_all(b"bytes").await.unwrap();
        assert_eq!(heard(&mut far).await, b"bytes");
    }

    #[tokio::test]
    async fn the_answer_to_an_upgrade_goes_alone_where_the_peer_has_the_next_word() {
        let (mut socket, mut far) = with_head().await;
        let (word, head) = tokio::join!(socket.read_u8(), async {
            let head = heard(&mut far).await;
            far.write_all(b"?").await.unwrap();
            head
        });
        assert_eq!((word.unwrap(), head), (b'?', HEAD.to_vec()));
    }

    #[tokio::test]
    async fn the_answer_to_an_upgrade_goes_with_the_end_and_before_what_is_long() {
        let (mut socket, mut far) = with_head().await;
        socket.shutdown().await.unwrap();
        assert_eq!(heard(&mut far).await, HEAD);

        let (mut socket, mut far) = with_head().await;
        let long = vec![b'x'; JOIN_BYTES + 1];
        let (written, mut all) = tokio::join!(socket.write_all(&long), async {
            let mut all = vec![0; HEAD.len() + long.len()];
            far.read_exact(&mut all).await.unwrap();
            all
        });
        written.unwrap();
        assert_eq!(all.split_off(HEAD.len()), long);
        assert_eq!(all, HEAD);
    }
}
