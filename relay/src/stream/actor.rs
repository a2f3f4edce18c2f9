//! What one stream's task has in its hands, and what becomes of it once that is decided: the stream is carried or refused, and leaves its end
//! record.

use std::sync::Arc;
use std::time::Duration;

use moorline_proto::bounds::CLOSE_WITHIN;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, Cancel};
use moorline_proto::id::Feature;
use moorline_proto::leg::{LegText, Opened, Peer, Refused as RefusedText};
use moorline_proto::problem::{Problem, Timeline};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::idempotency::Held;
use super::refusal::Refused;
use super::{Ask, Decision, Desk, Event, Via, first_steps, since};
use crate::control::handle::{Command, DeviceHandle};
use crate::directory::Place;
use crate::splice::leg_end::LegEnd;
use crate::splice::{Leg, Rules, Side, SpliceEnd, splice};
use crate::stream::join::Seat;
use crate::stream::registry::{DevicePlace, Live, State};

/// A leg that was promised by a 101 comes within this, or not at all.
const PROMISED_WITHIN: Duration = Duration::from_secs(10);
/// The same, while the relay stops.
const STOPPING_WITHIN: Duration = Duration::from_secs(1);

/// One stream, from asked to over.
pub(super) struct Task {
    pub desk: Arc<Desk>,
    pub ask: Ask,
    pub seat: Seat<Event>,
    pub live: Live,
    pub inbox: mpsc::Receiver<Event>,
    pub decided: watch::Sender<Decision>,
    pub key: Option<Held>,
    pub timeline: Timeline,
    /// The caller's leg, once it has joined.
    pub caller: Option<Leg>,
    /// The device's leg, once it has joined.
    pub device: Option<Leg>,
    /// What the device said yes with.
    pub accepted: Option<Accept>,
    /// Whom the offer went to, as long as it can be taken back there.
    pub asked: Option<DeviceHandle>,
}

impl Task {
    pub(super) fn new(
        desk: Arc<Desk>,
        ask: Ask,
        seat: Seat<Event>,
        live: Live,
        inbox: mpsc::Receiver<Event>,
        decided: watch::Sender<Decision>,
        key: Option<Held>,
    ) -> Self {
        let timeline = first_steps(ask.since);
        Self { desk, ask, seat, live, inbox, decided, key, timeline, caller: None, device: None, accepted: None, asked: None }
    }

    /// Says `opened` and moves bytes until the stream is over.
    pub(super) async fn carry(mut self, _place: DevicePlace, stop: CancellationToken) {
        let (Some(device), Some(caller)) = (self.device.take(), self.caller.take()) else { return };
        self.seat.opened();
        if let Some(key) = &self.key {
            key.opened();
        }
        self.live.is(State::Opened);
        self.timeline.opened_ms = since(self.ask.since);
        // A leg that was promised before this moment comes too late: it is closed here, or by whoever brings it.
        self.inbox.close();
        while let Ok(event) = self.inbox.try_recv() {
            if let Event::Joined(_, leg) = event {
                self.dismiss(*leg, "the stream was opened without it");
            }
        }
        let ended = self.splice(device, caller, stop).await;
        let lasted = u64::try_from(self.ask.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.live.record(ended.result(), &self.timeline, lasted);
    }

    async fn splice(&self, mut device: Leg, mut caller: Leg, stop: CancellationToken) -> SpliceEnd {
        let (to_device, to_caller) = (self.opened(Side::Device), self.opened(Side::Caller));
        let said = tokio::join!(device.send(&to_device, CLOSE_WITHIN), caller.send(&to_caller, CLOSE_WITHIN));
        let rules = Rules { half_closed_idle: self.desk.ground.times.half_closed_idle };
        let (lost, remaining) = match said {
            (Ok(()), Ok(())) => {
                let (desk, name) = (&self.desk, self.ask.leave.device());
                let cut = async {
                    tokio::select! {
                        reason = self.live.cut() => reason,
                        () = stop.cancelled() => CloseReason::RelayDraining,
                    }
                };
                let orphaned = || !matches!(desk.ground.directory.find(name), Place::Here(_));
                let (end, farewell) = splice(device, caller, rules, self.live.traffic(), cut, orphaned).await;
                farewell.close(rules.half_closed_idle).await;
                return end;
            }
            (Err(_), _) => (Side::Device, caller),
            (Ok(()), Err(_)) => (Side::Caller, device),
        };
        remaining.close(CloseReason::PeerLost, "", CLOSE_WITHIN).await;
        SpliceEnd::By(lost, LegEnd::Lost)
    }

    fn opened(&self, side: Side) -> LegText {
        let accepted = self.accepted.as_ref();
        let offered = &self.ask.open.features;
        let features: Vec<Feature> =
            accepted.map_or_else(Vec::new, |accept| accept.features.iter().filter(|name| offered.contains(name)).cloned().collect());
        let (peer, data) = match side {
            Side::Device => (Peer::Caller(self.ask.caller.clone()), self.ask.open.data.clone()),
            Side::Caller => (Peer::Device { device: self.ask.leave.device().clone() }, accepted.and_then(|accept| accept.data.clone())),
        };
        LegText::Opened(Box::new(Opened {
            stream: self.live.facts().stream,
            service: self.ask.open.service.clone(),
            peer,
            features,
            data,
            ping_ms: u64::try_from(self.desk.ground.times.ping.as_millis()).unwrap_or(u64::MAX),
            timeline: self.timeline,
        }))
    }

    /// Tells everybody why there is no stream.
    pub(super) async fn refuse(mut self, refused: Refused, stop: CancellationToken) {
        let refused = self.with_last_seen(refused).await;
        let stream = self.live.facts().stream;
        if let (Some(code), Some(handle)) = (refused.cancel(), &self.asked)
            && let Err(error) = handle.send(Command::Cancel(Cancel { stream, code }))
        {
            debug!(%stream, %error, "the device could not be told that the offer is void");
        }
        // Refusals are not remembered.
        self.key = None;
        let mut problem = refused.problem();
        problem.stream = Some(stream);
        problem.timeline = Some(self.timeline);
        let lasted = u64::try_from(self.ask.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.live.record(refused.result(), &self.timeline, lasted);
        self.decided.send_replace(Decision::Refused(Box::new(problem.clone())));
        if let Some(leg) = self.device.take() {
            self.dismiss(leg, refused.result());
        }
        match (self.caller.take(), refused) {
            (None, Refused::CallerGone | Refused::CallerBroke { .. }) => {}
            (None, _) => self.tell_latecomers(problem, stop).await,
            (Some(leg), refused) => {
                // Both tokens die now, however long the goodbye takes.
                drop((self.seat, self.live));
                match refused {
                    Refused::CallerBroke { reason, words } => leg.close(reason, &words, CLOSE_WITHIN).await,
                    Refused::CallerGone => leg.close(CloseReason::Refused, "", CLOSE_WITHIN).await,
                    _ => tell(leg, &problem).await,
                }
            }
        }
    }

    async fn with_last_seen(&self, refused: Refused) -> Refused {
        match refused {
            Refused::Offline { device, .. } => {
                let record = self.desk.ground.registry.device(&device).await;
                let last_seen = record.ok().flatten().and_then(|record| record.last_seen);
                Refused::Offline { device, last_seen }
            }
            other => other,
        }
    }

    /// A caller whose leg is still on its way hears the refusal there: until its promised time, or its token's.
    async fn tell_latecomers(&mut self, problem: Problem, stop: CancellationToken) {
        let mut until = match self.ask.via {
            Via::Connect => Instant::now() + PROMISED_WITHIN,
            Via::Negotiation if !self.seat.caller_has_token() => return,
            Via::Negotiation => self.ask.since + self.desk.deadline(&self.ask) + self.desk.wait(&self.ask),
        };
        let mut stopping = false;
        loop {
            let event = tokio::select! {
                event = timeout_at(until, self.inbox.recv()) => event,
                () = stop.cancelled(), if !stopping => {
                    // A leg that was promised is a moment away, and is told even now.
                    let moment = if self.ask.via == Via::Connect { STOPPING_WITHIN } else { Duration::ZERO };
                    (stopping, until) = (true, until.min(Instant::now() + moment));
                    continue;
                }
            };
            match event {
                Ok(Some(Event::Joined(Side::Caller, leg))) => {
                    let problem = problem.clone();
                    self.desk.ground.tasks.spawn("closing", |_stop| async move { tell(*leg, &problem).await });
                    if self.ask.via == Via::Connect {
                        return;
                    }
                }
                Ok(Some(Event::Joined(Side::Device, leg))) => self.dismiss(*leg, &problem.code),
                Ok(Some(Event::Answered(_))) => {}
                Ok(Some(Event::CallerLost)) if self.ask.via == Via::Negotiation => {}
                Ok(Some(Event::CallerLost) | None) | Err(_) => return,
            }
        }
    }

    /// Closes a device leg whose stream did not come about.
    fn dismiss(&self, leg: Leg, words: &str) {
        let words = words.to_owned();
        self.desk.ground.tasks.spawn("closing", |_stop| async move { leg.close(CloseReason::Refused, &words, CLOSE_WITHIN).await });
    }
}

/// Says `refused` on a caller's leg and closes it.
async fn tell(mut leg: Leg, problem: &Problem) {
    let refused = LegText::Refused(Box::new(RefusedText { problem: problem.clone() }));
    if leg.send(&refused, CLOSE_WITHIN).await.is_ok() {
        leg.close(CloseReason::Refused, &problem.code, CLOSE_WITHIN).await;
    }
}
