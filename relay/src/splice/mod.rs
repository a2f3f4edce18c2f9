//! The relay moving bytes between the two legs of a stream: both ways, half-close, ends and their reasons.
//!
//! ```text
//!   caller leg ══▶ Direction to the device ══▶ device leg
//!   caller leg ◀══ Direction to the caller ◀══ device leg
//! ```
//!
//! One future drives both ways. What is there to be read from one leg becomes a batch of frames for the other, which goes in one write.
//! What its socket does not take waits, and nothing more is read until all of it is written: that is the backpressure. A batch ends where
//! nothing is left to be read, so that a tail never waits.
//!
//! Owns: what each leg's end means for the other. Does not own: who may have the stream, and when it opens; what frames are made of.

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
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Device => Self::Caller,
            Self::Caller => Self::Device,
        }
    }
}

/// Bytes that went each way, readable while the stream lives.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the caller to the device.
    pub to_device: AtomicU64,
    /// From the device to the caller.
    pub to_caller: AtomicU64,
}

/// Why a splice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpliceEnd {
    /// Both directions ended, or one side was done.
    Finished,
    /// A side's leg ended otherwise.
    By(Side, LegEnd),
    /// Half-closed and silent for too long.
    Idle,
    /// Cut from outside.
    Cut(CloseReason),
}

impl SpliceEnd {
    /// What the leg of `side` is told: a close code and words.
    pub fn verdict(&self, side: Side) -> (CloseReason, &str) {
        match self {
            Self::Finished => (CloseReason::Finished, ""),
            Self::Idle => (CloseReason::IdleTimeout, "half-closed and silent"),
            Self::Cut(reason) => (*reason, ""),
            Self::By(guilty, LegEnd::Broke(reason, words)) if *guilty == side => (*reason, words),
            Self::By(guilty, LegEnd::Lost) if *guilty != side => (CloseReason::PeerLost, ""),
            Self::By(..) => (CloseReason::Reset, ""),
        }
    }

    /// The word for logs.
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

/// What a splice keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Half-closed with no byte for this long, while nothing waits for delivery.
    pub half_closed_idle: Duration,
}

/// Moves bytes both ways until the stream is over. What both legs have still to be told is the [`Farewell`].
///
/// `cut` ends it from outside; `orphaned` says whether the device has no living control channel.
///
/// # Cancel safety
/// Dropping the future drops both connections at once; bytes in flight are lost.
pub async fn splice(
    mut device: Leg,
    mut caller: Leg,
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

/// The two legs of a stream that has ended, each with the Close that it is owed. A side that does not read holds up its own leg alone, and no
/// stream.
#[must_use = "both connections are dropped without a word when this is"]
#[derive(Debug)]
pub struct Farewell {
    device: Leg,
    caller: Leg,
    end: SpliceEnd,
}

impl Farewell {
    /// Of a stream that ended so.
    pub fn new(device: Leg, caller: Leg, end: SpliceEnd) -> Self {
        Self { device, caller, end }
    }

    /// Closes both legs with what the end means, and waits for their answers: after 1000, which stands behind all that a slow reader has not
    /// read yet, for `patience`.
    ///
    /// # Cancel safety
    /// Dropping the future drops both connections at once; what was not read is lost.
    pub async fn say(self, patience: Duration) {
        let (to_device, to_caller) = (self.end.verdict(Side::Device), self.end.verdict(Side::Caller));
        tokio::join!(self.device.close(to_device.0, to_device.1, patience), self.caller.close(to_caller.0, to_caller.1, patience),);
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
        // Pongs that the device's pings came to just now.
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
            timer.as_mut().reset(next.max(now + Duration::from_millis(10)));
        }
        Poll::Pending
    }

    /// What the news of legs that are read mean for the stream.
    fn outcome(&mut self, news: [(Poll<Progress>, Side); 3], now: Instant) -> Option<SpliceEnd> {
        let both_ended = self.device.reader.ended && self.caller.reader.ended;
        for (news, from) in news {
            let (side, end) = match news {
                Poll::Ready(Progress::Moved) => {
                    self.last_byte = now;
                    continue;
                }
                Poll::Pending => continue,
                Poll::Ready(Progress::Done) => return Some(SpliceEnd::Finished),
                Poll::Ready(Progress::FromEnded(end)) => (from, end),
                Poll::Ready(Progress::ToLost(end)) => (from.other(), end),
            };
            // Once both ends were passed on, the result is 1000 for both, whatever follows.
            return Some(if both_ended { SpliceEnd::Finished } else { SpliceEnd::By(side, end) });
        }
        (both_ended && !self.is_unflushed()).then_some(SpliceEnd::Finished)
    }

    /// Whether anything waits for delivery.
    fn is_unflushed(&self) -> bool {
        self.device.is_unflushed() || self.caller.is_unflushed()
    }

    fn is_half_closed(&self) -> bool {
        self.device.reader.ended != self.caller.reader.ended
    }

    fn on_tick(&mut self, rules: &Rules, orphaned: &impl Fn() -> bool, now: Instant, cx: &mut Context<'_>) -> Option<SpliceEnd> {
        // A leg whose bytes the other one does not take is not being read.
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
