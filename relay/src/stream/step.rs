//! From one phase to the next: what an answer, a leg, an end or a deadline means for a stream that is not opened.

use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, Offer, Reject, RejectCode};
use moorline_proto::names::leg_path;
use moorline_proto::text::Text;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::control::handle::{ChannelClosed, Command, DeviceHandle, SendError};
use crate::directory::Location;
use crate::splice::leg_end::LegEnd;
use crate::splice::{Leg, Side, Watched};
use crate::stream::actor::{Actor, Failed, Opened, PendingOffer, Phase, Turn};
use crate::stream::handle::Event;
use crate::stream::join::LegOf;
use crate::stream::leg_close::close_unused;
use crate::stream::refusal::Refusal;
use crate::stream::request::Via;
use crate::stream::slots::DeviceSlot;
use crate::stream::status::Status;

impl Phase {
    /// The end of a stream that is not opened: its slots are given back, its offer can be taken back.
    pub(super) fn fail(mut self, refusal: Refusal) -> Failed {
        let Some(offer) = self.pending() else { return Failed { refusal, channel: None, on_leg: None } };
        match offer.on_leg {
            Some(_) => Failed { refusal, channel: None, on_leg: Some(offer.session.clone()) },
            None => Failed { refusal, channel: offer.channel.take(), on_leg: None },
        }
    }
}

impl Actor {
    /// The phase that follows.
    pub(super) fn step(&mut self, phase: Phase, turn: Turn) -> Result<Phase, Failed> {
        match turn {
            Turn::Event(event) => self.on_event(phase, event),
            Turn::Leg(Side::Caller, Watched::Ended(end)) => self.on_caller_ended(phase, end),
            Turn::Leg(Side::Device, Watched::Ended(end)) => self.on_device_ended(phase, end),
            Turn::Leg(side, Watched::Said(said)) => self.on_said(phase, side, said),
            Turn::Leg(_, Watched::Early) => {
                self.pass_early();
                Ok(phase)
            }
            Turn::LegSilent => self.on_leg_silent(phase),
            Turn::DeviceAlive(alive) => Ok(self.on_device_alive(phase, alive)),
            Turn::ChannelClosed(closed) => self.on_channel_closed(phase, &closed),
            Turn::DeviceOnline(handle) if !self.may_get_early(&handle) => {
                Err(phase.fail(Refusal::Unresponsive(self.listing.facts().device.clone())))
            }
            Turn::DeviceOnline(handle) => match self.core.may_offer(&handle, &self.listing.facts().service) {
                Ok(slot) => self.offer(handle, slot),
                Err(refusal) => Err(phase.fail(refusal)),
            },
            Turn::Deadline => {
                let refusal = self.timed_out(&phase);
                Err(phase.fail(refusal))
            }
            Turn::TokenExpired => Err(phase.fail(Refusal::TokenExpired)),
            Turn::Cut(cut) => Err(phase.fail(Refusal::Cut(cut))),
            Turn::Draining => Err(phase.fail(Refusal::Draining)),
            Turn::Ping => Ok(phase),
        }
    }

    /// Sends the next attempt's offer.
    pub(super) fn offer(&mut self, handle: DeviceHandle, slot: DeviceSlot) -> Result<Phase, Failed> {
        if self.token_expired() {
            return Err(Failed { refusal: Refusal::TokenExpired, channel: None, on_leg: None });
        }
        let until = Instant::now() + self.core.deadline(&self.open);
        self.steps.set(|timeline, now| timeline.found_ms = now);
        // From here on a change of the device's keys finds the stream; the task that waits for the channel's end checks it again.
        self.listing.set_device_key(Some(handle.about().principal.key_id));
        match self.offer_on_leg(handle, slot, until) {
            Ok(offered) => Ok(offered),
            Err((handle, slot)) => self.offer_on_channel(handle, slot, until),
        }
    }

    /// Sends the next attempt's offer on the control channel. The stream must be open by `until`.
    pub(super) fn offer_on_channel(&mut self, handle: DeviceHandle, slot: DeviceSlot, until: Instant) -> Result<Phase, Failed> {
        let facts = self.listing.facts();
        let offer = Offer {
            stream: facts.stream,
            attempt: self.attempt,
            service: facts.service.clone(),
            url: Text::truncated(&leg_path(&self.core.node, &facts.stream)),
            token: self.listing.renew_device_token(self.attempt),
            expires_in_ms: millis_until(until),
            caller: self.caller_info(),
            data: self.open.data.clone(),
            features: self.open.features.clone(),
        };
        let (alive_sender, alive) = oneshot::channel();
        match handle.send(Command::Offer { offer: Box::new(offer), alive: alive_sender }) {
            Ok(()) | Err(SendError::Closed) => {}
            Err(SendError::Busy) => {
                let device = self.listing.facts().device.clone();
                return Err(Failed { refusal: Refusal::Unresponsive(device), channel: None, on_leg: None });
            }
        }
        self.steps.set(|timeline, now| timeline.offered_ms = now);
        self.listing.publish(Status::Offered);
        let session = handle.clone();
        Ok(Phase::Offered(PendingOffer { slot, session, channel: Some(handle), until, alive: Some(alive), on_leg: None }))
    }

    fn on_event(&mut self, phase: Phase, event: Option<Event>) -> Result<Phase, Failed> {
        match event {
            Some(Event::Joined(of, leg)) => {
                let phase = if of == LegOf::Caller { self.forget_caller(phase)? } else { phase };
                self.on_joined(&phase, of, leg);
                Ok(self.complete(phase))
            }
            Some(Event::CallerLost) => self.on_caller_ended(phase, LegEnd::Lost),
            // An answer on the channel to an offer on a leg is none.
            Some(Event::Accepted(_) | Event::Rejected(_)) if phase.is_on_leg() => Ok(phase),
            Some(Event::Accepted(accept)) => Ok(self.on_accept(phase, accept)),
            Some(Event::Rejected(reject)) => self.on_reject(phase, &reject),
            // The list of streams holds a sender for as long as the stream is listed.
            None => Err(phase.fail(Refusal::Draining)),
        }
    }

    pub(super) fn on_accept(&mut self, phase: Phase, accept: Box<Accept>) -> Phase {
        match phase {
            Phase::Offered(offer) if accept.attempt == self.attempt => {
                self.steps.set(|timeline, now| (timeline.accepted_ms, timeline.dial_ms) = (now, accept.dial_ms));
                self.listing.publish(Status::Accepted);
                self.complete(Phase::Accepted(offer, accept))
            }
            // An answer to an earlier attempt, or a second one.
            phase => phase,
        }
    }

    pub(super) fn on_reject(&mut self, mut phase: Phase, reject: &Reject) -> Result<Phase, Failed> {
        let Some(offer) = phase.pending().filter(|_| reject.attempt == self.attempt) else { return Ok(phase) };
        offer.channel = None; // the device knows
        Err(phase.fail(Refusal::Rejected { code: reject.code, detail: reject.detail.as_ref().map(ToString::to_string) }))
    }

    /// A second join takes the first one's place: a lossy link must not burn the stream. A device leg of another attempt is none of ours.
    fn on_joined(&mut self, phase: &Phase, of: LegOf, leg: Box<Leg>) {
        let is_current = match of {
            LegOf::Caller => true,
            LegOf::Device(attempt) => attempt == self.attempt && !matches!(phase, Phase::Waiting(_)),
        };
        if !is_current {
            return close_unused(&self.core.tasks, leg, CloseReason::Superseded, "the stream is offered again");
        }
        match of.side() {
            Side::Caller => {
                self.is_asked = false;
                self.steps.set(|timeline, now| timeline.caller_joined_ms = now);
            }
            Side::Device => self.steps.set(|timeline, now| timeline.device_joined_ms = now),
        }
        if let Some(before) = self.legs.side(of.side()).replace(leg) {
            close_unused(&self.core.tasks, before, CloseReason::Superseded, "a newer join took its place");
        }
        if phase.is_on_leg() {
            self.pass_early();
        }
    }

    /// Opened, once the device has accepted and both legs are there.
    fn complete(&mut self, phase: Phase) -> Phase {
        match phase {
            Phase::Accepted(offer, accept) => match (self.legs.caller.take(), self.legs.device.take()) {
                (Some(caller), Some(device)) => {
                    let PendingOffer { slot, session, on_leg, .. } = offer;
                    let accepted_on_leg = on_leg.is_some();
                    Phase::Opened(Box::new(Opened { slot, session, accepted_on_leg, accept, caller, device }))
                }
                (caller, device) => {
                    (self.legs.caller, self.legs.device) = (caller, device);
                    Phase::Accepted(offer, accept)
                }
            },
            phase => phase,
        }
    }

    fn on_device_alive(&mut self, mut phase: Phase, alive: bool) -> Phase {
        if let Some(offer) = phase.pending() {
            offer.alive = None;
        }
        if alive {
            self.steps.set(|timeline, now| timeline.device_alive_ms = now);
        }
        phase
    }

    fn on_caller_ended(&mut self, phase: Phase, end: LegEnd) -> Result<Phase, Failed> {
        if let (Via::Connect, LegEnd::Broke(reason, detail)) = (self.via, &end) {
            let refusal = Refusal::CallerBroke { reason: *reason, detail: detail.clone() };
            return Err(phase.fail(refusal));
        }
        // One that may come again: negotiated by `POST`, or lost with a key to find the stream by.
        let may_return = self.via == Via::Negotiation || (self.key.is_some() && end == LegEnd::Lost);
        if !may_return {
            return Err(phase.fail(Refusal::CallerGone));
        }
        self.steps.set(|timeline, _| timeline.caller_joined_ms = None);
        let phase = self.forget_caller(phase)?;
        self.close_ended(Side::Caller, &end);
        Ok(phase)
    }

    fn on_device_ended(&mut self, mut phase: Phase, end: LegEnd) -> Result<Phase, Failed> {
        // Whatever the code, as everywhere on legs.
        if matches!(end, LegEnd::Reset(_)) {
            if let Some(offer) = phase.pending() {
                offer.channel = None; // the device knows
            }
            return Err(phase.fail(Refusal::Rejected { code: RejectCode::Internal, detail: None }));
        }
        self.steps.set(|timeline, _| timeline.device_joined_ms = None);
        if phase.is_on_leg() {
            return self.on_offered_leg_lost(phase, &end);
        }
        self.close_ended(Side::Device, &end);
        Ok(phase)
    }

    pub(super) fn close_ended(&mut self, side: Side, end: &LegEnd) {
        let Some(leg) = self.legs.side(side).take() else { return };
        let (reason, detail) = match end {
            LegEnd::Broke(reason, detail) => (*reason, detail.as_str()),
            LegEnd::Done | LegEnd::Reset(_) | LegEnd::Lost => (CloseReason::Reset, ""),
        };
        close_unused(&self.core.tasks, leg, reason, detail);
    }

    /// A newer channel of the same start of the agent takes over its undecided offers. One that no frame followed is made again there: it may
    /// have been lost with the connection. With any other channel, or none, nobody is there to decide: the device is waited for again while there
    /// is time for that. What was accepted stays accepted.
    fn on_channel_closed(&mut self, mut phase: Phase, closed: &ChannelClosed) -> Result<Phase, Failed> {
        let Some(offer) = phase.pending() else { return Ok(phase) };
        let Some(before) = offer.channel.take() else { return Ok(phase) };
        if offer.on_leg.is_some() && matches!(phase, Phase::Offered(_)) {
            return self.on_offered_leg_lost(phase, &LegEnd::Lost);
        }
        let principal = &before.about().principal;
        let newer = match self.core.directory.find(&principal.device) {
            Location::Here(newer) if newer.about().principal == *principal => Some(newer),
            _ => None,
        };
        match (phase, newer.filter(|_| matches!(closed, ChannelClosed::Superseded { by } if *by == principal.instance))) {
            (Phase::Offered(offer), Some(newer)) if !self.was_offer_received() => {
                let PendingOffer { slot, until, .. } = offer;
                self.attempt = self.attempt.next();
                self.offer_on_channel(newer, slot, until)
            }
            (mut undecided, Some(newer)) => {
                if let Some(offer) = undecided.pending() {
                    offer.channel = Some(newer);
                }
                Ok(undecided)
            }
            (Phase::Offered(offer), None) => self.wait_again(offer),
            (accepted, None) => Ok(accepted),
        }
    }

    /// Whether the device has shown that it knows of the offer on the control channel.
    fn was_offer_received(&self) -> bool {
        self.legs.device.is_some() || self.steps.timeline().device_alive_ms.is_some()
    }

    pub(super) fn wait_again(&mut self, offer: PendingOffer) -> Result<Phase, Failed> {
        drop(offer);
        let facts = self.listing.facts();
        let refuse = |refusal| Err(Failed { refusal, channel: None, on_leg: None });
        if Instant::now() >= self.wait_until {
            return refuse(Refusal::Unresponsive(facts.device.clone()));
        }
        let slot = match self.core.streams.slots().waiting(facts.caller()) {
            Ok(slot) => slot,
            Err(exhausted) => return refuse(exhausted.into()),
        };
        // The device's leg belongs to the attempt that is lost.
        if let Some(leg) = self.legs.device.take() {
            close_unused(&self.core.tasks, leg, CloseReason::Superseded, "the stream is offered again");
        }
        self.steps.set(|timeline, _| {
            (timeline.offered_ms, timeline.device_alive_ms, timeline.device_joined_ms) = (None, None, None);
        });
        self.attempt = self.attempt.next();
        self.listing.set_device_key(None);
        self.listing.publish(Status::Waiting);
        Ok(Phase::Waiting(slot))
    }

    fn timed_out(&self, phase: &Phase) -> Refusal {
        let missing = match phase {
            Phase::Waiting(_) => return Refusal::Offline { device: self.listing.facts().device.clone(), last_seen: None },
            Phase::Offered(_) => "the device's answer",
            Phase::Accepted(..) | Phase::Opened(_) => match (&self.legs.device, &self.legs.caller) {
                (None, None) => "both legs",
                (None, Some(_)) => "the device's leg",
                (Some(_), _) => "the caller's leg",
            },
        };
        Refusal::TimedOut { within: self.core.deadline(&self.open), missing }
    }
}

/// Whole milliseconds from now on.
pub(super) fn millis_until(until: Instant) -> u64 {
    u64::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX)
}
