//! What arrives on a leg, and what it means for the leg's present stream.
//!
//! Does not own: the first message and idle legs ([`super::verdict`], [`super::idle`]), which read messages from here.

use std::task::{Context, Poll, ready};

use moorline_proto::bounds::LEG_ALIVE_MIN;
use moorline_proto::close::CloseReason;
use moorline_proto::frame::{Close, Kind};
use moorline_proto::leg::LegText;
use moorline_proto::message::{Decoded, MessageError};
use moorline_proto::reuse::ReuseText;
use moorline_proto::text::printable;
use tokio::time::Instant;

use super::frame_reader::Received;
use super::state::Keep;
use super::{EndReason, Leg, Phase};

/// Characters of a Close frame's reason: no frame holds more.
const CLOSE_REASON_CHARS: usize = 123;

/// What comes next on a leg. Bytes are in [`Leg::incoming`].
#[derive(Debug)]
pub(crate) enum LegEvent {
    Bytes,
    /// `end`, once.
    End,
    /// The stream has ended: see [`Leg::end_reason`]. Returned by every later poll too.
    Over,
}

/// What the relay sent, in any phase of a leg. Types of later versions are skipped.
#[derive(Debug)]
pub(super) enum LegMessage {
    /// In [`Leg::incoming`].
    Bytes,
    Stream(LegText),
    Reuse(ReuseText),
    /// As [`LegEvent::Over`].
    Over,
}

impl LegMessage {
    fn decode(text: &str) -> Result<Option<Self>, MessageError> {
        if let Decoded::Known(message) = LegText::decode(text)? {
            return Ok(Some(Self::Stream(message)));
        }
        Ok(match ReuseText::decode(text)? {
            Decoded::Known(message) => Some(Self::Reuse(message)),
            Decoded::Unknown(_) => None,
        })
    }

    /// For the reason of a Close.
    fn name(&self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Stream(text) => text.kind(),
            Self::Reuse(text) => text.kind(),
            Self::Over => "the end",
        }
    }
}

impl Leg {
    /// What comes next on an open leg. Pending registers the waker for frames and for the silence timer.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<LegEvent> {
        loop {
            match ready!(self.poll_message(cx)) {
                LegMessage::Over => return Poll::Ready(LegEvent::Over),
                LegMessage::Bytes if self.stream.close_sent => self.stream.incoming.clear(),
                LegMessage::Bytes if self.stream.far_ended => self.break_off("bytes after end", cx),
                LegMessage::Bytes => return Poll::Ready(LegEvent::Bytes),
                LegMessage::Stream(LegText::End(_)) if !self.stream.far_ended => {
                    self.stream.far_ended = true;
                    return Poll::Ready(LegEvent::End);
                }
                LegMessage::Stream(LegText::End(_)) => {}
                LegMessage::Stream(LegText::Delivered(_)) if self.stream.own_ended => self.stream.far_delivered = true,
                LegMessage::Stream(LegText::Delivered(_)) => self.break_off("delivered before end", cx),
                LegMessage::Stream(LegText::Opened(_) | LegText::Refused(_)) => self.break_off("a second verdict", cx),
                LegMessage::Reuse(ReuseText::Idle(idle)) if self.is_reusable && self.stream.has_finished() => {
                    self.stream.keep = Some(Keep::of(idle));
                    self.stream.end = Some(EndReason::Finished);
                }
                // It crossed this side's `accept`. The relay closes the leg.
                LegMessage::Reuse(ReuseText::Cancel(_)) if self.stream.may_be_cancelled => self.stream.may_be_cancelled = false,
                other @ LegMessage::Reuse(_) => self.out_of_place(&other, cx),
            }
        }
    }

    /// Reads to the end of the stream and discards bytes.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        loop {
            match ready!(self.poll_event(cx)) {
                LegEvent::Bytes => self.stream.incoming.clear(),
                LegEvent::End => {}
                LegEvent::Over => return Poll::Ready(self.stream.end.clone().unwrap_or(EndReason::Finished)),
            }
        }
    }

    /// What the relay sent, whatever the leg's phase.
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<LegMessage> {
        loop {
            if self.stream.end.is_some() {
                return Poll::Ready(LegMessage::Over);
            }
            let Poll::Ready(received) = self.poll_received(cx) else {
                ready!(self.poll_silence(cx));
                continue;
            };
            match received {
                Received::Bytes => return Poll::Ready(LegMessage::Bytes),
                Received::Text(text) => match LegMessage::decode(&text) {
                    Ok(Some(message)) => return Poll::Ready(message),
                    Ok(None) => {}
                    Err(error) => self.invalid_text(&error, cx),
                },
                end @ (Received::Close(_) | Received::Invalid(_) | Received::Disconnected(_)) => self.on_end(end, cx),
            }
        }
    }

    /// What comes next; bytes come before a message that arrived behind them.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        let received = match self.stream.next.take() {
            Some(received) => received,
            None => ready!(self.frames.poll_receive(&mut self.stream.incoming, cx)),
        };
        if self.stream.incoming.is_empty() || matches!(received, Received::Bytes) {
            return Poll::Ready(received);
        }
        self.stream.next = Some(received);
        Poll::Ready(Received::Bytes)
    }

    /// Records what ended the leg.
    fn on_end(&mut self, end: Received, cx: &mut Context<'_>) {
        match end {
            Received::Close(close) => {
                self.stream.end = Some(self.end_by(close.as_ref()));
                // The answer is flushed by `try_flush`, or when the leg is closed.
                match &close {
                    Some(close) => self.frames.push_close(close.code, &close.reason),
                    None => self.frames.push(Kind::Close, &[]),
                }
            }
            Received::Invalid(error) => self.protocol_error(error.reason(), &error.to_string(), cx),
            Received::Disconnected(error) => self.stream.end = Some(EndReason::lost(error.as_ref())),
            Received::Bytes | Received::Text(_) => {}
        }
    }

    fn end_by(&self, close: Option<&Close>) -> EndReason {
        let (code, reason) = close.map_or((1005, String::new()), |close| (close.code, printable(&close.reason, CLOSE_REASON_CHARS)));
        let is_open = self.stream.phase == Phase::Open;
        match code {
            // The answer to this side's Close says that the far side has everything, as `delivered` does.
            1000 if is_open && (self.stream.far_delivered || self.stream.close_sent) => EndReason::Finished,
            1000 if is_open => EndReason::CutShort,
            code => EndReason::Closed { code, reason },
        }
    }

    /// Called only when nothing can be read: unread data in the socket's buffer shows that the relay is alive.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.frames.awaits_pong() {
            self.stream.alive_timer = None;
        }
        if self.stream.alive_timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            self.stream.end = Some(EndReason::Silent(LEG_ALIVE_MIN));
            return Poll::Ready(());
        }
        let last_read = self.frames.connection().last_read();
        let Some(silence) = self.silence.as_mut().filter(|_| !self.stream.close_sent) else { return Poll::Pending };
        loop {
            ready!(silence.timer.as_mut().poll(cx));
            let due = last_read + silence.limit;
            if due <= Instant::now() {
                self.stream.end = Some(EndReason::Silent(silence.limit));
                return Poll::Ready(());
            }
            silence.timer.as_mut().reset(due);
        }
    }

    /// Breaks off over a message that this phase of the leg does not have, or that only a leg that is used again has.
    pub(super) fn out_of_place(&mut self, message: &LegMessage, cx: &mut Context<'_>) {
        let place = if self.is_reusable { "here" } else { "on a leg that is not used again" };
        self.break_off(&format!("no {} is due {place}", message.name()), cx);
    }

    /// Closes the leg because the relay broke the protocol.
    pub(super) fn break_off(&mut self, detail: &str, cx: &mut Context<'_>) {
        self.protocol_error(CloseReason::Protocol, detail, cx);
    }

    fn invalid_text(&mut self, error: &MessageError, cx: &mut Context<'_>) {
        let close = match error {
            MessageError::TooLarge { .. } => CloseReason::TooBig,
            MessageError::NoType | MessageError::Field { .. } => CloseReason::Protocol,
        };
        self.protocol_error(close, &error.to_string(), cx);
    }
}
