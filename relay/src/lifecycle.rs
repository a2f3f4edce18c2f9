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
//! | draining | accept, so that legs can join | have been told `go_away`, and stay | new ones are refused; open ones run on |
//! | closing | stop | close with 1012 | are refused with `draining`, or cut with 1012 |

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

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
pub struct Lifecycle(Arc<watch::Sender<Phase>>);

impl Default for Lifecycle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Running)))
    }
}

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether new streams may begin.
    pub fn is_running(&self) -> bool {
        self.phase() == Phase::Running
    }

    /// Begins to drain. Does nothing in a later phase than running.
    pub fn drain(&self, until: Instant) {
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

    fn advance(&self, from: impl FnOnce(&Phase) -> bool, to: Phase) {
        self.0.send_if_modified(|phase| {
            let moves = from(phase);
            if moves {
                *phase = to;
            }
            moves
        });
    }

    async fn reached(&self, wanted: impl FnMut(&Phase) -> bool) {
        let mut phase = self.0.subscribe();
        // `self` holds the sender, so there is no other error to wait out.
        drop(phase.wait_for(wanted).await);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn phases_never_go_back() {
        let lifecycle = Lifecycle::default();
        assert!(lifecycle.is_running());
        let until = Instant::now() + Duration::from_secs(30);
        lifecycle.drain(until);
        lifecycle.drain(until + Duration::from_secs(1));
        assert_eq!(lifecycle.phase(), Phase::Draining { until }, "the first deadline stands");
        lifecycle.draining().await;
        lifecycle.close();
        lifecycle.drain(until);
        assert_eq!(lifecycle.phase(), Phase::Closing);
        lifecycle.draining().await;
        lifecycle.closing().await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_closing_is_not_woken_by_draining() {
        let lifecycle = Lifecycle::default();
        lifecycle.drain(Instant::now());
        tokio::select! {
            () = lifecycle.closing() => panic!("it drains"),
            () = lifecycle.draining() => {}
        }
    }
}
