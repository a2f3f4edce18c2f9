//! A leg as a byte stream: `AsyncRead + AsyncWrite` with half-close, and the reason it ended.
//!
//! ```text
//!   read   ◀── bytes ── end? ── Close 1000     EOF at `end`, which answers it with `delivered`
//!                    └── Close 4xxx, or lost   ConnectionReset, so that a cut stream never looks like a finished one
//!   write  ──▶ bytes                           in messages of at most 64 KiB
//!   shutdown ─▶ end                            the other direction goes on
//!   finish ─▶ waits for the relay's Close 1000 and answers it;   reset ─▶ Close 4001
//!   drop ─▶ the connection is lost, which is a reset too; before `opened` Close 4001, because the relay waits for a leg that is only lost
//! ```
//!
//! Pings are answered while the leg is read. A relay that sends nothing for 2.5 ping intervals while the leg is read is dead.
//!
//! Does not own: reaching the relay ([`crate::dial`]), the local socket and unsolicited pongs ([`mod@crate::bridge`]).
//!
//! # Cancel safety
//! Reads, writes, flushes, shutdowns and [`Leg::opened`] keep partial messages inside the leg, so dropping their futures loses nothing.
//! [`Leg::finish`] and [`Leg::reset`] own the leg: dropping their futures drops it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ::bytes::Bytes;
use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::frame::{Close, Kind};
use moorline_proto::leg::{DELIVERED_TEXT, LegText};
use moorline_proto::message::{Decoded, MessageError};
use moorline_proto::text::printable;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::time::{Instant, Sleep, timeout};

use crate::connection::Connection;

mod bytes;
mod end;
mod frames;
mod verdict;

pub use end::{EndReason, OpenError};
pub(crate) use frames::SendError;
use frames::{FrameStream, ReceiveBuffer, Received};

/// Characters of a Close frame's reason: no frame holds more.
const CLOSE_REASON_CHARS: usize = 123;

/// One side's WebSocket of a stream, as bytes.
#[derive(Debug)]
pub struct Leg {
    frames: FrameStream,
    /// Received bytes that have not been read.
    pub(crate) incoming: ReceiveBuffer,
    /// The message that arrived behind those bytes.
    next: Option<Received>,
    /// Set at `opened`; before that the handshake's deadline applies.
    silence: Option<Silence>,
    is_opened: bool,
    far_ended: bool,
    own_ended: bool,
    /// This side said `delivered`.
    own_delivered: bool,
    /// The far side said `delivered`: it has everything that this side sent.
    far_delivered: bool,
    /// A Close 1000 was sent. The relay answers it once the far side has everything, however long that takes.
    close_sent: bool,
    end: Option<EndReason>,
}

/// The longest silence allowed to the relay. The timer is re-armed when it fires, not on every frame.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

/// What comes next on a leg. Bytes are in [`Leg::incoming`].
#[derive(Debug)]
pub(crate) enum LegEvent {
    Bytes,
    /// `end`, once.
    End,
    /// The leg has ended: see [`Leg::end_reason`]. Returned by every later poll too.
    Over,
}

impl Leg {
    /// The leg on a connection that was upgraded, and the bytes that were read beyond the 101.
    pub fn new(connection: Connection, ahead: Bytes) -> Self {
        Self {
            frames: FrameStream::new(connection, ahead),
            incoming: ReceiveBuffer::default(),
            next: None,
            silence: None,
            is_opened: false,
            far_ended: false,
            own_ended: false,
            own_delivered: false,
            far_delivered: false,
            close_sent: false,
            end: None,
        }
    }

    /// Why the leg ended, once that has been read.
    pub fn end_reason(&self) -> Option<&EndReason> {
        self.end.as_ref()
    }

    /// Ends this side, waits for the relay's Close 1000, and answers it.
    ///
    /// If the far side's EOF was read, only this side's end is missing. Otherwise this side is done with the stream: what was written before
    /// is still delivered, the far side is told that no more comes, and what it still sends is discarded. There is no timeout, because the
    /// Close comes once a slow far side has everything. Drop the future to give up.
    pub async fn finish(mut self) -> EndReason {
        poll_fn(|cx| {
            self.take_end(cx);
            Poll::Ready(())
        })
        .await;
        if self.end.is_none() && !(self.own_ended && self.own_delivered) {
            self.send_end().await;
        }
        let end = poll_fn(|cx| self.poll_drain(cx)).await;
        self.complete_close().await;
        end
    }

    /// Resets the stream: the far side learns that it was cut. Waits at most 5 s for the relay's answer.
    pub async fn reset(mut self) {
        self.send_close(CloseReason::Reset, "");
        let answered = async { poll_fn(|cx| self.frames.poll_flush(cx)).await.is_ok() && poll_fn(|cx| self.poll_close(cx)).await };
        if !matches!(timeout(CLOSE_TIMEOUT, answered).await, Ok(true)) {
            self.frames.connection().reset_on_drop();
        }
    }

    /// Closes a leg whose end is known: sends the answer to a Close, or the Close after a protocol error, within 5 s.
    pub(crate) async fn complete_close(mut self) {
        let is_gone = matches!(self.end, Some(EndReason::Lost(_)));
        if is_gone || timeout(CLOSE_TIMEOUT, self.write_close()).await.is_err() {
            self.frames.connection().reset_on_drop();
        }
    }

    async fn write_close(&mut self) {
        // The leg is over: what cannot be sent now does not matter.
        self.frames.connection().coalesce_with_fin();
        let said = poll_fn(|cx| self.frames.poll_flush(cx)).await.is_ok() && self.frames.connection().shutdown().await.is_ok();
        if said && matches!(self.end, Some(EndReason::ProtocolError { .. })) {
            // Closing a socket with unread bytes sends a TCP reset, which could destroy the Close that was just sent.
            drop(tokio::io::copy(self.frames.connection(), &mut tokio::io::sink()).await);
        }
    }

    /// Reads and discards until the relay's Close arrives (true) or cannot arrive any more (false).
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match ready!(self.frames.poll_receive(&mut self.incoming, cx)) {
                Received::Bytes | Received::Text(_) => self.incoming.clear(),
                Received::Close(_) => return Poll::Ready(true),
                Received::Invalid(_) | Received::Disconnected(_) => return Poll::Ready(false),
            }
        }
    }

    /// Takes the far side's `end` if it has arrived, and no bytes before it are left.
    fn take_end(&mut self, cx: &mut Context<'_>) {
        if self.is_opened && self.incoming.is_empty() && !self.far_ended && matches!(self.poll_event(cx), Poll::Ready(LegEvent::End)) {
            self.push_delivered();
        }
    }

    async fn send_end(&mut self) {
        let done = async {
            if self.own_delivered {
                return self.shutdown().await;
            }
            poll_fn(|cx| self.frames.poll_writable(cx)).await?;
            self.send_close(CloseReason::Finished, "");
            (self.own_ended, self.close_sent) = (true, true);
            poll_fn(|cx| self.frames.poll_flush(cx)).await
        };
        if let Err(error) = done.await {
            tracing::debug!(%error, "cannot send the end of a leg");
        }
    }

    /// What comes next. Pending registers the waker for frames and for the silence timer.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<LegEvent> {
        loop {
            if self.end.is_some() {
                return Poll::Ready(LegEvent::Over);
            }
            let received = match self.poll_received(cx) {
                Poll::Ready(received) => received,
                Poll::Pending => {
                    ready!(self.poll_silence(cx));
                    continue;
                }
            };
            match received {
                Received::Bytes if self.close_sent => self.incoming.clear(),
                Received::Bytes if self.far_ended => self.protocol_error(CloseReason::Protocol, "bytes after end", cx),
                Received::Bytes => return Poll::Ready(LegEvent::Bytes),
                Received::Text(text) => match LegText::decode(&text) {
                    Ok(Decoded::Known(LegText::End(_))) if !self.far_ended => {
                        self.far_ended = true;
                        return Poll::Ready(LegEvent::End);
                    }
                    Ok(Decoded::Known(LegText::Delivered(_))) if self.own_ended => self.far_delivered = true,
                    Ok(Decoded::Known(LegText::Delivered(_))) => {
                        self.protocol_error(CloseReason::Protocol, "delivered before end", cx);
                    }
                    Ok(Decoded::Known(LegText::End(_)) | Decoded::Unknown(_)) => {}
                    Ok(Decoded::Known(LegText::Opened(_) | LegText::Refused(_))) => {
                        self.protocol_error(CloseReason::Protocol, "a second verdict", cx);
                    }
                    Err(error) => self.invalid_text(&error, cx),
                },
                end @ (Received::Close(_) | Received::Invalid(_) | Received::Disconnected(_)) => self.on_end(end, cx),
            }
        }
    }

    /// Reads to the end of the leg and discards bytes.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        loop {
            match ready!(self.poll_event(cx)) {
                LegEvent::Bytes => self.incoming.clear(),
                LegEvent::End => {}
                LegEvent::Over => return Poll::Ready(self.end.clone().unwrap_or(EndReason::Finished)),
            }
        }
    }

    /// What comes next; bytes come before a message that arrived behind them.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        let received = match self.next.take() {
            Some(received) => received,
            None => ready!(self.frames.poll_receive(&mut self.incoming, cx)),
        };
        if self.incoming.is_empty() || matches!(received, Received::Bytes) {
            return Poll::Ready(received);
        }
        self.next = Some(received);
        Poll::Ready(Received::Bytes)
    }

    /// Records what ended the leg.
    fn on_end(&mut self, end: Received, cx: &mut Context<'_>) {
        match end {
            Received::Close(close) => {
                self.end = Some(self.end_by(close.as_ref()));
                // The answer is flushed by `try_flush`, or when the leg is closed.
                match &close {
                    Some(close) => self.frames.push_close(close.code, &close.reason),
                    None => self.frames.push(Kind::Close, &[]),
                }
            }
            Received::Invalid(error) => self.protocol_error(error.reason(), &error.to_string(), cx),
            Received::Disconnected(error) => self.end = Some(EndReason::lost(error.as_ref())),
            Received::Bytes | Received::Text(_) => {}
        }
    }

    fn end_by(&self, close: Option<&Close>) -> EndReason {
        let (code, reason) = close.map_or((1005, String::new()), |close| (close.code, printable(&close.reason, CLOSE_REASON_CHARS)));
        match code {
            // The answer to this side's Close says that the far side has everything, as `delivered` does.
            1000 if self.is_opened && (self.far_delivered || self.close_sent) => EndReason::Finished,
            1000 if self.is_opened => EndReason::CutShort,
            code => EndReason::Closed { code, reason },
        }
    }

    /// Called only when nothing can be read: unread data in the socket's buffer shows that the relay is alive.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let last_read = self.frames.connection().last_read();
        let Some(silence) = self.silence.as_mut().filter(|_| !self.close_sent) else { return Poll::Pending };
        loop {
            ready!(silence.timer.as_mut().poll(cx));
            let due = last_read + silence.limit;
            if due <= Instant::now() {
                self.end = Some(EndReason::Silent(silence.limit));
                return Poll::Ready(());
            }
            silence.timer.as_mut().reset(due);
        }
    }

    /// Writes as much of what is pending as the socket takes. Above all the answer to a Close, where nobody will close the leg.
    pub(crate) fn try_flush(&mut self, cx: &mut Context<'_>) {
        drop(self.frames.poll_flush(cx));
    }

    fn invalid_text(&mut self, error: &MessageError, cx: &mut Context<'_>) {
        let close = match error {
            MessageError::TooLarge { .. } => CloseReason::TooBig,
            MessageError::NoType | MessageError::Field { .. } => CloseReason::Protocol,
        };
        self.protocol_error(close, &error.to_string(), cx);
    }

    fn protocol_error(&mut self, close: CloseReason, detail: &str, cx: &mut Context<'_>) {
        self.send_close(close, detail);
        self.end = Some(EndReason::ProtocolError { close, detail: detail.to_owned() });
        self.try_flush(cx); // the rest is sent when the leg is closed
    }

    fn send_close(&mut self, close: CloseReason, detail: &str) {
        self.frames.push_close(close.code(), &close.text(detail));
    }

    /// Says that everything before the far side's `end` was written to the local side. Call it after [`LegEvent::End`], and flush.
    pub(crate) fn push_delivered(&mut self) {
        if self.far_ended && !self.own_delivered && !self.close_sent && self.end.is_none() {
            self.own_delivered = true;
            self.frames.push(Kind::Text, DELIVERED_TEXT.as_bytes());
        }
    }

    /// Whether the far side has everything that this side sent.
    pub(crate) fn is_delivered(&self) -> bool {
        self.far_delivered
    }

    /// Waits until bytes can be sent.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.own_ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "this side of the leg has ended")));
        }
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.to_error()));
        }
        self.frames.poll_writable(cx)
    }

    /// Sends at most 64 KiB read from `source`, after [`Leg::poll_writable`] was ready. Zero means that the source has ended.
    pub(crate) fn poll_send_from<S: AsyncRead + Unpin>(&mut self, source: &mut S, cx: &mut Context<'_>) -> Poll<Result<usize, SendError>> {
        self.frames.poll_send(cx, |cx, payload| Pin::new(source).poll_read(cx, payload))
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

    /// Flushes everything.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.end {
            Some(end) if self.has_unsent_data() => Poll::Ready(Err(end.to_error())),
            Some(_) | None => self.frames.poll_flush(cx),
        }
    }
}

/// Tells the relay that this leg will not be joined again. If that cannot be sent without waiting, the stream's deadline ends it.
impl Drop for Leg {
    fn drop(&mut self) {
        if !self.is_opened && self.end.is_none() {
            self.send_close(CloseReason::Reset, "");
            self.try_flush(&mut Context::from_waker(Waker::noop()));
        }
    }
}
