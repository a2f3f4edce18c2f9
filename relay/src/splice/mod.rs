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
//! Owns: what the end of one leg means for the other. Does not own: who may have a stream and when it opens; the format of frames.

mod direction;
pub mod leg;
pub mod leg_end;
pub mod leg_keepalive;
mod leg_reader;
mod scratch;
mod write_buffer;

use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::close::CloseReason;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::SPLICE_TICK_MIN;

use direction::{Direction, Progress};
pub use leg::Leg;
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
    /// Both directions ended, or one side closed with 1000.
    Finished,
    /// The leg of one side ended otherwise.
    By(Side, LegEnd),
    /// Half-closed without a byte for too long.
    Idle,
    /// Ended from outside, with this code.
    Cut(CloseReason),
}

impl SpliceEnd {
    /// The code and the detail with which the leg of `side` is closed.
    pub fn close_reason(&self, side: Side) -> (CloseReason, &str) {
        match self {
            Self::Finished => (CloseReason::Finished, ""),
            Self::Idle => (CloseReason::IdleTimeout, "half-closed without a byte"),
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
    /// Half-closed without a byte for this long, while nothing waits to be sent: the stream ends.
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
        let mut run = Run { device: &mut device, caller: &mut caller, up, down, last_byte: Instant::now() };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(reason) = cut.as_mut().poll(cx) {
                return Poll::Ready(SpliceEnd::Cut(reason));
            }
            run.poll(&rules, &orphaned, timer.as_mut(), cx)
        })
        .await
    };
    let farewell = Farewell::new(device, caller, end.clone());
    (end, farewell)
}

/// The two legs of a stream that has ended, each of which is owed a Close. A side that does not read delays the end of its own leg alone.
#[must_use = "dropping it drops both connections without a Close"]
#[derive(Debug)]
pub struct Farewell {
    device: Box<Leg>,
    caller: Box<Leg>,
    end: SpliceEnd,
}

impl Farewell {
    /// For the legs of a stream that ended in this way.
    pub fn new(device: Box<Leg>, caller: Box<Leg>, end: SpliceEnd) -> Self {
        Self { device, caller, end }
    }

    /// Closes both legs with the code for the end of the stream, and waits for the answers: five seconds, or `patience` after 1000,
    /// which is sent behind everything that a slow reader has not read yet.
    ///
    /// # Cancel safety
    /// Dropping the future drops both connections at once; bytes that the peers have not read are lost.
    pub async fn close(self, patience: Duration) {
        let Self { device, caller, end } = self;
        let (to_device, to_caller) = (end.close_reason(Side::Device), end.close_reason(Side::Caller));
        tokio::join!(device.close(to_device.0, to_device.1, patience), caller.close(to_caller.0, to_caller.1, patience));
    }
}

struct Run<'a> {
    device: &'a mut Leg,
    caller: &'a mut Leg,
    up: Direction<'a>,
    down: Direction<'a>,
    last_byte: Instant,
}

impl Run<'_> {
    fn poll(&mut self, rules: &Rules, orphaned: &impl Fn() -> bool, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<SpliceEnd> {
        let now = Instant::now();
        let up = self.up.poll(self.caller, self.device, now, cx);
        let down = self.down.poll(self.device, self.caller, now, cx);
        // Pongs for pings that the second direction has just read.
        let late = match self.device.poll_flush(cx) {
            Poll::Ready(Err(end)) => Poll::Ready(Progress::ToLost(end)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        };
        if let Some(ended) = self.outcome([(up, Side::Caller), (down, Side::Device), (late, Side::Caller)], now) {
            return Poll::Ready(ended);
        }
        if self.is_half_closed() && self.last_byte + rules.half_closed_idle < timer.deadline() {
            timer.as_mut().reset(self.last_byte + rules.half_closed_idle);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(ended) = self.on_tick(rules, orphaned, now, cx) {
                return Poll::Ready(ended);
            }
            let next = self.device.next_tick().min(self.caller.next_tick());
            let next = if self.is_half_closed() { next.min(self.last_byte + rules.half_closed_idle) } else { next };
            timer.as_mut().reset(next.max(now + SPLICE_TICK_MIN));
        }
        Poll::Pending
    }

    /// Whether the progress of the directions ends the stream.
    fn outcome(&mut self, progress: [(Poll<Progress>, Side); 3], now: Instant) -> Option<SpliceEnd> {
        let both_ended = self.device.reader.ended && self.caller.reader.ended;
        for (progress, from) in progress {
            let (side, end) = match progress {
                Poll::Ready(Progress::Moved) => {
                    self.last_byte = now;
                    continue;
                }
                Poll::Pending => continue,
                Poll::Ready(Progress::Done) => return Some(SpliceEnd::Finished),
                Poll::Ready(Progress::FromEnded(end)) => (from, end),
                Poll::Ready(Progress::ToLost(end)) => (from.other(), end),
            };
            // Once both ends were forwarded, the result is 1000 for both, whatever follows.
            return Some(if both_ended { SpliceEnd::Finished } else { SpliceEnd::By(side, end) });
        }
        (both_ended && !self.is_unflushed()).then_some(SpliceEnd::Finished)
    }

    /// Whether anything waits to be sent.
    fn is_unflushed(&self) -> bool {
        self.device.is_unflushed() || self.caller.is_unflushed()
    }

    fn is_half_closed(&self) -> bool {
        self.device.reader.ended != self.caller.reader.ended
    }

    fn on_tick(&mut self, rules: &Rules, orphaned: &impl Fn() -> bool, now: Instant, cx: &mut Context<'_>) -> Option<SpliceEnd> {
        // A leg is not read while the other one takes no more bytes.
        self.caller.reading &= !self.up.is_blocked;
        self.device.reading &= !self.down.is_blocked;
        if let Err(end) = self.device.on_tick(orphaned(), now, cx) {
            return Some(SpliceEnd::By(Side::Device, end));
        }
        if let Err(end) = self.caller.on_tick(false, now, cx) {
            return Some(SpliceEnd::By(Side::Caller, end));
        }
        if self.is_unflushed() {
            self.last_byte = now;
        }
        let idle = self.is_half_closed() && now.duration_since(self.last_byte) >= rules.half_closed_idle;
        idle.then_some(SpliceEnd::Idle)
    }
}
