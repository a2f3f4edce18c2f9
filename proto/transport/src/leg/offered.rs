//! A stream that was offered on an idle device leg, until the device has answered.
//!
//! ```text
//!   offer ─▶ bytes, end      held here until the answer
//!        ─▶ cancel, Close    seen by `withdrawn`
//!   accept ─▶ the leg is open, and what was held is read from it
//!   reject ─▶ what comes is dropped until `idle`
//! ```
//!
//! Does not own: the decision, and the connection to the target.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use moorline_proto::bounds::{EARLY_DATA_BYTES, LEG_BINARY_BYTES};
use moorline_proto::control::{Accept, CancelCode, Reject};
use moorline_proto::leg::{END_TEXT, LegText};
use moorline_proto::reuse::{LegOffer, ReuseText};
use tokio::time::{Sleep, sleep};

use super::frame_reader::{ReceiveBuffer, Received};
use super::receive::LegMessage;
use super::state::Keep;
use super::{EndReason, IdleLeg, Leg, Phase};

/// How long the pong to the ping behind an offer waits for the answer, to share its segment. Most targets are connected before; the relay waits
/// for a pong for two seconds at least.
const PONG_WAIT: Duration = Duration::from_millis(100);

/// A device leg with an offer that waits for its answer: [`OfferedLeg::accept`] or [`OfferedLeg::reject`].
///
/// Poll [`OfferedLeg::withdrawn`] meanwhile: the leg must be read. Dropping it closes the leg with 4001, which rejects the offer.
#[derive(Debug)]
#[must_use = "the relay waits for an answer to the offer"]
pub struct OfferedLeg {
    leg: Leg,
    offer: Box<LegOffer>,
    /// The caller's bytes so far.
    held: ReceiveBuffer,
    /// The caller's `end` came behind them.
    has_end: bool,
    is_cancelled: bool,
    /// Runs while the pong to the offer's ping waits for the answer to the offer.
    pong_timer: Option<Pin<Box<Sleep>>>,
}

/// Why an offer needs no decision any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// The relay withdrew it. It waits for a [`Reject`] with `internal`.
    Cancelled(CancelCode),
    /// The leg has ended.
    Ended(EndReason),
}

impl OfferedLeg {
    pub(super) fn new(mut leg: Leg, offer: Box<LegOffer>) -> Self {
        leg.stream.phase = Phase::Offered;
        leg.frames.hold_pongs(true);
        let pong_timer = Some(Box::pin(sleep(PONG_WAIT)));
        Self { leg, offer, held: ReceiveBuffer::default(), has_end: false, is_cancelled: false, pong_timer }
    }

    /// The offer.
    pub fn offer(&self) -> &LegOffer {
        &self.offer
    }

    /// Reads the leg until the offer needs no decision any more. The caller's bytes are held meanwhile, 64 KiB and one message at most.
    ///
    /// # Cancel safety
    /// Nothing is lost; it can be called again.
    pub async fn withdrawn(&mut self) -> Withdrawn {
        poll_fn(|cx| self.poll_withdrawn(cx)).await
    }

    fn poll_withdrawn(&mut self, cx: &mut Context<'_>) -> Poll<Withdrawn> {
        if self.pong_timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            self.release_pong();
        }
        loop {
            match ready!(self.leg.poll_message(cx)) {
                LegMessage::Over => return Poll::Ready(Withdrawn::Ended(self.leg.over(cx))),
                LegMessage::Bytes if self.has_end => self.leg.break_off("bytes after end", cx),
                LegMessage::Bytes => {
                    self.held.append(self.leg.incoming());
                    if self.held.len() > EARLY_DATA_BYTES + LEG_BINARY_BYTES {
                        self.leg.break_off("more early bytes than allowed", cx);
                    }
                }
                LegMessage::Stream(LegText::End(_)) => self.has_end = true,
                LegMessage::Reuse(ReuseText::Cancel(cancel)) if cancel.stream == self.offer.stream && !self.is_cancelled => {
                    self.is_cancelled = true;
                    return Poll::Ready(Withdrawn::Cancelled(cancel.code));
                }
                other @ (LegMessage::Stream(_) | LegMessage::Reuse(_)) => self.leg.out_of_place(&other, cx),
            }
        }
    }

    /// The pong goes with the next write.
    fn release_pong(&mut self) {
        self.pong_timer = None;
        self.leg.frames.hold_pongs(false);
    }

    /// Takes the stream. The leg is open at once: what the caller sent is read from it, and bytes may be written.
    pub fn accept(mut self, accept: Accept) -> Leg {
        self.release_pong();
        let Self { mut leg, offer, held, has_end, is_cancelled, .. } = self;
        if leg.stream.end.is_none() {
            leg.send_reuse(&accept.into());
            leg.stream.incoming = held;
            leg.stream.next = has_end.then(|| Received::Text(END_TEXT.to_owned()));
        }
        leg.stream.may_be_cancelled = !is_cancelled;
        leg.begin_open(offer.ping_ms);
        leg
    }

    /// Does not take the stream. Drops what the caller sent until the leg is idle again. It has no timeout of its own.
    ///
    /// # Errors
    /// Why the leg ended instead.
    ///
    /// # Cancel safety
    /// Dropping the future drops the leg.
    pub async fn reject(mut self, reject: Reject) -> Result<IdleLeg, EndReason> {
        self.held = ReceiveBuffer::default();
        self.release_pong();
        if self.leg.stream.end.is_none() {
            self.leg.send_reuse(&reject.into());
        }
        match poll_fn(|cx| self.poll_idle(cx)).await {
            Ok(keep) => Ok(self.leg.into_idle(keep)),
            Err(end) => {
                self.leg.complete_close().await;
                Err(end)
            }
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<Keep, EndReason>> {
        loop {
            match ready!(self.leg.poll_message(cx)) {
                LegMessage::Reuse(ReuseText::Idle(idle)) => return Poll::Ready(Ok(Keep::of(idle))),
                LegMessage::Over => return Poll::Ready(Err(self.leg.over(cx))),
                LegMessage::Bytes => self.leg.incoming().clear(),
                LegMessage::Stream(LegText::End(_)) => {}
                // It crossed the answer.
                LegMessage::Reuse(ReuseText::Cancel(_)) if !self.is_cancelled => self.is_cancelled = true,
                other @ (LegMessage::Stream(_) | LegMessage::Reuse(_)) => self.leg.out_of_place(&other, cx),
            }
        }
    }
}
