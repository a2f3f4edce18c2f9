//! A leg between two streams: it becomes idle, a stream is offered on it, the offer is taken back.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::bounds::{CLOSE_TIMEOUT, LEG_ALIVE_MAX, LEG_ALIVE_MIN};
use moorline_proto::close::CloseReason;
use moorline_proto::control::Cancel;
use moorline_proto::reuse::{Idle, LegOffer, ReuseText};
use tokio::time::{Instant, timeout};

use super::{EarlyData, Leg, Watched};
use crate::splice::leg_end::LegEnd;
use crate::splice::reuse::{LegUse, Reuse, Said};

impl Leg {
    /// Whether its stream left nothing behind, so that another one may begin on it.
    pub(in crate::splice) fn is_fit_for_reuse(&self) -> bool {
        self.reuse.is_some() && self.end.is_none() && !self.closing && self.reader.has_finished()
    }

    /// Whether nothing came on it that another stream would have to forget: neither bytes nor text.
    pub fn is_clean(&self) -> bool {
        self.end.is_none() && !self.closing && self.early.size() == 0 && !self.reader.ended
    }

    /// Leaves its stream, and says so: the side has `keep` to begin another one, and is pinged every `ping`.
    ///
    /// # Errors
    /// The leg's [`LegEnd`]: it is lost, does not take the message within five seconds, or is inside a message.
    pub async fn become_idle(&mut self, keep: Duration, ping: Duration) -> Result<(), LegEnd> {
        let next = match self.reuse {
            Some(Reuse::Caller(_)) => LegUse::IdleCaller,
            Some(Reuse::Device) | None => LegUse::IdleDevice,
        };
        if let Err(end) = self.reader.pass_to(next, Instant::now()) {
            self.end_with(end.clone());
            return Err(end);
        }
        (self.early, self.holds_last_words) = (EarlyData::default(), false);
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let idle = Idle { keep_ms: millis(keep), ping_ms: millis(ping) };
        self.send_text(&ReuseText::from(idle).encode(), CLOSE_TIMEOUT).await
    }

    /// Watches an idle leg. Ready with what came; the waker is registered otherwise.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Watched> {
        match self.poll_ahead(cx) {
            Poll::Ready(Some(watched)) => Poll::Ready(watched),
            // Nothing is kept of an idle leg, so that there is never enough of it.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Queues an offer, and a ping behind it. Returns until when a frame must come: without one, the leg is dead.
    pub fn push_offer(&mut self, offer: LegOffer) -> Instant {
        let now = Instant::now();
        // An idle leg is inside no message: what it would belong to is not known.
        if let Err(end) = self.reader.pass_to(LegUse::Offered, now) {
            self.end_with(end);
        }
        self.reader.keepalive.on_sent(now);
        let round_trip = self.reader.keepalive.round_trip().unwrap_or_default();
        let ping = self.reader.keepalive.ping(now);
        let text = ReuseText::from(Box::new(offer)).encode();
        self.push(|batch| {
            batch.text(&text);
            batch.ping(&ping);
        });
        now + (4 * round_trip).clamp(LEG_ALIVE_MIN, LEG_ALIVE_MAX)
    }

    /// Whether a frame came after the last ping.
    pub fn has_frame_since_ping(&self) -> bool {
        self.reader.keepalive.has_frame_since_ping()
    }

    /// How its side broke the protocol, if it did.
    pub fn broken(&self) -> Option<(CloseReason, &str)> {
        match &self.end {
            Some(LegEnd::Broke(reason, detail)) => Some((*reason, detail)),
            Some(LegEnd::Done | LegEnd::Reset(_) | LegEnd::Lost) | None => None,
        }
    }

    /// Passes what came before `opened`, as far as it was not passed yet, on to a leg with an offer.
    pub fn pass_early_to(&mut self, device: &mut Self) {
        self.announces_early = true;
        let frames = self.early.batch.finish();
        device.push_early(&frames[self.early.passed..]);
        self.early.passed = frames.len();
        if self.reader.ended {
            device.reader.end_passed_at.get_or_insert(Instant::now());
        }
    }

    /// Whether a part of what came before `opened` was passed on.
    pub fn has_passed_early(&self) -> bool {
        self.early.passed > 0
    }

    /// What came before `opened` is passed to another leg from the beginning.
    pub fn unpass_early(&mut self) {
        self.early.passed = 0;
        self.announces_early = false;
    }

    /// Whether an offer on it is unanswered.
    pub fn is_offered(&self) -> bool {
        self.end.is_none() && self.reader.is_offered()
    }

    /// Whether it is a device's leg that belongs to no stream, and may take one: the offer on it was rejected.
    pub fn is_idle(&self) -> bool {
        self.end.is_none() && !self.closing && self.reader.is_idle_device()
    }

    /// Queues a `cancel`, whose answer is not waited for.
    pub fn push_cancel(&mut self, cancel: Cancel) {
        let text = ReuseText::from(cancel).encode();
        self.push(|batch| batch.text(&text));
    }

    /// Takes back an offer that is unanswered, and waits five seconds for the answer. Whether the leg may be idle again: the device rejected.
    pub async fn take_back(&mut self, cancel: Cancel) -> bool {
        if self.send_text(&ReuseText::from(cancel).encode(), CLOSE_TIMEOUT).await.is_err() {
            return false;
        }
        let answer = poll_fn(|cx| self.poll_idle(cx));
        matches!(timeout(CLOSE_TIMEOUT, answer).await, Ok(Watched::Said(Said::Reject(_))))
    }
}
