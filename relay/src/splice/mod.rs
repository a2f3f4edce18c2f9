//! The relay moving bytes between the two legs of a stream: both ways, half-close, ends and their reasons.
//!
//! ```text
//!   caller leg ══▶ Way to the device ══▶ device leg
//!   caller leg ◀══ Way to the caller ◀══ device leg
//! ```
//!
//! One future drives both ways. A piece that was read waits until the other leg takes it, and nothing more is read until then: that is
//! the backpressure. What was handed over is flushed as soon as no further piece is there to be read, so that a tail never waits.
//!
//! Owns: the order of pieces, what each leg's end means for the other. Does not own: who may have the stream, and when it opens.

pub mod leg;
pub mod piece;
pub mod pulse;

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::close::CloseReason;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;

pub use leg::Leg;
use piece::{Fate, Piece};

/// Pieces moved one way before the other way has its turn.
const TURN: usize = 32;

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
pub enum Ended {
    /// Both directions ended, or one side was done.
    Finished,
    /// A side's leg ended otherwise.
    By(Side, Fate),
    /// Half-closed and silent for too long.
    Idle,
    /// Cut from outside.
    Cut(CloseReason),
}

impl Ended {
    /// What the leg of `side` is told: a close code and words.
    pub fn verdict(&self, side: Side) -> (CloseReason, &str) {
        match self {
            Self::Finished => (CloseReason::Finished, ""),
            Self::Idle => (CloseReason::IdleTimeout, "half-closed and silent"),
            Self::Cut(reason) => (*reason, ""),
            Self::By(guilty, Fate::Broke(reason, words)) if *guilty == side => (*reason, words),
            Self::By(guilty, Fate::Lost) if *guilty != side => (CloseReason::PeerLost, ""),
            Self::By(..) => (CloseReason::Reset, ""),
        }
    }

    /// The word for logs.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Finished => CloseReason::Finished.name(),
            Self::Idle => CloseReason::IdleTimeout.name(),
            Self::Cut(reason) => reason.name(),
            Self::By(Side::Device, Fate::Lost) => "device_lost",
            Self::By(Side::Caller, Fate::Lost) => "caller_lost",
            Self::By(Side::Device, Fate::Broke(..)) => "device_broke_protocol",
            Self::By(Side::Caller, Fate::Broke(..)) => "caller_broke_protocol",
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

/// One direction of a stream.
#[derive(Default)]
struct Way {
    waiting: Option<Message>,
}

/// Moves bytes both ways until the stream is over, and closes both legs with what that means.
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
) -> Ended {
    let ended = {
        let mut cut = pin!(cut);
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut run = Run { device: &mut device, caller: &mut caller, up: Way::default(), down: Way::default(), last_byte: Instant::now() };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(reason) = cut.as_mut().poll(cx) {
                return Poll::Ready(Ended::Cut(reason));
            }
            run.poll(&rules, traffic, &orphaned, timer.as_mut(), cx)
        })
        .await
    };
    let (to_device, to_caller) = (ended.verdict(Side::Device), ended.verdict(Side::Caller));
    tokio::join!(
        device.close(to_device.0, to_device.1, rules.half_closed_idle),
        caller.close(to_caller.0, to_caller.1, rules.half_closed_idle),
    );
    ended
}

struct Run<'a> {
    device: &'a mut Leg,
    caller: &'a mut Leg,
    up: Way,
    down: Way,
    last_byte: Instant,
}

impl Run<'_> {
    fn poll(
        &mut self,
        rules: &Rules,
        traffic: &Traffic,
        orphaned: &impl Fn() -> bool,
        mut timer: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        let now = Instant::now();
        let up = self.up.poll(self.caller, self.device, &traffic.to_device, now, cx);
        let down = self.down.poll(self.device, self.caller, &traffic.to_caller, now, cx);
        if let Some(ended) = self.judge(up, down, now) {
            return Poll::Ready(ended);
        }
        if self.is_half_closed() && self.last_byte + rules.half_closed_idle < timer.deadline() {
            timer.as_mut().reset(self.last_byte + rules.half_closed_idle);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(ended) = self.beat(rules, orphaned, now, cx) {
                return Poll::Ready(ended);
            }
            let next = self.device.next_beat().min(self.caller.next_beat());
            let next = if self.is_half_closed() { next.min(self.last_byte + rules.half_closed_idle) } else { next };
            timer.as_mut().reset(next.max(now + Duration::from_millis(10)));
        }
        Poll::Pending
    }

    /// What the two ways' news mean for the stream.
    fn judge(&mut self, up: Poll<News>, down: Poll<News>, now: Instant) -> Option<Ended> {
        let delivered = self.up.waiting.is_none() && self.down.waiting.is_none();
        for (news, from) in [(up, Side::Caller), (down, Side::Device)] {
            let (guilty, fate) = match news {
                Poll::Ready(News::Moved) => {
                    self.last_byte = now;
                    continue;
                }
                Poll::Pending => continue,
                Poll::Ready(News::Done) => return Some(Ended::Finished),
                Poll::Ready(News::FromEnded(fate)) => (from, fate),
                Poll::Ready(News::ToLost(fate)) => (from.other(), fate),
            };
            // Once both ends were passed on, the result is 1000 for both, whatever follows.
            let finished = delivered && self.device.ended && self.caller.ended;
            return Some(if finished { Ended::Finished } else { Ended::By(guilty, fate) });
        }
        let flushed = !self.device.unflushed && !self.caller.unflushed;
        (delivered && flushed && self.device.ended && self.caller.ended).then_some(Ended::Finished)
    }

    fn is_half_closed(&self) -> bool {
        self.device.ended != self.caller.ended
    }

    fn beat(&mut self, rules: &Rules, orphaned: &impl Fn() -> bool, now: Instant, cx: &mut Context<'_>) -> Option<Ended> {
        // A leg whose pieces the other one does not take is not being read.
        self.caller.reading &= self.up.waiting.is_none();
        self.device.reading &= self.down.waiting.is_none();
        if let Err(fate) = self.device.beat(orphaned(), now, cx) {
            return Some(Ended::By(Side::Device, fate));
        }
        if let Err(fate) = self.caller.beat(false, now, cx) {
            return Some(Ended::By(Side::Caller, fate));
        }
        let waits = self.up.waiting.is_some() || self.down.waiting.is_some() || self.device.unflushed || self.caller.unflushed;
        if waits {
            self.last_byte = now;
        }
        let idle = self.is_half_closed() && now.duration_since(self.last_byte) >= rules.half_closed_idle;
        idle.then_some(Ended::Idle)
    }
}

/// What one way has to say for itself.
enum News {
    /// Something was moved, and there is no more for now.
    Moved,
    /// The leg that is read closed with 1000, and all that came before was handed over and flushed.
    Done,
    /// The leg that is read ended otherwise.
    FromEnded(Fate),
    /// The leg that is written to was lost.
    ToLost(Fate),
}

impl Way {
    /// Moves pieces until there are none, or the other leg takes none.
    fn poll(&mut self, from: &mut Leg, to: &mut Leg, count: &AtomicU64, now: Instant, cx: &mut Context<'_>) -> Poll<News> {
        let mut moved = false;
        for _ in 0..TURN {
            match to.poll_send(&mut self.waiting, now, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(fate)) => return Poll::Ready(News::ToLost(fate)),
                Poll::Pending => return if moved { Poll::Ready(News::Moved) } else { Poll::Pending },
            }
            match from.poll_piece(cx) {
                Poll::Ready(Ok(piece)) => {
                    moved = true;
                    if let Piece::Bytes(bytes) = &piece {
                        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    // A leg that is done is sent nothing more; what is still said to it is dropped.
                    self.waiting = (!to.is_over()).then(|| piece.into_message());
                }
                Poll::Ready(Err(Fate::Done)) if !from.ended => {
                    from.ended = true;
                    self.waiting = Some(Piece::End.into_message());
                }
                Poll::Ready(Err(Fate::Done)) => match to.poll_flush(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(News::Done),
                    Poll::Ready(Err(fate)) => return Poll::Ready(News::ToLost(fate)),
                    Poll::Pending => return Poll::Pending,
                },
                Poll::Ready(Err(fate)) => return Poll::Ready(News::FromEnded(fate)),
                Poll::Pending => {
                    return match to.poll_flush(cx) {
                        Poll::Ready(Err(fate)) => Poll::Ready(News::ToLost(fate)),
                        Poll::Ready(Ok(())) | Poll::Pending if moved => Poll::Ready(News::Moved),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
        // Enough for one turn: the other way is next, and then this one again.
        cx.waker().wake_by_ref();
        Poll::Ready(News::Moved)
    }
}
