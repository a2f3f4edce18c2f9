//! The frames that a leg's socket has not taken yet. Frames are written directly; only the rest is buffered, and freed once it is written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Whole frames, and how far they are written.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    frames: Vec<u8>,
    sent: usize,
    /// Something was written since the last flush.
    unflushed: bool,
}

impl WriteBuffer {
    /// Whether everything is written and flushed.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.unflushed
    }

    /// Bytes that the socket has not taken yet.
    pub(crate) fn len(&self) -> usize {
        self.frames.len() - self.sent
    }

    /// Whether it owns a buffer. It does not while nothing waits.
    #[cfg(test)]
    pub(crate) fn owns_memory(&self) -> bool {
        self.frames.capacity() > 0
    }

    /// Queues frames for the next write.
    pub(crate) fn push(&mut self, frames: &[u8]) {
        self.unflushed |= !frames.is_empty();
        self.frames.extend_from_slice(frames);
    }

    /// Writes frames, behind everything that is queued, and queues what the socket does not take.
    pub(crate) fn write(&mut self, frames: &[u8], socket: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> io::Result<()> {
        let mut sent = 0;
        while self.len() == 0 && sent < frames.len() {
            match Pin::new(&mut *socket).poll_write(cx, &frames[sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.push(&frames[sent..]);
        self.unflushed = true;
        Ok(())
    }

    /// Writes and flushes everything.
    pub(crate) fn poll_flush(&mut self, socket: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.len() > 0 {
            match ready!(Pin::new(&mut *socket).poll_write(cx, &self.frames[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        *self = Self { unflushed: self.unflushed, ..Self::default() };
        if self.unflushed {
            ready!(Pin::new(socket).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
