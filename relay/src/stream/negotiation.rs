//! From asked to both legs joined: the turns of one stream's negotiation, until it is agreed or refused.

use std::future::{pending, poll_fn};
use std::task::Poll;

use moorline_proto::control::{Offer, RejectCode};
use moorline_proto::names::leg_path;
use moorline_proto::text::Text;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::actor::Task;
use super::refusal::Refused;
use super::{Decision, Event, Start, Via, since};
use crate::control::handle::{ChannelClosed, Command, DeviceHandle, SendError};
use crate::control::session::Answer;
use crate::directory::Place;
use crate::splice::leg_end::LegEnd;
use crate::splice::{Leg, Side};
use crate::stream::join::TokenOf;
use crate::stream::registry::{DevicePlace, State};
use moorline_proto::close::CloseReason;

/// The negotiation of one stream.
pub(super) struct Negotiation<'a> {
    task: &'a mut Task,
    phase: Phase,
    /// Until when a device that is offline is waited for.
    wait_until: Instant,
}

enum Phase {
    /// Nobody was asked yet; the device is here.
    Ready { handle: DeviceHandle, place: DevicePlace },
    /// The device is offline and waited for.
    Waiting { _waiter: Option<OwnedSemaphorePermit> },
    /// The device was asked.
    Asked { place: DevicePlace, until: Instant, channel: Option<DeviceHandle>, heard: Option<oneshot::Receiver<()>> },
}

/// What came next.
enum Turn {
    Mail(Option<Event>),
    CallerLeg(LegEnd),
    DeviceLeg(LegEnd),
    Heard(bool),
    Channel(ChannelClosed),
    Arrived(DeviceHandle),
    Deadline,
    Beat,
    Cut(CloseReason),
}

impl<'a> Negotiation<'a> {
    pub(super) fn new(task: &'a mut Task, start: Start) -> Self {
        let wait_until = task.ask.since + task.desk.wait(&task.ask);
        let phase = match start.device {
            Some((handle, place)) => Phase::Ready { handle, place },
            None => Phase::Waiting { _waiter: start.waiter },
        };
        Self { task, phase, wait_until }
    }

    /// Runs until the device has accepted and both legs are there: the device's place is handed on.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) async fn run(mut self) -> Result<DevicePlace, Refused> {
        loop {
            self.phase = match self.phase {
                Phase::Ready { handle, place } => self.task.offer(handle, place)?,
                Phase::Asked { place, .. } if self.task.is_agreed() => return Ok(place),
                other => other,
            };
            let turn = self.turn().await;
            self.take(turn).await?;
        }
    }

    /// All of these can be dropped half-way without loss: mail stays queued, legs hold what they read, the rest is state elsewhere.
    async fn turn(&mut self) -> Turn {
        let task = &mut *self.task;
        let beat = task.next_tick();
        let (deadline, is_waiting, channel, heard) = match &mut self.phase {
            Phase::Asked { until, channel, heard, .. } => (*until, false, channel.as_ref(), heard.as_mut()),
            Phase::Ready { .. } | Phase::Waiting { .. } => (self.wait_until, true, None, None),
        };
        tokio::select! {
            event = task.inbox.recv() => Turn::Mail(event),
            fate = watched(&mut task.caller) => Turn::CallerLeg(fate),
            fate = watched(&mut task.device) => Turn::DeviceLeg(fate),
            heard = first_frame(heard) => Turn::Heard(heard),
            gone = ended(channel) => Turn::Channel(gone),
            handle = task.desk.ground.directory.arrival(task.ask.leave.device()), if is_waiting => Turn::Arrived(handle),
            reason = task.live.cut() => Turn::Cut(reason),
            () = sleep_until(deadline) => Turn::Deadline,
            () = sleep_until(beat.unwrap_or(deadline)), if beat.is_some() => Turn::Beat,
        }
    }

    async fn take(&mut self, turn: Turn) -> Result<(), Refused> {
        match turn {
            Turn::Mail(event) => self.task.take_mail(event),
            Turn::CallerLeg(fate) => self.task.caller_leg_ended(fate),
            Turn::DeviceLeg(fate) => self.task.device_leg_ended(fate),
            Turn::Heard(was_heard) => {
                if let Phase::Asked { heard, .. } = &mut self.phase {
                    *heard = None;
                }
                if was_heard {
                    self.task.timeline.device_alive_ms = since(self.task.ask.since);
                }
                Ok(())
            }
            Turn::Channel(gone) => self.channel_ended(&gone),
            Turn::Arrived(handle) => {
                let place = self.task.desk.may_offer(&handle, &self.task.ask.open.service)?;
                self.phase = Phase::Ready { handle, place };
                Ok(())
            }
            Turn::Deadline => Err(self.timed_out()),
            Turn::Cut(reason) => Err(Refused::Cut(reason)),
            Turn::Beat => {
                self.task.beat().await;
                Ok(())
            }
        }
    }

    fn timed_out(&self) -> Refused {
        let task = &self.task;
        let missing = match (&self.phase, &task.accepted, &task.device, &task.caller) {
            (Phase::Waiting { .. } | Phase::Ready { .. }, ..) => {
                return Refused::Offline { device: task.ask.leave.device().clone(), last_seen: None };
            }
            (_, None, ..) => "the device's answer",
            (_, _, None, None) => "both legs",
            (_, _, None, Some(_)) => "the device's leg",
            (_, _, Some(_), _) => "the caller's leg",
        };
        Refused::TimedOut { within: task.desk.deadline(&task.ask), missing }
    }

    /// A newer channel of the same start of the agent takes over its undecided offers; with any other, or none, nobody is there to
    /// decide: the device is waited for again while there is time for that. What was accepted stays accepted.
    fn channel_ended(&mut self, gone: &ChannelClosed) -> Result<(), Refused> {
        let Phase::Asked { channel, .. } = &mut self.phase else { return Ok(()) };
        let Some(before) = channel.take() else { return Ok(()) };
        // Whoever removes a device ends its streams and its channel: the former says why.
        if let Some(reason) = self.task.live.was_cut() {
            return Err(Refused::Cut(reason));
        }
        let device = &before.about().device;
        if matches!(gone, ChannelClosed::Superseded { by } if *by == before.about().instance)
            && let Place::Here(newer) = self.task.desk.ground.directory.find(device)
        {
            self.task.asked = Some(newer.clone());
            *channel = Some(newer);
            return Ok(());
        }
        self.task.asked = None;
        if self.task.accepted.is_some() {
            return Ok(());
        }
        if Instant::now() >= self.wait_until {
            return Err(Refused::Unresponsive(device.clone()));
        }
        self.task.live.is(State::Waiting);
        self.task.decided.send_replace(Decision::Waiting);
        self.phase = Phase::Waiting { _waiter: None };
        Ok(())
    }
}

impl Task {
    fn offer(&mut self, handle: DeviceHandle, place: DevicePlace) -> Result<Phase, Refused> {
        let facts = self.live.facts();
        let (service, stream) = (facts.service.clone(), facts.stream);
        let deadline = self.desk.deadline(&self.ask);
        self.timeline.found_ms = since(self.ask.since);
        let offer = Offer {
            stream,
            attempt: Default::default(),
            service,
            url: Text::truncated(&leg_path(&self.desk.ground.node, &stream)),
            token: self.seat.token(TokenOf::Device),
            expires_in_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            caller: self.ask.caller.clone(),
            data: self.ask.open.data.clone(),
            features: self.ask.open.features.clone(),
        };
        let (heard_by, heard) = oneshot::channel();
        match handle.send(Command::Offer { offer: Box::new(offer), heard: heard_by }) {
            Ok(()) | Err(SendError::ChannelClosed) => {}
            Err(SendError::Busy) => return Err(Refused::Unresponsive(handle.about().device.clone())),
        }
        self.timeline.offered_ms = since(self.ask.since);
        self.live.is(State::Offered);
        self.decided.send_replace(Decision::Offered);
        self.asked = Some(handle.clone());
        Ok(Phase::Asked { place, until: Instant::now() + deadline, channel: Some(handle), heard: Some(heard) })
    }

    fn is_agreed(&self) -> bool {
        self.accepted.is_some() && self.caller.is_some() && self.device.is_some()
    }

    fn take_mail(&mut self, event: Option<Event>) -> Result<(), Refused> {
        match event {
            Some(Event::Joined(Side::Caller, leg)) => {
                self.timeline.caller_joined_ms = since(self.ask.since);
                self.replace(Side::Caller, *leg);
            }
            Some(Event::Joined(Side::Device, leg)) => {
                self.timeline.device_joined_ms = since(self.ask.since);
                self.replace(Side::Device, *leg);
            }
            Some(Event::CallerLost) => return self.caller_leg_ended(LegEnd::Lost),
            Some(Event::Answered(Answer::Accept(accept))) if self.accepted.is_none() && self.asked.is_some() => {
                self.timeline.accepted_ms = since(self.ask.since);
                self.timeline.dial_ms = accept.dial_ms;
                self.accepted = Some(accept);
                self.live.is(State::Accepted);
                self.decided.send_replace(Decision::Accepted);
            }
            Some(Event::Answered(Answer::Accept(_))) => {}
            Some(Event::Answered(Answer::Reject(reject))) => {
                self.asked = None;
                return Err(Refused::Rejected { code: reject.code, detail: reject.detail.map(|detail| detail.to_string()) });
            }
            None => return Err(Refused::Cut(CloseReason::RelayDraining)),
        }
        Ok(())
    }

    /// A second join takes the first one's place: a lossy link must not burn the stream.
    fn replace(&mut self, side: Side, leg: Leg) {
        let before = match side {
            Side::Caller => self.caller.replace(leg),
            Side::Device => self.device.replace(leg),
        };
        if let Some(before) = before {
            let close = before.close(CloseReason::Superseded, "a newer join took its place", moorline_proto::bounds::CLOSE_TIMEOUT);
            self.desk.ground.tasks.spawn("closing", |_stop| close);
        }
    }

    fn caller_leg_ended(&mut self, fate: LegEnd) -> Result<(), Refused> {
        if let (Via::Connect, LegEnd::Broke(reason, words)) = (self.ask.via, &fate) {
            return Err(Refused::CallerBroke { reason: *reason, words: words.clone() });
        }
        // One that may come again: negotiated by `POST`, or lost with a key to find the stream by.
        let may_return = self.ask.via == Via::Negotiation || (self.key.is_some() && fate == LegEnd::Lost);
        if !may_return {
            return Err(Refused::CallerGone);
        }
        self.timeline.caller_joined_ms = None;
        let leg = self.caller.take();
        self.put_away(leg, &fate);
        Ok(())
    }

    fn device_leg_ended(&mut self, fate: LegEnd) -> Result<(), Refused> {
        // Whatever the code, as everywhere on legs.
        if matches!(fate, LegEnd::Reset(_)) {
            return Err(Refused::Rejected { code: RejectCode::Internal, detail: None });
        }
        self.timeline.device_joined_ms = None;
        let leg = self.device.take();
        self.put_away(leg, &fate);
        Ok(())
    }

    fn put_away(&self, leg: Option<Leg>, fate: &LegEnd) {
        let Some(leg) = leg else { return };
        let (reason, words) = match fate {
            LegEnd::Broke(reason, words) => (*reason, words.clone()),
            LegEnd::Done | LegEnd::Reset(_) | LegEnd::Lost => (CloseReason::Reset, String::new()),
        };
        let close = async move { leg.close(reason, &words, moorline_proto::bounds::CLOSE_TIMEOUT).await };
        self.desk.ground.tasks.spawn("closing", |_stop| close);
    }

    fn next_tick(&self) -> Option<Instant> {
        [&self.caller, &self.device].into_iter().flatten().map(Leg::next_tick).min()
    }

    /// Pings the legs that wait. One that is dead is found again by its watch.
    async fn beat(&mut self) {
        let now = Instant::now();
        for leg in [&mut self.caller, &mut self.device].into_iter().flatten() {
            let beaten = poll_fn(|cx| Poll::Ready(leg.on_tick(false, now, cx))).await;
            if let Err(fate) = beaten {
                debug!(?fate, "a leg that waits is dead");
            }
        }
    }
}

async fn watched(leg: &mut Option<Leg>) -> LegEnd {
    match leg {
        Some(leg) => leg.watch().await,
        None => pending().await,
    }
}

async fn first_frame(heard: Option<&mut oneshot::Receiver<()>>) -> bool {
    match heard {
        Some(heard) => heard.await.is_ok(),
        None => pending().await,
    }
}

async fn ended(channel: Option<&DeviceHandle>) -> ChannelClosed {
    match channel {
        Some(channel) => channel.gone().await,
        None => pending().await,
    }
}
