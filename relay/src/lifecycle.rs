//! The phases in which a relay ends. Accept loops, control channels and streams each react to them in their own way.
//!
//! ```text
//!   Running ──▶ Draining{until} ──▶ Closing
//!      └──────────────────────────────▲
//! ```
//!
//! | phase | accept loops | control channels | streams |
//! | --- | --- | --- | --- |
//! | running | accept | take offers | are opened |
//! | draining | accept, so that legs can join | have been sent `go_away`, and stay | new ones are refused; open ones run on |
//! | closing | stop | close with 1012 | are refused with `draining`, or cut with 1012 |
//!
//! Idle legs are closed with 1012 as soon as the relay drains, and a leg whose stream finishes from then on is closed with 1000.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits::{RECONNECT_SPREAD_MAX, RECONNECT_SPREAD_MIN, RECONNECTS_PER_SECOND};

/// How far the relay is on its way to the end. Phases never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In service.
    Running,
    /// No new streams; what is open may finish.
    Draining {
        /// When the relay closes at the latest.
        until: Instant,
    },
    /// Everything ends now.
    Closing,
}

/// The phase of one relay. Clones share it.
#[derive(Clone, Debug)]
pub struct Lifecycle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    phase: watch::Sender<Phase>,
    /// Over which time devices come back, fixed when the relay begins to leave.
    reconnect_spread: OnceLock<Duration>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self(Arc::new(Inner { phase: watch::Sender::new(Phase::Running), reconnect_spread: OnceLock::new() }))
    }
}

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Whether new streams may begin.
    pub fn is_running(&self) -> bool {
        self.phase() == Phase::Running
    }

    /// Begins to drain, with so many devices to be sent away. Does nothing in a later phase than running.
    pub fn drain(&self, until: Instant, devices: usize) {
        let spread = Duration::from_secs_f64(devices as f64 / RECONNECTS_PER_SECOND).clamp(RECONNECT_SPREAD_MIN, RECONNECT_SPREAD_MAX);
        self.0.reconnect_spread.get_or_init(|| spread);
        self.advance(|phase| matches!(phase, Phase::Running), Phase::Draining { until });
    }

    /// Begins to close.
    pub fn close(&self) {
        self.advance(|phase| !matches!(phase, Phase::Closing), Phase::Closing);
    }

    /// Waits until the relay drains or closes. Cancel safe.
    pub async fn draining(&self) {
        self.reached(|phase| !matches!(phase, Phase::Running)).await;
    }

    /// Waits until the relay closes. Cancel safe.
    pub async fn closing(&self) {
        self.reached(|phase| matches!(phase, Phase::Closing)).await;
    }

    /// Over which time the devices of this relay come back, each at a moment of its own: the longer the more they are.
    pub fn reconnect_spread(&self) -> Duration {
        self.0.reconnect_spread.get().copied().unwrap_or(RECONNECT_SPREAD_MIN)
    }

    fn advance(&self, from: impl FnOnce(&Phase) -> bool, to: Phase) {
        self.0.phase.send_if_modified(|phase| {
            let moves = from(phase);
            if moves {
                *phase = to;
            }
            moves
        });
    }

    async fn reached(&self, wanted: impl FnMut(&Phase) -> bool) {
        let mut phase = self.0.phase.subscribe();
        // `self` holds the sender, so there is no other error to wait out.
        drop(phase.wait_for(wanted).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn phases_never_go_back() {
        let lifecycle = Lifecycle::default();
        assert!(lifecycle.is_running());
        let until = Instant::now() + Duration::from_secs(30);
        lifecycle.drain(until, 0);
        lifecycle.drain(until + Duration::from_secs(1), 0);
        assert_eq!(lifecycle.phase(), Phase::Draining { until }, "the first deadline applies");
        lifecycle.draining().await;
        lifecycle.close();
        lifecycle.drain(until, 0);
        assert_eq!(lifecycle.phase(), Phase::Closing);
        lifecycle.draining().await;
        lifecycle.closing().await;
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_closing_is_not_woken_by_draining() {
        let lifecycle = Lifecycle::default();
        lifecycle.drain(Instant::now(), 0);
        tokio::select! {
            () = lifecycle.closing() => panic!("it drains"),
            () = lifecycle.draining() => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_reconnect_delay_grows_with_the_number_of_devices() {
        let spread = |devices| {
            let lifecycle = Lifecycle::default();
            lifecycle.drain(Instant::now(), devices);
            lifecycle.drain(Instant::now(), 0);
            lifecycle.reconnect_spread()
        };
        let seconds = Duration::from_secs;
        assert_eq!([spread(0), spread(1_000), spread(15_000), spread(1_000_000)], [seconds(2), seconds(2), seconds(30), seconds(300)]);
    }
}
