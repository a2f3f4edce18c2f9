//! What a leg knows about its present stream, and how long the relay may be silent.
//!
//! A leg that is used again begins its next stream with a new [`StreamState`]: nothing of the one before can be left.

use std::pin::Pin;
use std::time::Duration;

use moorline_proto::reuse::Idle;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::EndReason;
use super::frame_reader::{ReceiveBuffer, Received};

/// Where a leg is between two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It belongs to a stream, or is to be idle, and the relay's first message has not come.
    Joining,
    /// Bytes flow.
    Open,
    /// It belongs to no stream.
    Idle,
    /// A stream was offered on it, and was not answered.
    Offered,
}

/// Everything that belongs to one stream.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) phase: Phase,
    /// Received bytes that have not been read.
    pub(super) incoming: ReceiveBuffer,
    /// The message that arrived behind those bytes.
    pub(super) next: Option<Received>,
    /// This side sent bytes.
    pub(super) has_sent: bool,
    pub(super) far_ended: bool,
    pub(super) own_ended: bool,
    /// This side said `delivered`.
    pub(super) own_delivered: bool,
    /// The far side said `delivered`: it has everything that this side sent.
    pub(super) far_delivered: bool,
    /// A Close 1000 was sent. The relay answers it once the far side has everything, however long that takes.
    pub(super) close_sent: bool,
    /// The relay may have withdrawn the offer before it received this side's answer.
    pub(super) may_be_cancelled: bool,
    /// Runs after an `ask` until its ping is answered: an idle leg may have died without a word.
    pub(super) alive_timer: Option<Pin<Box<Sleep>>>,
    /// The relay said `idle` behind the stream.
    pub(super) keep: Option<Keep>,
    pub(super) end: Option<EndReason>,
}

impl StreamState {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            incoming: ReceiveBuffer::default(),
            next: None,
            has_sent: false,
            far_ended: false,
            own_ended: false,
            own_delivered: false,
            far_delivered: false,
            close_sent: false,
            may_be_cancelled: false,
            alive_timer: None,
            keep: None,
            end: None,
        }
    }

    /// Whether both sides have ended, and both have everything: `idle` may follow.
    pub(super) fn has_finished(&self) -> bool {
        self.own_ended && self.far_ended && self.own_delivered && self.far_delivered && !self.close_sent
    }

    /// The state before `opened` behind an `ask`, whose ping must be answered in this time.
    pub(super) fn asked(answer: Duration) -> Self {
        Self { alive_timer: Some(Box::pin(sleep(answer))), ..Self::new(Phase::Joining) }
    }
}

/// How the relay keeps an idle leg.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// When it will close the leg.
    pub(super) until: Instant,
    /// The interval of its pings in milliseconds.
    pub(super) ping_ms: u64,
}

impl Keep {
    /// As the relay says.
    pub(super) fn of(idle: Idle) -> Self {
        Self { until: Instant::now() + Duration::from_millis(idle.keep_ms), ping_ms: idle.ping_ms }
    }
}

/// The longest silence allowed to the relay. The timer is re-armed when it fires, not on every frame.
#[derive(Debug)]
pub(super) struct Silence {
    pub(super) limit: Duration,
    pub(super) timer: Pin<Box<Sleep>>,
}

impl Silence {
    /// 2.5 intervals of the relay's pings.
    pub(super) fn of_pings(ping_ms: u64) -> Self {
        Self::after(Duration::from_millis(ping_ms) * 5 / 2)
    }

    pub(super) fn after(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(sleep_until(Instant::now() + limit)) }
    }
}
