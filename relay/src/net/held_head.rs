//! The head of a 101, held back until the first message follows, so that both go in one segment and wake the peer once.
//!
//! Most often the WebSocket's first message is ready in the same moment. If the connection is read first, we wait for the peer, and the
//! head goes alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::limits::HELD_HEAD_JOIN_BYTES;

/// How the answer to an upgrade begins, as hyper writes it.
const SWITCHING_PROTOCOLS: &[u8] = b"HTTP/1.1 101 ";

/// The head of a 101, and the short message that goes with it. Owns no buffer while there is none.
#[derive(Debug, Default)]
pub(super) struct HeldHead {
    bytes: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is no head.
    #[default]
    Empty,
    /// The head waits for the first message, or for the first read.
    Waiting,
    /// The head is being written.
    Writing,
}

impl HeldHead {
    /// Whether nothing is held: writes may go to the carrier directly.
    pub(super) fn is_empty(&self) -> bool {
        self.state == State::Empty
    }

    /// Whether the head still waits for the first message.
    pub(super) fn is_waiting(&self) -> bool {
        self.state == State::Waiting
    }

    /// Bytes that are held.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Offers the next write. Ready with true if the bytes were taken; with false if nothing is held (any more) and the caller is to write
    /// them itself.
    pub(super) fn poll_take(&mut self, io: &mut (impl AsyncWrite + Unpin), buf: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self.state {
            State::Empty if buf.starts_with(SWITCHING_PROTOCOLS) => {
                self.bytes.extend_from_slice(buf);
                self.state = State::Waiting;
                Poll::Ready(Ok(true))
            }
            State::Waiting if buf.len() <= HELD_HEAD_JOIN_BYTES => {
                self.bytes.extend_from_slice(buf);
                match self.poll_write(io, cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(true)),
                }
            }
            State::Empty => Poll::Ready(Ok(false)),
            State::Waiting | State::Writing => {
                ready!(self.poll_write(io, cx))?;
                Poll::Ready(Ok(false))
            }
        }
    }

    /// Writes and flushes what is held.
    pub(super) fn poll_write(&mut self, io: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == State::Empty {
            return Poll::Ready(Ok(()));
        }
        self.state = State::Writing;
        while !self.bytes.is_empty() {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, &self.bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.drain(..written);
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        *self = Self::default();
        Poll::Ready(Ok(()))
    }

    /// Whether these bytes begin a 101.
    pub(super) fn begins_with_head(buf: &[u8]) -> bool {
        buf.starts_with(SWITCHING_PROTOCOLS)
    }
}
