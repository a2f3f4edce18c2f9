//! A leg between two streams: it belongs to none, and the relay keeps it for a while.
//!
//! It must be polled, so that pings are answered and its end is noticed. Dropping it closes it with 1000.
//!
//! Does not own: which idle legs are kept, and for how long.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker, ready};

use moorline_proto::bounds::LEG_ALIVE_MIN;
use moorline_proto::close::CloseReason;
use moorline_proto::frame::Kind;
use moorline_proto::reuse::{Ask, LegOffer, ReuseText};
use tokio::time::Instant;

use super::receive::LegMessage;
use super::state::{Keep, StreamState};
use super::{EndReason, Leg, OfferedLeg, Phase, Silence};

/// A leg that belongs to no stream.
#[derive(Debug)]
pub struct IdleLeg {
    leg: Leg,
    keep: Keep,
}

impl Leg {
    /// The same leg without a stream.
    pub(super) fn into_idle(mut self, keep: Keep) -> IdleLeg {
        *self.stream = StreamState::new(Phase::Idle);
        self.frames.begin_stream();
        self.silence.get_or_insert_with(|| Silence::of_pings(keep.ping_ms));
        IdleLeg { leg: self, keep }
    }

    /// Queues a text message and sends it as far as there is room.
    pub(super) fn send_reuse(&mut self, text: &ReuseText) {
        self.frames.push(Kind::Text, text.encode().as_bytes());
        self.try_flush(&mut Context::from_waker(Waker::noop()));
    }
}

impl IdleLeg {
    /// When the relay will close the leg.
    pub fn keep_until(&self) -> Instant {
        self.keep.until
    }

    /// For a caller: waits until the leg can be used no more, and returns why. The relay's Close is answered.
    ///
    /// # Cancel safety
    /// Nothing is lost; it can be called again.
    pub async fn ended(&mut self) -> EndReason {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// [`IdleLeg::ended`], for a caller that watches several.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        loop {
            match ready!(self.leg.poll_message(cx)) {
                LegMessage::Over => return Poll::Ready(self.leg.over(cx)),
                other @ (LegMessage::Bytes | LegMessage::Stream(_) | LegMessage::Reuse(_)) => self.leg.out_of_place(&other, cx),
            }
        }
    }

    /// For a caller: asks for a stream. The leg waits for `opened` then, and bytes may be sent before it. The `ask` goes with the next write:
    /// with the first bytes, if there are some, or as soon as the leg is read.
    ///
    /// A ping behind the `ask` shows whether the leg is alive: without an answer it ends as [`EndReason::Silent`] after 2 s.
    pub fn ask(mut self, ask: Ask) -> Leg {
        *self.leg.stream = StreamState::asked(LEG_ALIVE_MIN);
        self.leg.frames.push(Kind::Text, ReuseText::from(Box::new(ask)).encode().as_bytes());
        self.leg.frames.push_ping();
        self.leg
    }

    /// For a device: waits for a stream that is offered on the leg. The relay's Close is answered.
    ///
    /// # Errors
    /// Why the leg ended instead.
    ///
    /// # Cancel safety
    /// Dropping the future drops the leg, which closes it with 1000.
    pub async fn next_offer(mut self) -> Result<OfferedLeg, EndReason> {
        match poll_fn(|cx| self.poll_offer(cx)).await {
            Ok(offer) => Ok(OfferedLeg::new(self.leg, offer)),
            Err(end) => {
                self.leg.complete_close().await;
                Err(end)
            }
        }
    }

    fn poll_offer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<LegOffer>, EndReason>> {
        loop {
            match ready!(self.leg.poll_message(cx)) {
                LegMessage::Reuse(ReuseText::Offer(offer)) => return Poll::Ready(Ok(offer)),
                LegMessage::Over => return Poll::Ready(Err(self.leg.over(cx))),
                other @ (LegMessage::Bytes | LegMessage::Stream(_) | LegMessage::Reuse(_)) => self.leg.out_of_place(&other, cx),
            }
        }
    }

    /// Whether it owns a buffer, or its connection does.
    #[cfg(test)]
    pub(crate) fn owns_memory(&self) -> bool {
        self.leg.owns_memory()
    }

    /// Closes the leg with 1000, and waits at most 5 s for the relay's answer.
    pub async fn close(self) {
        self.leg.close_with(CloseReason::Finished).await;
    }
}
