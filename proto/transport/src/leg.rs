//! A leg as a stream of bytes: `AsyncRead + AsyncWrite` with true half-close, and the reason of its end.
//!
//! ```text
//!   read   ◀── bytes ── end? ── Close 1000     EOF at `end`, or at a Close 1000 without one
//!                    └── Close 4xxx, or gone   ConnectionReset, so that a cut stream never looks like a finished one
//!   write  ──▶ bytes                           in messages of at most 64 KiB
//!   shutdown ─▶ end                            the other direction goes on
//!   finish ─▶ waits for the relay's Close 1000 and answers it;   reset ─▶ Close 4001;   drop ─▶ gone, which is a reset too,
//!             and before `opened` Close 4001: a leg that is only gone may come again, and is waited for
//! ```
//!
//! Pings are answered while the leg is read. A relay that sends nothing for 2.5 of its ping intervals while it is read is dead.
//!
//! Does not own: reaching the relay ([`crate::dial`]), the local socket and unasked pongs ([`mod@crate::bridge`]).
//!
//! # Cancel safety
//! Reading, writing, flushing, shutting down and [`Leg::opened`] keep partial messages inside the leg: a future of theirs that is dropped loses nothing.
//! [`Leg::finish`] and [`Leg::reset`] own the leg: dropping theirs drops the leg.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ::bytes::Bytes;
use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::frame::{Close, Kind};
use moorline_proto::leg::{LegText, Opened};
use moorline_proto::message::{Decoded, MessageError};
use moorline_proto::problem::Problem;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::connection::Connection;

mod bytes;
mod end;
mod frames;

pub use end::{EndReason, OpenError};
pub(crate) use frames::Unsent;
use frames::{Found, Frames, Incoming};

/// One side's WebSocket of a stream, as bytes.
#[derive(Debug)]
pub struct Leg {
    frames: Frames,
    /// What came and nobody has read yet.
    pub(crate) incoming: Incoming,
    /// What came behind it.
    next: Option<Found>,
    /// Armed at `opened`; before that the handshake's deadline is the limit.
    silence: Option<Silence>,
    is_opened: bool,
    far_ended: bool,
    own_ended: bool,
    /// A Close 1000 was sent: the relay answers it when the far side has everything, however long that takes.
    is_closing: bool,
    end: Option<EndReason>,
}

/// How long a relay may say nothing. The timer is looked at when it fires, and not moved by every frame.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

/// What comes next on a leg. Bytes are in [`Leg::incoming`] by then.
#[derive(Debug)]
pub(crate) enum Event {
    Bytes,
    /// `end`, once.
    End,
    /// See [`Leg::end_reason`]. Comes again whenever it is asked for.
    Over,
}

enum First {
    Opened(Box<Opened>),
    Refused(Box<Problem>),
}

impl Leg {
    /// The leg behind a 101, and what was read behind that.
    pub fn new(connection: Connection, ahead: Bytes) -> Self {
        Self {
            frames: Frames::new(connection, ahead),
            incoming: Incoming::default(),
            next: None,
            silence: None,
            is_opened: false,
            far_ended: false,
            own_ended: false,
            is_closing: false,
            end: None,
        }
    }

    /// Waits for the relay's verdict. To be called once, before anything is read; writing before it is allowed, see the protocol.
    /// It has no limit of its own: the handshake's deadline is the caller's to keep.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// Nothing is lost; it may be called again.
    pub async fn opened(&mut self) -> Result<Opened, OpenError> {
        let first = poll_fn(|cx| self.poll_first(cx)).await?;
        match first {
            First::Opened(opened) => {
                let limit = Duration::from_millis(opened.ping_ms.saturating_mul(5) / 2);
                self.is_opened = true;
                self.silence = Some(Silence { limit, timer: Box::pin(sleep_until(Instant::now() + limit)) });
                Ok(*opened)
            }
            First::Refused(problem) => Err(OpenError::Refused(problem)),
        }
    }

    /// Why the leg ended, as soon as that was read.
    pub fn end_reason(&self) -> Option<&EndReason> {
        self.end.as_ref()
    }

    /// Ends this side, waits for the relay's Close 1000, and answers it.
    ///
    /// With both directions ended, that is all. Otherwise this side is done with the stream: what was written before is still delivered, the
    /// far side is told that no more comes, and what it still sends is dropped. There is no limit in time then, since the Close stands behind
    /// all that a slow far side has not read yet. Dropping the future is the way to give up.
    pub async fn finish(mut self) -> EndReason {
        if self.end.is_none() && !(self.own_ended && self.far_ended) {
            self.end_this_side().await;
        }
        let end = poll_fn(|cx| self.poll_over(cx)).await;
        self.part().await;
        end
    }

    /// Resets the stream: the far side learns that it was cut. Waits for the relay's answer, 5 s at most.
    pub async fn reset(mut self) {
        self.send_close(CloseReason::Reset, "");
        let answered = async { poll_fn(|cx| self.frames.poll_flush(cx)).await.is_ok() && poll_fn(|cx| self.poll_answer(cx)).await };
        if !matches!(timeout(CLOSE_TIMEOUT, answered).await, Ok(true)) {
            self.frames.connection().reset_on_drop();
        }
    }

    /// The last of a leg whose end is known: its answer, or its accusation, goes out within 5 s.
    pub(crate) async fn part(mut self) {
        let is_gone = matches!(self.end, Some(EndReason::Lost(_)));
        if is_gone || timeout(CLOSE_TIMEOUT, self.last_words()).await.is_err() {
            self.frames.connection().reset_on_drop();
        }
    }

    async fn last_words(&mut self) {
        // The leg is over: what cannot be said now does not matter.
        self.frames.connection().part_together();
        let said = poll_fn(|cx| self.frames.poll_flush(cx)).await.is_ok() && self.frames.connection().shutdown().await.is_ok();
        if said && matches!(self.end, Some(EndReason::Broke { .. })) {
            // Closing with unread bytes is a TCP reset, which would eat what was just said.
            drop(tokio::io::copy(self.frames.connection(), &mut tokio::io::sink()).await);
        }
    }

    /// Reads and drops until the relay's Close is there: true; or will never be.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match ready!(self.frames.poll_take(&mut self.incoming, cx)) {
                Found::Bytes | Found::Text(_) => self.incoming.clear(),
                Found::Close(_) => return Poll::Ready(true),
                Found::Broken(_) | Found::Gone(_) => return Poll::Ready(false),
            }
        }
    }

    async fn end_this_side(&mut self) {
        let done = async {
            if self.far_ended {
                return self.shutdown().await;
            }
            poll_fn(|cx| self.frames.poll_room(cx)).await?;
            self.send_close(CloseReason::Finished, "");
            (self.own_ended, self.is_closing) = (true, true);
            poll_fn(|cx| self.frames.poll_flush(cx)).await
        };
        if let Err(error) = done.await {
            tracing::debug!(%error, "the end of a leg could not be said");
        }
    }

    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<First, EndReason>> {
        loop {
            if let Some(end) = self.end.clone() {
                self.say_last(cx);
                return Poll::Ready(Err(end));
            }
            match ready!(self.poll_found(cx)) {
                Found::Bytes => self.broke(CloseReason::Protocol, "bytes before opened", cx),
                Found::Text(text) => match LegText::decode(&text) {
                    Ok(Decoded::Known(LegText::Opened(opened))) => return Poll::Ready(Ok(First::Opened(opened))),
                    Ok(Decoded::Known(LegText::Refused(refused))) => return Poll::Ready(Ok(First::Refused(Box::new(refused.problem)))),
                    Ok(Decoded::Known(LegText::End(_))) => self.broke(CloseReason::Protocol, "end before opened", cx),
                    Ok(Decoded::Unknown(_)) => {}
                    Err(error) => self.broke_text(&error, cx),
                },
                end @ (Found::Close(_) | Found::Broken(_) | Found::Gone(_)) => self.found_end(end, cx),
            }
        }
    }

    /// What comes next. Pending registers the waker for frames and for the relay's silence.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if self.end.is_some() {
                return Poll::Ready(Event::Over);
            }
            let found = match self.poll_found(cx) {
                Poll::Ready(found) => found,
                Poll::Pending => {
                    ready!(self.poll_silence(cx));
                    continue;
                }
            };
            match found {
                Found::Bytes if self.is_closing => self.incoming.clear(),
                Found::Bytes if self.far_ended => self.broke(CloseReason::Protocol, "bytes after end", cx),
                Found::Bytes => return Poll::Ready(Event::Bytes),
                Found::Text(text) => match LegText::decode(&text) {
                    Ok(Decoded::Known(LegText::End(_))) if !self.far_ended => {
                        self.far_ended = true;
                        return Poll::Ready(Event::End);
                    }
                    Ok(Decoded::Known(LegText::End(_)) | Decoded::Unknown(_)) => {}
                    Ok(Decoded::Known(LegText::Opened(_) | LegText::Refused(_))) => {
                        self.broke(CloseReason::Protocol, "a second verdict", cx);
                    }
                    Err(error) => self.broke_text(&error, cx),
                },
                end @ (Found::Close(_) | Found::Broken(_) | Found::Gone(_)) => self.found_end(end, cx),
            }
        }
    }

    /// Reads on to the end of the leg; bytes are dropped.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        loop {
            match ready!(self.poll_event(cx)) {
                Event::Bytes => self.incoming.clear(),
                Event::End => {}
                Event::Over => return Poll::Ready(self.end.clone().unwrap_or(EndReason::Finished)),
            }
        }
    }

    /// What comes next; bytes before anything that stands behind them.
    fn poll_found(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        let found = match self.next.take() {
            Some(found) => found,
            None => ready!(self.frames.poll_take(&mut self.incoming, cx)),
        };
        if self.incoming.is_empty() || matches!(found, Found::Bytes) {
            return Poll::Ready(found);
        }
        self.next = Some(found);
        Poll::Ready(Found::Bytes)
    }

    /// Notes what ends the leg.
    fn found_end(&mut self, end: Found, cx: &mut Context<'_>) {
        match end {
            Found::Close(close) => {
                self.end = Some(self.end_by(close.as_ref()));
                // The answer waits until `say_last`, or until the leg is parted with.
                match &close {
                    Some(close) => self.frames.push_close(close.code, &close.reason),
                    None => self.frames.push(Kind::Close, &[]),
                }
            }
            Found::Broken(error) => self.broke(error.reason(), &error.to_string(), cx),
            Found::Gone(error) => self.end = Some(EndReason::lost(error.as_ref())),
            Found::Bytes | Found::Text(_) => {}
        }
    }

    fn end_by(&self, close: Option<&Close>) -> EndReason {
        let (code, reason) = close.map_or((1005, String::new()), |close| (close.code, close.reason.clone()));
        match code {
            1000 | 1005 if !self.is_opened => EndReason::Closed { code, reason },
            // An `end` that is still in a buffer here was not sent.
            1000 | 1005 if self.own_ended && !self.is_unsaid() => EndReason::Finished,
            1000 | 1005 => EndReason::CutShort,
            code => EndReason::Closed { code, reason },
        }
    }

    /// Judges only when nothing can be read: what waits unread in the machine's buffers is life.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let heard = self.frames.connection().heard();
        let Some(silence) = self.silence.as_mut().filter(|_| !self.is_closing) else { return Poll::Pending };
        loop {
            ready!(silence.timer.as_mut().poll(cx));
            let due = heard + silence.limit;
            if due <= Instant::now() {
                self.end = Some(EndReason::Silent(silence.limit));
                return Poll::Ready(());
            }
            silence.timer.as_mut().reset(due);
        }
    }

    /// Has what the socket still has to say written, as far as it takes it: above all the answer to a Close, where nobody is about to part
    /// with the leg.
    pub(crate) fn say_last(&mut self, cx: &mut Context<'_>) {
        drop(self.frames.poll_flush(cx));
    }

    fn broke_text(&mut self, error: &MessageError, cx: &mut Context<'_>) {
        let close = match error {
            MessageError::TooLarge { .. } => CloseReason::TooBig,
            MessageError::NoType | MessageError::Field { .. } => CloseReason::Protocol,
        };
        self.broke(close, &error.to_string(), cx);
    }

    fn broke(&mut self, close: CloseReason, detail: &str, cx: &mut Context<'_>) {
        self.send_close(close, detail);
        self.end = Some(EndReason::Broke { close, detail: detail.to_owned() });
        self.say_last(cx); // the rest goes when the leg is parted with
    }

    fn send_close(&mut self, close: CloseReason, detail: &str) {
        let words = if detail.is_empty() { close.name().to_owned() } else { format!("{}: {detail}", close.name()) };
        self.frames.push_close(close.code(), &words);
    }

    /// Waits until bytes can be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.own_ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "this side of the leg was ended")));
        }
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.to_error()));
        }
        self.frames.poll_room(cx)
    }

    /// Sends what `source` has to say, at most 64 KiB, after [`Leg::poll_room`] was ready. Zero is its end.
    pub(crate) fn poll_send_from<S: AsyncRead + Unpin>(&mut self, source: &mut S, cx: &mut Context<'_>) -> Poll<Result<usize, Unsent>> {
        self.frames.poll_send(cx, |cx, payload| Pin::new(source).poll_read(cx, payload))
    }

    /// Sends a pong that nobody asked for, if there is room; where there is none, the bytes that are in its way say the same.
    pub(crate) fn poll_pong(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Ok(())) = self.frames.poll_room(cx) {
            self.frames.push(Kind::Pong, &[]);
            drop(self.frames.poll_flush(cx)); // the rest goes with what is said next
        }
    }

    /// Whether something of the stream was handed to the connection that it may not have written yet.
    pub(crate) fn is_unsaid(&self) -> bool {
        self.frames.is_unsaid()
    }

    /// Writes out all that was sent.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.end {
            Some(end) if self.is_unsaid() => Poll::Ready(Err(end.to_error())),
            Some(_) | None => self.frames.poll_flush(cx),
        }
    }
}

/// Says that this leg does not come again. Where it cannot be said without waiting, the stream's deadline says it.
impl Drop for Leg {
    fn drop(&mut self) {
        if !self.is_opened && self.end.is_none() {
            self.send_close(CloseReason::Reset, "");
            self.say_last(&mut Context::from_waker(Waker::noop()));
        }
    }
}
