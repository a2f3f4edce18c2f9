//! One stream's task: one [`Phase`] at a time, and what it waits for there. What follows from what comes is in `step.rs` and `carry.rs`.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use moorline_proto::api::OpenStream;
use moorline_proto::control::{Accept, Attempt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::access::principal::DevicePrincipal;
use crate::access::revocation::Cut;
use crate::control::handle::{ChannelClosed, DeviceHandle};
use crate::core::Core;
use crate::limits::WATCHED_EXPIRY;
use crate::splice::{Leg, Side, Watched};
use crate::stream::handle::Event;
use crate::stream::idempotency::Reservation;
use crate::stream::leg_close::Kept;
use crate::stream::refusal::Refusal;
use crate::stream::registry::Listing;
use crate::stream::request::{Start, StreamRequest, Via};
use crate::stream::slots::{DeviceSlot, StreamSlot, UndecidedSlot, WaitingSlot};
use crate::stream::steps::Steps;

/// One stream, from its setup until nothing of it is left.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) core: Arc<Core>,
    pub(super) open: OpenStream,
    pub(super) via: Via,
    pub(super) listing: Listing,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) key: Option<Reservation>,
    pub(super) slot: StreamSlot,
    pub(super) undecided: Option<UndecidedSlot>,
    pub(super) legs: Legs,
    /// The caller asked on a leg that is used again.
    pub(super) is_asked: bool,
    pub(super) steps: Steps,
    /// Which offer of the stream is out; answers and device legs of another one count for nothing.
    pub(super) attempt: Attempt,
    /// To whom bytes of the caller went out on a device leg that was lost before its answer. Nobody else knows whether a target has them.
    pub(super) early_went_to: Option<DevicePrincipal>,
    /// Until when a device that is offline is waited for.
    pub(super) wait_until: Instant,
    /// When the caller's token ends.
    token_expires: Instant,
}

/// Where a stream stands, with all that it has there and nowhere else.
#[derive(Debug)]
pub(super) enum Phase {
    /// The device is offline and waited for.
    Waiting(#[expect(dead_code, reason = "held for its drop")] WaitingSlot),
    /// The device was offer.
    Offered(PendingOffer),
    /// The device accepted; a leg is missing.
    Accepted(PendingOffer, Box<Accept>),
    /// The device accepted and both legs are there.
    Opened(Box<Opened>),
}

/// The legs of a stream that is not opened.
#[derive(Debug, Default)]
pub(super) struct Legs {
    pub(super) caller: Option<Box<Leg>>,
    pub(super) device: Option<Box<Leg>>,
}

/// An offer that is out.
#[derive(Debug)]
pub(super) struct PendingOffer {
    pub(super) slot: DeviceSlot,
    /// The session on which it was made.
    pub(super) session: DeviceHandle,
    /// The channel that the answer comes from; none once that is lost and the device has accepted.
    pub(super) channel: Option<DeviceHandle>,
    /// The deadline.
    pub(super) until: Instant,
    /// Fires with the device's first frame after the offer.
    pub(super) alive: Option<oneshot::Receiver<()>>,
    /// It was made on the device leg, which was idle.
    pub(super) on_leg: Option<OnLeg>,
}

/// An offer on a device leg.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnLeg {
    /// Until when a frame must come on the leg; nothing once one has come.
    pub(super) silent_until: Option<Instant>,
}

/// What an opened stream has.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) slot: DeviceSlot,
    pub(super) session: DeviceHandle,
    /// The device knows that its leg is open: it accepted there.
    pub(super) accepted_on_leg: bool,
    pub(super) accept: Box<Accept>,
    pub(super) caller: Box<Leg>,
    pub(super) device: Box<Leg>,
}

/// Why a stream will not be.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) refusal: Refusal,
    /// Where the offer can be taken back, if it is on the control channel.
    pub(super) channel: Option<DeviceHandle>,
    /// Whose device leg it is, if the offer is on that: unanswered, or rejected.
    pub(super) on_leg: Option<DeviceHandle>,
}

/// What comes next for a stream that is not opened.
pub(super) enum Turn {
    Event(Option<Event>),
    Leg(Side, Watched),
    LegSilent,
    DeviceAlive(bool),
    ChannelClosed(ChannelClosed),
    DeviceOnline(DeviceHandle),
    Deadline,
    TokenExpired,
    Ping,
    Cut(Cut),
    Draining,
}

impl Actor {
    #[expect(clippy::too_many_arguments, reason = "the parts of one stream, brought together once")]
    pub(super) fn new(
        core: Arc<Core>,
        request: StreamRequest,
        listing: Listing,
        events: mpsc::Receiver<Event>,
        key: Option<Reservation>,
        (slot, undecided): (StreamSlot, UndecidedSlot),
        steps: Steps,
        wait: Duration,
    ) -> Self {
        let left = request.permit.basis().expires_at.as_millis().saturating_sub(core.clock.now().as_millis());
        let token_expires = Instant::now() + Duration::from_millis(left).min(WATCHED_EXPIRY);
        let StreamRequest { open, via, since, .. } = request;
        let (attempt, wait_until) = (Attempt::default(), since + wait);
        let legs = Legs::default();
        Self {
            core,
            open,
            via,
            listing,
            events,
            key,
            slot,
            undecided: Some(undecided),
            legs,
            is_asked: false,
            steps,
            attempt,
            early_went_to: None,
            wait_until,
            token_expires,
        }
    }

    /// With a caller's leg that is there from the beginning.
    pub(super) fn with_caller(mut self: Box<Self>, leg: Box<Leg>) -> Box<Self> {
        self.steps.set(|timeline, now| timeline.caller_joined_ms = now);
        (self.legs.caller, self.is_asked) = (Some(leg), true);
        self
    }

    /// Runs until nothing of the stream is left but the caller's leg, where that may be used again.
    pub(super) async fn run(mut self: Box<Self>, start: Start) -> Option<Kept> {
        match Box::pin(self.negotiate(start)).await {
            Ok(opened) => Box::pin(self.carry(opened)).await,
            Err(failed) => Box::pin(self.refuse(failed)).await,
        }
    }

    /// Runs until the device has accepted and both legs are there.
    async fn negotiate(&mut self, start: Start) -> Result<Opened, Failed> {
        let mut phase = match start {
            Start::Wait(slot) => Phase::Waiting(slot),
            Start::Offer(handle, slot) => self.offer(handle, slot)?,
        };
        loop {
            phase = match phase {
                Phase::Opened(opened) => return Ok(*opened),
                undecided => undecided,
            };
            match self.turn(&mut phase).await {
                Turn::Ping => self.legs.ping().await,
                turn => phase = self.step(phase, turn)?,
            }
        }
    }

    /// All of these can be dropped half-way without loss: events stay queued, legs hold what they read, the rest is state elsewhere.
    async fn turn(&mut self, phase: &mut Phase) -> Turn {
        let offer = phase.pending();
        let is_waiting = offer.is_none();
        let (deadline, channel, alive, silent) = match offer {
            Some(PendingOffer { until, channel, alive, on_leg, .. }) => {
                (*until, channel.as_ref(), alive.as_mut(), on_leg.and_then(|on_leg| on_leg.silent_until))
            }
            None => (self.wait_until, None, None, None),
        };
        let next_ping = self.legs.next_ping();
        let Self { core, listing, events, token_expires, legs: Legs { caller, device }, .. } = self;
        tokio::select! {
            biased; // what was decided outside comes first: it is why a channel closes when the relay leaves or the device is removed
            () = core.lifecycle.draining() => Turn::Draining,
            cut = listing.cut() => Turn::Cut(cut),
            event = events.recv() => Turn::Event(event),
            watched = watched(caller) => Turn::Leg(Side::Caller, watched),
            watched = watched(device) => Turn::Leg(Side::Device, watched),
            alive = first_frame(alive) => Turn::DeviceAlive(alive),
            closed = closed(channel) => Turn::ChannelClosed(closed),
            handle = core.directory.arrival(&listing.facts().device), if is_waiting => Turn::DeviceOnline(handle),
            () = sleep_until(*token_expires) => Turn::TokenExpired,
            () = sleep_until(deadline) => Turn::Deadline,
            () = sleep_until(silent.unwrap_or(deadline)), if silent.is_some() => Turn::LegSilent,
            () = sleep_until(next_ping.unwrap_or(deadline)), if next_ping.is_some() => Turn::Ping,
        }
    }

    /// Whether the caller's token has ended by now.
    pub(super) fn token_expired(&self) -> bool {
        Instant::now() >= self.token_expires
    }

    /// Waits until the caller's token ends. Cancel safe.
    pub(super) async fn token_ends(&self) {
        loop {
            let left = self.listing.facts().basis.expires_at.as_millis().saturating_sub(self.core.clock.now().as_millis());
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left).min(WATCHED_EXPIRY)).await;
        }
    }
}

impl Phase {
    /// The offer that is out, if there is one.
    pub(super) fn pending(&mut self) -> Option<&mut PendingOffer> {
        match self {
            Self::Waiting(_) | Self::Opened(_) => None,
            Self::Offered(offer) | Self::Accepted(offer, _) => Some(offer),
        }
    }
}

impl Legs {
    /// The leg of a side.
    pub(super) fn side(&mut self, side: Side) -> &mut Option<Box<Leg>> {
        match side {
            Side::Caller => &mut self.caller,
            Side::Device => &mut self.device,
        }
    }

    fn next_ping(&self) -> Option<Instant> {
        [&self.caller, &self.device].into_iter().flatten().map(|leg| leg.next_tick()).min()
    }

    /// Pings the legs that wait. One that is dead is found again by its watch.
    async fn ping(&mut self) {
        let now = Instant::now();
        for leg in [&mut self.caller, &mut self.device].into_iter().flatten() {
            let pinged = poll_fn(|cx| Poll::Ready(leg.on_tick(false, now, cx))).await;
            if let Err(end) = pinged {
                debug!(?end, "a leg that waits is dead");
            }
        }
    }
}

async fn watched(leg: &mut Option<Box<Leg>>) -> Watched {
    match leg {
        Some(leg) => leg.watch().await,
        None => pending().await,
    }
}

async fn first_frame(alive: Option<&mut oneshot::Receiver<()>>) -> bool {
    match alive {
        Some(alive) => alive.await.is_ok(),
        None => pending().await,
    }
}

async fn closed(channel: Option<&DeviceHandle>) -> ChannelClosed {
    match channel {
        Some(channel) => channel.closed().await,
        None => pending().await,
    }
}
