//! The relay's first message on a leg: the stream is open, or refused, or there is none yet.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use moorline_proto::leg::{LegText, Opened};
use moorline_proto::reuse::ReuseText;

use super::receive::LegMessage;
use super::state::Keep;
use super::{EndReason, IdleLeg, Leg, OpenError, Phase, Silence};

impl Leg {
    /// Waits for the relay's verdict. Call it once, before reading; writing before it is allowed, see the protocol.
    /// It has no timeout of its own: the caller enforces the handshake's deadline.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// Nothing is lost; it can be called again.
    pub async fn opened(&mut self) -> Result<Box<Opened>, OpenError> {
        poll_fn(|cx| self.poll_opened(cx)).await
    }

    /// [`Leg::opened`], for a caller that sends something meanwhile.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Opened>, OpenError>> {
        loop {
            match ready!(self.poll_message(cx)) {
                LegMessage::Stream(LegText::Opened(opened)) => {
                    self.begin_open(opened.ping_ms);
                    return Poll::Ready(Ok(opened));
                }
                LegMessage::Stream(LegText::Refused(refused)) => return Poll::Ready(Err(OpenError::Refused(Box::new(refused.problem)))),
                LegMessage::Bytes => self.break_off("bytes before opened", cx),
                LegMessage::Stream(LegText::End(_) | LegText::Delivered(_)) => self.break_off("end before opened", cx),
                other @ LegMessage::Reuse(_) => self.out_of_place(&other, cx),
                LegMessage::Over => return Poll::Ready(Err(self.over(cx).into())),
            }
        }
    }

    /// Bytes flow from here on, and the relay pings an idle leg this often.
    pub(super) fn begin_open(&mut self, ping_ms: u64) {
        self.stream.phase = Phase::Open;
        self.stream.alive_timer = None;
        self.silence = Some(Silence::of_pings(ping_ms));
    }

    /// Whether the relay granted that the leg is used again.
    pub fn is_reusable(&self) -> bool {
        self.is_reusable
    }

    /// Whether the relay says `idle` on the leg behind a refusal: it granted that the leg is used again, and nothing was sent.
    pub fn is_idle_after_refusal(&self) -> bool {
        self.is_reusable && self.stream.phase == Phase::Joining && !self.stream.has_sent && !self.stream.own_ended
    }

    /// Waits for `idle` as the first message of a leg that is opened idle, or behind a refusal ([`Leg::is_idle_after_refusal`]). It has no
    /// timeout of its own.
    ///
    /// # Errors
    /// Why the leg ended instead.
    ///
    /// # Cancel safety
    /// Dropping the future drops the leg.
    pub async fn idle(mut self) -> Result<IdleLeg, EndReason> {
        match poll_fn(|cx| self.poll_idle(cx)).await {
            Ok(keep) => Ok(self.into_idle(keep)),
            Err(end) => {
                self.complete_close().await;
                Err(end)
            }
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<Keep, EndReason>> {
        loop {
            match ready!(self.poll_message(cx)) {
                LegMessage::Reuse(ReuseText::Idle(idle)) if self.is_idle_after_refusal() => return Poll::Ready(Ok(Keep::of(idle))),
                LegMessage::Over => return Poll::Ready(Err(self.over(cx))),
                other @ (LegMessage::Bytes | LegMessage::Stream(_) | LegMessage::Reuse(_)) => self.out_of_place(&other, cx),
            }
        }
    }

    /// Why the leg ended. The answer to its Close is sent as far as there is room.
    pub(super) fn over(&mut self, cx: &mut Context<'_>) -> EndReason {
        self.try_flush(cx);
        self.stream.end.clone().unwrap_or(EndReason::Finished)
    }
}
