//! An offer on a device leg that was idle: made, answered there, or lost with the leg and made again on the control channel.

use moorline_proto::bounds::LEG_REQUEST_BYTES;
use moorline_proto::close::CloseReason;
use moorline_proto::reuse::{LegOffer, ReuseText};
use tokio::time::Instant;

use crate::control::handle::DeviceHandle;
use crate::directory::Location;
use crate::splice::Side;
use crate::splice::leg_end::LegEnd;
use crate::splice::reuse::Said;
use crate::stream::actor::{Actor, Failed, OnLeg, PendingOffer, Phase};
use crate::stream::leg_close::close_unused;
use crate::stream::refusal::Refusal;
use crate::stream::slots::DeviceSlot;
use crate::stream::status::Status;
use crate::stream::step::millis_until;

impl Phase {
    /// Whether the offer was made on the device leg.
    pub(super) fn is_on_leg(&self) -> bool {
        match self {
            Self::Waiting(_) | Self::Opened(_) => false,
            Self::Offered(offer) | Self::Accepted(offer, _) => offer.on_leg.is_some(),
        }
    }
}

impl Actor {
    /// Offers the stream on an idle leg of the device's session. Gives back what it was given where there is none, or the offer is too long.
    pub(super) fn offer_on_leg(
        &mut self,
        session: DeviceHandle,
        slot: DeviceSlot,
        until: Instant,
    ) -> Result<Phase, (DeviceHandle, DeviceSlot)> {
        let facts = self.listing.facts();
        let offer = LegOffer {
            stream: facts.stream,
            attempt: self.attempt,
            service: facts.service.clone(),
            expires_in_ms: millis_until(until),
            caller: self.caller_info(),
            data: self.open.data.clone(),
            features: self.open.features.clone(),
            ping_ms: u64::try_from(self.core.times.ping.as_millis()).unwrap_or(u64::MAX),
        };
        if ReuseText::from(Box::new(offer.clone())).encode().len() > LEG_REQUEST_BYTES {
            return Err((session, slot));
        }
        let Some(mut leg) = session.idle_legs().take() else { return Err((session, slot)) };
        let silent_until = Some(leg.push_offer(offer));
        self.legs.device = Some(leg);
        self.pass_early();
        self.steps.set(|timeline, now| timeline.offered_ms = now);
        self.listing.publish(Status::Offered);
        let on_leg = Some(OnLeg { silent_until });
        Ok(Phase::Offered(PendingOffer { slot, channel: Some(session.clone()), session, until, alive: None, on_leg }))
    }

    /// Passes what the caller has sent, and nobody has passed yet, on to the leg with the offer.
    pub(super) fn pass_early(&mut self) {
        if let (Some(caller), Some(device)) = (&mut self.legs.caller, &mut self.legs.device) {
            caller.pass_early_to(device);
        }
    }

    /// The device answers on its leg.
    pub(super) fn on_said(&mut self, mut phase: Phase, side: Side, said: Said) -> Result<Phase, Failed> {
        let (stream, attempt) = match &said {
            Said::Accept(accept) => (accept.stream, accept.attempt),
            Said::Reject(reject) => (reject.stream, reject.attempt),
            // A leg that belongs to a stream says no `ask`.
            Said::Ask(_) => return Ok(phase),
        };
        if side != Side::Device || !phase.is_on_leg() || (stream, attempt) != (self.listing.facts().stream, self.attempt) {
            let end = LegEnd::Broke(CloseReason::Protocol, "an answer to another offer".to_owned());
            return self.on_offered_leg_lost(phase, &end);
        }
        if let Some(on_leg) = phase.pending().and_then(|offer| offer.on_leg.as_mut()) {
            on_leg.silent_until = None;
        }
        match said {
            Said::Accept(accept) => {
                self.steps.set(|timeline, now| {
                    timeline.device_alive_ms = timeline.device_alive_ms.or(now);
                    timeline.device_joined_ms = now;
                });
                Ok(self.on_accept(phase, accept))
            }
            Said::Reject(reject) => self.on_reject(phase, &reject),
            Said::Ask(_) => Ok(phase),
        }
    }

    /// No frame came on the leg in time, or one did, which nobody was told.
    pub(super) fn on_leg_silent(&mut self, mut phase: Phase) -> Result<Phase, Failed> {
        let Some(on_leg) = phase.pending().and_then(|offer| offer.on_leg.as_mut()) else { return Ok(phase) };
        if self.legs.device.as_ref().is_some_and(|leg| leg.has_frame_since_ping()) {
            on_leg.silent_until = None;
            self.steps.set(|timeline, now| timeline.device_alive_ms = now);
            return Ok(phase);
        }
        self.on_offered_leg_lost(phase, &LegEnd::Lost)
    }

    /// The caller's leg goes, and what came on it is not to count: the device must not get it, and then what the next leg brings as well.
    pub(super) fn forget_caller(&mut self, phase: Phase) -> Result<Phase, Failed> {
        if !phase.is_on_leg() || !self.legs.caller.as_ref().is_some_and(|leg| leg.has_passed_early()) {
            return Ok(phase);
        }
        match phase {
            // The device has written it to its target by now.
            Phase::Accepted(..) => Err(phase.fail(Refusal::CallerGone)),
            offered => self.on_offered_leg_lost(offered, &LegEnd::Lost),
        }
    }

    /// The leg with the offer is of no use any more. Whether the device has accepted by then nobody knows: the offer is made again on the control
    /// channel, to the same start of the agent, so that it can tell. To another one only if no byte of the caller went out.
    pub(super) fn on_offered_leg_lost(&mut self, mut phase: Phase, end: &LegEnd) -> Result<Phase, Failed> {
        let had_bytes = self.legs.caller.as_ref().is_some_and(|leg| leg.has_passed_early());
        if let Some(offer) = phase.pending().filter(|_| had_bytes) {
            self.early_went_to = Some(offer.session.about().principal.clone());
        }
        if let Some(caller) = &mut self.legs.caller {
            caller.unpass_early();
        }
        match end {
            LegEnd::Lost => {
                if let Some(leg) = self.legs.device.take() {
                    close_unused(&self.core.tasks, leg, CloseReason::Superseded, "the stream is offered again");
                }
            }
            end => self.close_ended(Side::Device, end),
        }
        let device = self.listing.facts().device.clone();
        let unresponsive = Failed { refusal: Refusal::Unresponsive(device), channel: None, on_leg: None };
        let offer = match phase {
            Phase::Offered(offer) => offer,
            Phase::Accepted(..) | Phase::Waiting(_) | Phase::Opened(_) => return Err(unresponsive),
        };
        self.steps.set(|timeline, _| (timeline.device_alive_ms, timeline.device_joined_ms) = (None, None));
        let Some(session) = self.session_for_next(&offer.session) else { return self.wait_again(offer) };
        self.attempt = self.attempt.next();
        let PendingOffer { slot, until, .. } = offer;
        self.offer_on_channel(session, slot, until)
    }

    /// Whether bytes of the caller may have reached a target, although the stream is refused: they went out, and the device has not said that it
    /// dropped them.
    pub(super) fn target_may_have_bytes(&self, refusal: &Refusal) -> bool {
        let is_unanswered = !matches!(refusal, Refusal::Rejected { .. });
        self.early_went_to.is_some() || (is_unanswered && self.legs.caller.as_ref().is_some_and(|leg| leg.has_passed_early()))
    }

    /// Whether bytes of the caller may go to this session: nobody else may have them already.
    pub(super) fn may_get_early(&self, session: &DeviceHandle) -> bool {
        self.early_went_to.as_ref().is_none_or(|principal| *principal == session.about().principal)
    }

    /// The session that gets the next offer: the same one, or a newer one of the same start of the agent.
    fn session_for_next(&self, before: &DeviceHandle) -> Option<DeviceHandle> {
        if before.is_open() {
            return Some(before.clone());
        }
        let principal = &before.about().principal;
        match self.core.directory.find(&principal.device) {
            Location::Here(newer) if newer.about().principal == *principal => Some(newer),
            _ => None,
        }
    }
}
