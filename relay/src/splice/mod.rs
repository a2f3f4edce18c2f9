//! The byte path: moves bytes between the two legs of a stream, both ways, with half-close, and closes both legs with the right code.
//!
//! ```text
//!   caller leg ══▶ Direction to the device ══▶ device leg
//!   caller leg ◀══ Direction to the caller ◀══ device leg
//! ```
//!
//! One future drives both directions. Everything that can be read from one leg becomes one batch of frames for the other, written at once.
//! Nothing more is read until the batch is written: this is the backpressure. A batch is written as soon as nothing is left to be read, so
//! that no byte waits for the next one.
//!
//! A stream is finished when each side has said `end`, and `delivered` for the other side's `end`: only then both get 1000. A side that
//! closes with 1000 by itself wants nothing more; it is answered once the other side has said `delivered`.
//!
//! Owns: what the end of one leg means for the other. Does not own: who may have a stream and when it opens; the format of frames.

mod direction;
pub mod leg;
pub mod leg_end;
pub mod leg_keepalive;
mod leg_reader;
pub mod reuse;
mod scratch;
mod write_buffer;

use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::close::CloseReason;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::SPLICE_TICK_MIN;

use direction::{Broken, Direction};
pub use leg::{Leg, Watched};
use leg_end::LegEnd;

/// Which leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The device's.
    Device,
    /// The caller's.
    Caller,
}

impl Side {
    /// The opposite side.
    pub fn other(self) -> Self {
        match self {
            Self::Device => Self::Caller,
            Self::Caller => Self::Device,
        }
    }
}

/// Bytes that were moved each way, readable while the stream lives.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the caller to the device.
    pub to_device: AtomicU64,
    /// From the device to the caller.
    pub to_caller: AtomicU64,
}

/// How a splice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpliceEnd {
    /// Both sides sent and received everything, or one of them closed with 1000 and the other one received everything.
    Finished,
    /// A side closed with 1000, and did not say that it had received everything.
    Unconfirmed(Side),
    /// The leg of one side ended otherwise.
    By(Side, LegEnd),
    /// A side owed `end` or `delivered` and was silent for too long.
    Idle,
    /// Ended from outside, with this code.
    Cut(CloseReason),
}

impl SpliceEnd {
    /// The code and the detail with which the leg of `side` is closed.
    pub fn close_reason(&self, side: Side) -> (CloseReason, &str) {
        match self {
            Self::Finished | Self::Unconfirmed(_) => (CloseReason::Finished, ""),
            Self::Idle => (CloseReason::IdleTimeout, "half-closed and silent"),
            Self::Cut(reason) => (*reason, ""),
            Self::By(guilty, LegEnd::Broke(reason, detail)) if *guilty == side => (*reason, detail),
            Self::By(guilty, LegEnd::Lost) if *guilty != side => (CloseReason::PeerLost, ""),
            Self::By(..) => (CloseReason::Reset, ""),
        }
    }

    /// The result, as it is logged.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Finished => CloseReason::Finished.name(),
            Self::Unconfirmed(Side::Device) => "device_unconfirmed",
            Self::Unconfirmed(Side::Caller) => "caller_unconfirmed",
            Self::Idle => CloseReason::IdleTimeout.name(),
            Self::Cut(reason) => reason.name(),
            Self::By(Side::Device, LegEnd::Lost) => "device_lost",
            Self::By(Side::Caller, LegEnd::Lost) => "caller_lost",
            Self::By(Side::Device, LegEnd::Broke(..)) => "device_broke_protocol",
            Self::By(Side::Caller, LegEnd::Broke(..)) => "caller_broke_protocol",
            Self::By(Side::Device, _) => "device_reset",
            Self::By(Side::Caller, _) => "caller_reset",
        }
    }
}

/// The timeouts of a splice.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A side that owes `end` or `delivered`, and sends no frame for this long but answers to pings, ends the stream.
    pub half_closed_idle: Duration,
}

/// Moves bytes both ways until the stream ends. Both legs are still to be closed: that is the [`Farewell`].
///
/// `cut` ends it from outside; `orphaned` tells whether the device has no control channel.
///
/// # Cancel safety
/// Dropping the future drops both connections at once; bytes in flight are lost.
pub async fn splice(
    mut device: Box<Leg>,
    mut caller: Box<Leg>,
    rules: Rules,
    traffic: &Traffic,
    cut: impl Future<Output = CloseReason>,
    orphaned: impl Fn() -> bool,
) -> (SpliceEnd, Farewell) {
    let end = {
        let mut cut = pin!(cut);
        let mut timer = pin!(sleep_until(Instant::now()));
        let up = Direction::new(&mut caller, &mut device, &traffic.to_device);
        let down = Direction::new(&mut device, &mut caller, &traffic.to_caller);
        let mut run = Run { device: &mut device, caller: &mut caller, up, down };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(reason) = cut.as_mut().poll(cx) {
                return Poll::Ready(SpliceEnd::Cut(reason));
            }
            run.poll(&rules, &orphaned, timer.as_mut(), cx)
        })
        .await
    };
    let farewell = Farewell::new(device, caller, &end);
    (end, farewell)
}

/// The legs of a stream that has ended, each of which is owed a Close. A side that does not read delays the end of its own leg alone.
#[must_use = "dropping it drops the connections without a Close"]
#[derive(Debug)]
pub struct Farewell {
    device: Option<OwedClose>,
    caller: Option<OwedClose>,
    /// Both sides have sent and received everything.
    is_clean: bool,
}

/// A leg and the Close that it is owed.
#[derive(Debug)]
struct OwedClose {
    leg: Box<Leg>,
    reason: CloseReason,
    detail: String,
}

impl Farewell {
    /// For the legs of a stream that ended in this way.
    pub fn new(device: Box<Leg>, caller: Box<Leg>, end: &SpliceEnd) -> Self {
        let is_clean = *end == SpliceEnd::Finished && device.reader.has_finished() && caller.reader.has_finished();
        let reason = |leg: &Leg, other: &Leg, side| match end.close_reason(side) {
            // A side that closed with 1000 is told whether the other one has received everything.
            (CloseReason::Finished, _) if leg.is_done() && !other.reader.delivered => (CloseReason::Reset, "not delivered"),
            reason => reason,
        };
        let (to_device, to_caller) = (reason(&device, &caller, Side::Device), reason(&caller, &device, Side::Caller));
        let owed = |leg, (reason, detail): (CloseReason, &str)| Some(OwedClose { leg, reason, detail: detail.to_owned() });
        Self { device: owed(device, to_device), caller: owed(caller, to_caller), is_clean }
    }

    /// The leg of a side, if another stream may begin on it. It is not closed then.
    pub fn take_reusable(&mut self, side: Side) -> Option<Box<Leg>> {
        let owed = match side {
            Side::Device => &mut self.device,
            Side::Caller => &mut self.caller,
        };
        owed.take_if(|owed| self.is_clean && owed.leg.is_fit_for_reuse()).map(|owed| owed.leg)
    }

    /// Whether no leg is owed a Close.
    pub fn is_done(&self) -> bool {
        self.device.is_none() && self.caller.is_none()
    }

    /// Closes the legs with the code for the end of the stream, and waits for the answers: five seconds, or `patience` after 1000,
    /// which is sent behind everything that a slow reader has not read yet.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connections at once; bytes that the peers have not read are lost.
    pub async fn close(self, patience: Duration) {
        tokio::join!(close(self.device, patience), close(self.caller, patience));
    }
}

async fn close(owed: Option<OwedClose>, patience: Duration) {
    if let Some(OwedClose { leg, reason, detail }) = owed {
        leg.close(reason, &detail, patience).await;
    }
}

struct Run<'a> {
    device: &'a mut Leg,
    caller: &'a mut Leg,
    up: Direction<'a>,
    down: Direction<'a>,
}

impl Run<'_> {
    fn poll(&mut self, rules: &Rules, orphaned: &impl Fn() -> bool, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<SpliceEnd> {
        let now = Instant::now();
        if let Err(end) = self.poll_directions(now, cx) {
            return Poll::Ready(end);
        }
        if let Some(end) = self.finished() {
            return Poll::Ready(end);
        }
        if let Some(idle_at) = self.idle_at(rules)
            && idle_at < timer.deadline()
        {
            timer.as_mut().reset(idle_at);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(end) = self.on_tick(rules, orphaned, now, cx).or_else(|| self.finished()) {
                return Poll::Ready(end);
            }
            let next = self.device.next_tick().min(self.caller.next_tick());
            let next = self.idle_at(rules).map_or(next, |idle_at| next.min(idle_at));
            timer.as_mut().reset(next.max(now + SPLICE_TICK_MIN));
        }
        Poll::Pending
    }

    fn poll_directions(&mut self, now: Instant, cx: &mut Context<'_>) -> Result<(), SpliceEnd> {
        let by = |from: Side| {
            move |broken| match broken {
                Broken::From(end) => SpliceEnd::By(from, end),
                Broken::To(end) => SpliceEnd::By(from.other(), end),
            }
        };
        self.up.poll(self.caller, self.device, now, cx).map_err(by(Side::Caller))?;
        self.down.poll(self.device, self.caller, now, cx).map_err(by(Side::Device))?;
        // Pongs for pings that the second direction has just read.
        match self.device.poll_flush(cx) {
            Poll::Ready(Err(end)) if !self.device.reader.has_finished() => Err(SpliceEnd::By(Side::Device, end)),
            Poll::Ready(_) | Poll::Pending => Ok(()),
        }
    }

    /// How the stream ended, if nothing more is expected of either side.
    fn finished(&self) -> Option<SpliceEnd> {
        let (device, caller) = (&*self.device, &*self.caller);
        let owed = |leg: &Leg| leg.is_done() && leg.reader.end_passed_at.is_some() && !leg.reader.delivered;
        (device.is_through(caller) && caller.is_through(device)).then(|| match (owed(device), owed(caller)) {
            (true, _) => SpliceEnd::Unconfirmed(Side::Device),
            (false, true) => SpliceEnd::Unconfirmed(Side::Caller),
            (false, false) => SpliceEnd::Finished,
        })
    }

    /// When a side that owes something for the end of the stream has been silent for too long.
    fn idle_at(&self, rules: &Rules) -> Option<Instant> {
        let owed = [self.device.owes_since(self.caller), self.caller.owes_since(self.device)];
        owed.into_iter().flatten().min().map(|since| since + rules.half_closed_idle)
    }

    fn on_tick(&mut self, rules: &Rules, orphaned: &impl Fn() -> bool, now: Instant, cx: &mut Context<'_>) -> Option<SpliceEnd> {
        if self.up.is_blocked {
            note_blocked(self.caller, self.device, now);
        }
        if self.down.is_blocked {
            note_blocked(self.device, self.caller, now);
        }
        if let Err(end) = self.device.on_tick(orphaned(), now, cx) {
            return Some(SpliceEnd::By(Side::Device, end));
        }
        if let Err(end) = self.caller.on_tick(false, now, cx) {
            return Some(SpliceEnd::By(Side::Caller, end));
        }
        self.idle_at(rules).filter(|&idle_at| idle_at <= now).map(|_| SpliceEnd::Idle)
    }
}

/// A leg is not read while the other one takes no more bytes, and the other side cannot have what was not sent to it yet. Neither is silent.
fn note_blocked(from: &mut Leg, to: &mut Leg, now: Instant) {
    from.reading = false;
    (from.reader.last_active, to.reader.last_active) = (now, now);
}
