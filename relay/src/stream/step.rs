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
use crate::splice::{Leg, Side};
use crate::stream::actor::{Actor, Asked, Failed, Opened, Phase, Turn};
use crate::stream::handle::Event;
use crate::stream::join::LegOf;
use crate::stream::leg_close::close_unused;
use crate::stream::refusal::Refusal;
use crate::stream::request::Via;
use crate::stream::slots::DeviceSlot;
use crate::stream::status::Status;

impl Phase {
    /// The end of a stream that is not opened: its slots are given back, its offer can be taken back.
    fn fail(mut self, refusal: Refusal) -> Failed {
        Failed { refusal, channel: self.asked().and_then(|asked| asked.channel.take()) }
    }
}

impl Actor {
    /// The phase that follows.
    pub(super) fn step(&mut self, phase: Phase, turn: Turn) -> Result<Phase, Failed> {
        match turn {
            Turn::Event(event) => self.on_event(phase, event),
            Turn::LegEnded(Side::Caller, end) => self.on_caller_ended(phase, end),
            Turn::LegEnded(Side::Device, end) => self.on_device_ended(phase, end),
            Turn::DeviceAlive(alive) => Ok(self.on_device_alive(phase, alive)),
            Turn::ChannelClosed(closed) => self.on_channel_closed(phase, &closed),
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
            return Err(Failed { refusal: Refusal::TokenExpired, channel: None });
        }
        let deadline = self.core.deadline(&self.open);
        self.steps.set(|timeline, now| timeline.found_ms = now);
        let facts = self.listing.facts();
        let offer = Offer {
            stream: facts.stream,
            attempt: self.attempt,
            service: facts.service.clone(),
            url: Text::truncated(&leg_path(&self.core.node, &facts.stream)),
            token: self.listing.renew_device_token(self.attempt),
            expires_in_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            caller: self.caller_info(),
            data: self.open.data.clone(),
            features: self.open.features.clone(),
        };
        // From here on a change of the device's keys finds the stream; the task that waits for the channel's end checks it again.
        self.listing.set_device_key(Some(handle.about().principal.key_id));
        let (alive_sender, alive) = oneshot::channel();
        match handle.send(Command::Offer { offer: Box::new(offer), alive: alive_sender }) {
            Ok(()) | Err(SendError::Closed) => {}
            Err(SendError::Busy) => {
                let device = self.listing.facts().device.clone();
                return Err(Failed { refusal: Refusal::Unresponsive(device), channel: None });
            }
        }
        self.steps.set(|timeline, now| timeline.offered_ms = now);
        self.listing.publish(Status::Offered);
        Ok(Phase::Offered(Asked { slot, channel: Some(handle), until: Instant::now() + deadline, alive: Some(alive) }))
    }

    fn on_event(&mut self, phase: Phase, event: Option<Event>) -> Result<Phase, Failed> {
        match event {
            Some(Event::Joined(of, leg)) => {
                self.on_joined(&phase, of, leg);
                Ok(self.complete(phase))
            }
            Some(Event::CallerLost) => self.on_caller_ended(phase, LegEnd::Lost),
            Some(Event::Accepted(accept)) => Ok(self.on_accept(phase, accept)),
            Some(Event::Rejected(reject)) => self.on_reject(phase, reject),
            // The list of streams holds a sender for as long as the stream is listed.
            None => Err(phase.fail(Refusal::Draining)),
        }
    }

    fn on_accept(&mut self, phase: Phase, accept: Accept) -> Phase {
        match phase {
            Phase::Offered(asked) if accept.attempt == self.attempt => {
                self.steps.set(|timeline, now| (timeline.accepted_ms, timeline.dial_ms) = (now, accept.dial_ms));
                self.listing.publish(Status::Accepted);
                self.complete(Phase::Accepted(asked, accept))
            }
            // An answer to an earlier attempt, or a second one.
            phase => phase,
        }
    }

    fn on_reject(&mut self, mut phase: Phase, reject: Reject) -> Result<Phase, Failed> {
        let Some(asked) = phase.asked().filter(|_| reject.attempt == self.attempt) else { return Ok(phase) };
        asked.channel = None; // the device knows
        Err(phase.fail(Refusal::Rejected { code: reject.code, detail: reject.detail.map(|detail| detail.to_string()) }))
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
            Side::Caller => self.steps.set(|timeline, now| timeline.caller_joined_ms = now),
            Side::Device => self.steps.set(|timeline, now| timeline.device_joined_ms = now),
        }
        if let Some(before) = self.legs.side(of.side()).replace(leg) {
            close_unused(&self.core.tasks, before, CloseReason::Superseded, "a newer join took its place");
        }
    }

    /// Opened, once the device has accepted and both legs are there.
    fn complete(&mut self, phase: Phase) -> Phase {
        match phase {
            Phase::Accepted(asked, accept) => match (self.legs.caller.take(), self.legs.device.take()) {
                (Some(caller), Some(device)) => Phase::Opened(Box::new(Opened { slot: asked.slot, accept, caller, device })),
                (caller, device) => {
                    (self.legs.caller, self.legs.device) = (caller, device);
                    Phase::Accepted(asked, accept)
                }
            },
            phase => phase,
        }
    }

    fn on_device_alive(&mut self, mut phase: Phase, alive: bool) -> Phase {
        if let Some(asked) = phase.asked() {
            asked.alive = None;
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
        self.put_away(Side::Caller, &end);
        Ok(phase)
    }

    fn on_device_ended(&mut self, mut phase: Phase, end: LegEnd) -> Result<Phase, Failed> {
        // Whatever the code, as everywhere on legs.
        if matches!(end, LegEnd::Reset(_)) {
            if let Some(asked) = phase.asked() {
                asked.channel = None; // the device knows
            }
            return Err(phase.fail(Refusal::Rejected { code: RejectCode::Internal, detail: None }));
        }
        self.steps.set(|timeline, _| timeline.device_joined_ms = None);
        self.put_away(Side::Device, &end);
        Ok(phase)
    }

    fn put_away(&mut self, side: Side, end: &LegEnd) {
        let Some(leg) = self.legs.side(side).take() else { return };
        let (reason, detail) = match end {
            LegEnd::Broke(reason, detail) => (*reason, detail.as_str()),
            LegEnd::Done | LegEnd::Reset(_) | LegEnd::Lost => (CloseReason::Reset, ""),
        };
        close_unused(&self.core.tasks, leg, reason, detail);
    }

    /// A newer channel of the same start of the agent takes over its undecided offers. With any other, or none, nobody is there to decide: the
    /// device is waited for again while there is time for that. What was accepted stays accepted.
    fn on_channel_closed(&mut self, mut phase: Phase, closed: &ChannelClosed) -> Result<Phase, Failed> {
        let Some(asked) = phase.asked() else { return Ok(phase) };
        let Some(before) = asked.channel.take() else { return Ok(phase) };
        let principal = &before.about().principal;
        if matches!(closed, ChannelClosed::Superseded { by } if *by == principal.instance)
            && let Location::Here(newer) = self.core.directory.find(&principal.device)
            && newer.about().principal == *principal
        {
            asked.channel = Some(newer);
            return Ok(phase);
        }
        match phase {
            Phase::Offered(asked) => self.wait_again(asked),
            accepted => Ok(accepted),
        }
    }

    fn wait_again(&mut self, asked: Asked) -> Result<Phase, Failed> {
        drop(asked);
        let facts = self.listing.facts();
        let refuse = |refusal| Err(Failed { refusal, channel: None });
        if Instant::now() >= self.wait_until {
            return refuse(Refusal::Unresponsive(facts.device.clone()));
        }
        let slot = match self.core.streams.slots.waiting(facts.caller()) {
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
