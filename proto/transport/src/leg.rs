//! A leg as a byte stream: `AsyncRead + AsyncWrite` with half-close, and the reason it ended.
//!
//! ```text
//!   read   ◀── bytes ── end? ── Close 1000     EOF at `end`, which answers it with `delivered`
//!                    └── Close 4xxx, or lost   ConnectionReset, so that a cut stream never looks like a finished one
//!   write  ──▶ bytes                           in messages of at most 64 KiB
//!   shutdown ─▶ end                            the other direction goes on
//!   finish ─▶ waits for the relay's Close 1000 and answers it, or for `idle`;   reset ─▶ Close 4001
//!   drop ─▶ the connection is lost, which is a reset too; before `opened` Close 4001, because the relay waits for a leg that is only lost
//! ```
//!
//! A leg that is used again carries one stream after another. What belongs to one of them is in one value, which the next one does not see:
//!
//! ```text
//!   caller   Leg ── opened, both ends ── idle ─▶ IdleLeg ── ask ─▶ Leg before `opened`
//!   device   Leg ────── both ends ────── idle ─▶ IdleLeg ── offer ─▶ OfferedLeg ── accept ─▶ Leg      reject, idle ─▶ IdleLeg
//! ```
//!
//! Pings are answered while the leg is read. A relay that sends nothing for 2.5 ping intervals while the leg is read is dead.
//!
//! Does not own: reaching the relay ([`crate::dial`]), the local socket and unsolicited pongs ([`mod@crate::bridge`]), which idle legs are kept.
//!
//! # Cancel safety
//! Reads, writes, flushes, shutdowns and [`Leg::opened`] keep partial messages inside the leg, so dropping their futures loses nothing.
//! [`Leg::finish`] and [`Leg::reset`] own the leg: dropping their futures drops it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use ::bytes::Bytes;
use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::frame::Kind;
use moorline_proto::leg::DELIVERED_TEXT;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::time::timeout;

use crate::connection::Connection;

mod bytes;
mod end;
mod frame_reader;
mod frames;
mod idle;
mod offered;
mod receive;
mod state;
mod verdict;

pub use end::{EndReason, OpenError};
use frame_reader::{ReceiveBuffer, Received};
use frames::FrameStream;
pub(crate) use frames::SendError;
pub use idle::IdleLeg;
pub use offered::{OfferedLeg, Withdrawn};
pub(crate) use receive::LegEvent;
use state::{Phase, Silence, StreamState};

/// One side's WebSocket of a stream, as bytes.
#[derive(Debug)]
pub struct Leg {
    /// Boxed, as the next: a leg passes through many hands, and each would have room for all of it.
    frames: Box<FrameStream>,
    /// Everything that belongs to one stream, and not to the connection.
    stream: Box<StreamState>,
    /// Set once the relay's ping interval is known; before that the handshake's deadline applies.
    silence: Option<Silence>,
    /// The relay granted that the leg is used again.
    is_reusable: bool,
}

impl Leg {
    /// The leg on a connection that was upgraded, and the bytes that were read beyond the 101.
    pub fn new(connection: Connection, ahead: Bytes) -> Self {
        let frames = Box::new(FrameStream::new(connection, ahead));
        Self { frames, stream: Box::new(StreamState::new(Phase::Joining)), silence: None, is_reusable: false }
    }

    /// Like [`Leg::new`], for a 101 that granted that the leg is used again.
    pub fn reusable(connection: Connection, ahead: Bytes) -> Self {
        let mut leg = Self::new(connection, ahead);
        leg.is_reusable = true;
        leg
    }

    /// Why the stream ended, once that has been read.
    pub fn end_reason(&self) -> Option<&EndReason> {
        self.stream.end.as_ref()
    }

    /// Ends this side, waits for the relay's Close 1000 or `idle`, and answers the Close. With `idle` the leg comes back for another stream.
    ///
    /// If the far side's EOF was read, only this side's end is missing. Otherwise this side is done with the stream: what was written before
    /// is still delivered, the far side is told that no more comes, and what it still sends is discarded. There is no timeout, because the
    /// Close comes once a slow far side has everything. Drop the future to give up.
    pub async fn finish(mut self) -> (EndReason, Option<IdleLeg>) {
        poll_fn(|cx| {
            self.take_end(cx);
            Poll::Ready(())
        })
        .await;
        if self.stream.end.is_none() && !(self.stream.own_ended && self.stream.own_delivered) {
            self.send_end().await;
        }
        let end = poll_fn(|cx| self.poll_drain(cx)).await;
        (end, self.retire().await)
    }

    /// Resets the stream: the far side learns that it was cut. Waits at most 5 s for the relay's answer.
    pub async fn reset(self) {
        self.close_with(CloseReason::Reset).await;
    }

    /// Sends a Close and waits at most 5 s for the relay's answer.
    async fn close_with(mut self, reason: CloseReason) {
        self.send_close(reason, "");
        let answered = async { poll_fn(|cx| self.frames.poll_flush(cx)).await.is_ok() && poll_fn(|cx| self.poll_close(cx)).await };
        if !matches!(timeout(CLOSE_TIMEOUT, answered).await, Ok(true)) {
            self.frames.connection().reset_on_drop();
        }
    }

    /// What becomes of a leg whose stream has ended: it is idle, or it is closed.
    pub(crate) async fn retire(self) -> Option<IdleLeg> {
        match self.stream.keep {
            Some(keep) => Some(self.into_idle(keep)),
            None => {
                self.complete_close().await;
                None
            }
        }
    }

    /// Closes a leg whose end is known: sends the answer to a Close, or the Close after a protocol error, within 5 s.
    async fn complete_close(mut self) {
        let is_gone = matches!(self.stream.end, Some(EndReason::Lost(_)));
        if is_gone || timeout(CLOSE_TIMEOUT, self.write_close()).await.is_err() {
            self.frames.connection().reset_on_drop();
        }
    }

    async fn write_close(&mut self) {
        // The leg is over: what cannot be sent now does not matter.
        self.frames.connection().coalesce_with_fin();
        let said = poll_fn(|cx| self.frames.poll_flush(cx)).await.is_ok() && self.frames.connection().shutdown().await.is_ok();
        if said && matches!(self.stream.end, Some(EndReason::ProtocolError { .. })) {
            // Closing a socket with unread bytes sends a TCP reset, which could destroy the Close that was just sent.
            drop(tokio::io::copy(self.frames.connection(), &mut tokio::io::sink()).await);
        }
    }

    /// Reads and discards until the relay's Close arrives (true) or cannot arrive any more (false).
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match ready!(self.frames.poll_receive(&mut self.stream.incoming, cx)) {
                Received::Bytes | Received::Text(_) => self.stream.incoming.clear(),
                Received::Close(_) => return Poll::Ready(true),
                Received::Invalid(_) | Received::Disconnected(_) => return Poll::Ready(false),
            }
        }
    }

    /// Takes the far side's `end` if it has arrived, and no bytes before it are left.
    fn take_end(&mut self, cx: &mut Context<'_>) {
        if self.stream.phase == Phase::Open
            && self.stream.incoming.is_empty()
            && !self.stream.far_ended
            && matches!(self.poll_event(cx), Poll::Ready(LegEvent::End))
        {
            self.push_delivered();
        }
    }

    async fn send_end(&mut self) {
        let done = async {
            if self.stream.own_delivered {
                return self.shutdown().await;
            }
            poll_fn(|cx| self.frames.poll_writable(cx)).await?;
            self.send_close(CloseReason::Finished, "");
            (self.stream.own_ended, self.stream.close_sent) = (true, true);
            poll_fn(|cx| self.frames.poll_flush(cx)).await
        };
        if let Err(error) = done.await {
            tracing::debug!(%error, "cannot send the end of a leg");
        }
    }

    /// Writes as much of what is pending as the socket takes. Above all the answer to a Close, where nobody will close the leg.
    pub(crate) fn try_flush(&mut self, cx: &mut Context<'_>) {
        drop(self.frames.poll_flush(cx));
    }

    fn protocol_error(&mut self, close: CloseReason, detail: &str, cx: &mut Context<'_>) {
        self.send_close(close, detail);
        self.stream.end = Some(EndReason::ProtocolError { close, detail: detail.to_owned() });
        self.try_flush(cx); // the rest is sent when the leg is closed
    }

    fn send_close(&mut self, close: CloseReason, detail: &str) {
        self.frames.push_close(close.code(), &close.text(detail));
    }

    /// Says that everything before the far side's `end` was written to the local side. Call it after [`LegEvent::End`], and flush.
    pub(crate) fn push_delivered(&mut self) {
        if self.stream.far_ended && !self.stream.own_delivered && !self.stream.close_sent && self.stream.end.is_none() {
            self.stream.own_delivered = true;
            self.frames.push(Kind::Text, DELIVERED_TEXT.as_bytes());
        }
    }

    /// Queues bytes of the stream for the next write, behind what is queued: the first ones, which go in one segment with the `ask` before them.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.stream.has_sent = true;
        self.frames.push(Kind::Bytes, bytes);
    }

    /// Stream bytes that were received and not consumed.
    pub(crate) fn incoming(&mut self) -> &mut ReceiveBuffer {
        &mut self.stream.incoming
    }

    /// Whether the far side has everything that this side sent.
    pub(crate) fn is_delivered(&self) -> bool {
        self.stream.far_delivered
    }

    /// Waits until bytes can be sent.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stream.own_ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "this side of the leg has ended")));
        }
        if let Some(end) = &self.stream.end {
            return Poll::Ready(Err(end.to_error()));
        }
        self.frames.poll_writable(cx)
    }

    /// Sends at most 64 KiB read from `source`, after [`Leg::poll_writable`] was ready. Zero means that the source has ended.
    pub(crate) fn poll_send_from<S: AsyncRead + Unpin>(&mut self, source: &mut S, cx: &mut Context<'_>) -> Poll<Result<usize, SendError>> {
        let sent = ready!(self.frames.poll_send(cx, |cx, payload| Pin::new(source).poll_read(cx, payload)));
        self.stream.has_sent |= matches!(sent, Ok(1..));
        Poll::Ready(sent)
    }

    /// Sends an unsolicited pong if there is room. If there is none, the bytes that block it show the same.
    pub(crate) fn poll_pong(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Ok(())) = self.frames.poll_writable(cx) {
            self.frames.push(Kind::Pong, &[]);
            drop(self.frames.poll_flush(cx)); // the rest goes out with the next write
        }
    }

    /// Whether bytes or the end of the stream may not have been written to the connection yet.
    pub(crate) fn has_unsent_data(&self) -> bool {
        self.frames.has_unsent_data()
    }

    /// Whether it owns a buffer, or its connection does.
    #[cfg(test)]
    pub(crate) fn owns_memory(&self) -> bool {
        self.frames.owns_memory() || self.stream.incoming.owns_memory()
    }

    /// Flushes everything.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.stream.end {
            Some(end) if self.has_unsent_data() => Poll::Ready(Err(end.to_error())),
            Some(_) | None => self.frames.poll_flush(cx),
        }
    }
}

/// Tells the relay that this leg will not be joined again, or not be used again. If that cannot be sent without waiting, the stream's deadline
/// ends it, or the end of the connection does.
impl Drop for Leg {
    fn drop(&mut self) {
        let close = match self.stream.phase {
            _ if self.stream.end.is_some() => return,
            Phase::Open => return,
            Phase::Joining | Phase::Offered => CloseReason::Reset,
            Phase::Idle => CloseReason::Finished,
        };
        self.send_close(close, "");
        self.try_flush(&mut Context::from_waker(Waker::noop()));
    }
}
