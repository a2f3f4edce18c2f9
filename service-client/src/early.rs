//! The first bytes of a stream: sent without waiting for `opened`, and kept until then, so that another leg can carry them if the first is lost.
//!
//! ```text
//!   source ── at most 64 KiB ──▶ kept ──▶ leg before `opened`        the relay holds as much
//!                                  └────▶ the next leg, from the start
//! ```
//!
//! Does not own: the legs, and when there is a next one.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use moorline_proto::bounds::EARLY_DATA_BYTES;
use moorline_proto::leg::Opened;
use moorline_transport::leg::{Leg, OpenError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Mutex;

/// The size of one read.
const READ_BYTES: usize = 16 * 1024;

/// The first bytes of one request, however many legs it takes.
///
/// Its attempts follow one another, so the lock is always free. It is there because each of them borrows this.
pub(crate) struct EarlyBytes<'s, S: ?Sized>(Mutex<Early<'s, S>>);

/// What the source had to say so far.
struct Early<'s, S: ?Sized> {
    source: &'s mut S,
    kept: Vec<u8>,
    /// The source has ended. Whoever reads the rest of it reads that again.
    has_ended: bool,
}

/// Why a leg was not opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// The relay refused, or the leg ended.
    Leg(OpenError),
    /// The source failed. Nobody wants the stream any more.
    Source(io::Error),
}

impl<'s, S: AsyncRead + Unpin + ?Sized> EarlyBytes<'s, S> {
    pub(crate) fn new(source: &'s mut S) -> Self {
        Self(Mutex::new(Early { source, kept: Vec::new(), has_ended: false }))
    }

    /// Waits for `opened`, and sends the source's bytes meanwhile, from the first. Once the leg is open, all that was read has been written:
    /// that many bytes.
    ///
    /// # Cancel safety
    /// The bytes stay here for another leg.
    pub(crate) async fn opened(&self, leg: &mut Leg) -> Result<(Box<Opened>, u64), NotOpened> {
        let (mut early, mut sent, mut is_first) = (self.0.lock().await, 0, true);
        let opened = poll_fn(|cx| {
            if std::mem::take(&mut is_first)
                && let Err(error) = early.queue(leg, &mut sent, cx)
            {
                return Poll::Ready(Err(NotOpened::Source(error)));
            }
            if let Err(error) = early.send(leg, &mut sent, cx) {
                return Poll::Ready(Err(NotOpened::Source(error)));
            }
            leg.poll_opened(cx).map_err(NotOpened::Leg)
        });
        let opened = opened.await?;
        // Only what a connection without room kept back. If the stream is over, whoever reads it sees that.
        leg.write_all(&early.kept[sent..]).await.ok();
        Ok((opened, early.kept.len() as u64))
    }
}

impl<S: AsyncRead + Unpin + ?Sized> Early<'_, S> {
    /// Queues what the source says at once, so that it shares a segment with the `ask`.
    fn queue(&mut self, leg: &mut Leg, sent: &mut usize, cx: &mut Context<'_>) -> io::Result<()> {
        if self.kept.is_empty() && !self.has_ended && self.read(cx)?.is_ready() && !self.kept.is_empty() {
            leg.queue(&self.kept);
            *sent = self.kept.len();
        }
        Ok(())
    }

    /// Sends as much as the leg takes. Errors of the leg are left to whoever reads it.
    fn send(&mut self, leg: &mut Leg, sent: &mut usize, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while *sent < self.kept.len() {
                match Pin::new(&mut *leg).poll_write(cx, &self.kept[*sent..]) {
                    Poll::Ready(Ok(count)) => *sent += count,
                    Poll::Ready(Err(_)) | Poll::Pending => return Ok(()),
                }
            }
            if self.has_ended || self.kept.len() == EARLY_DATA_BYTES {
                return Ok(());
            }
            // Nothing is read that the leg does not take at once.
            if !matches!(Pin::new(&mut *leg).poll_flush(cx), Poll::Ready(Ok(()))) || self.read(cx)?.is_pending() {
                return Ok(());
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let mut room = [0; READ_BYTES];
        let mut read = ReadBuf::new(&mut room[..READ_BYTES.min(EARLY_DATA_BYTES - self.kept.len())]);
        match Pin::new(&mut *self.source).poll_read(cx, &mut read) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(done) => done?,
        }
        self.has_ended = read.filled().is_empty();
        self.kept.extend_from_slice(read.filled());
        Ok(Poll::Ready(()))
    }
}
