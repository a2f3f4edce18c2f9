//! Wall time. Nothing else reads the system's clock. Durations and deadlines use `tokio::time`.

use std::time::SystemTime;

use moorline_proto::timestamp::Timestamp;
use tokio::time::Instant;

/// A source of wall time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Simulated { at: Timestamp, since: Instant },
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `at` now and advances with tokio's time, so that a test that pauses the one pauses the other.
    pub fn at(at: Timestamp) -> Self {
        Self(Source::Simulated { at, since: Instant::now() })
    }

    /// The current time.
    #[expect(clippy::disallowed_methods, reason = "everything else is given a Clock")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => SystemTime::now().into(),
            Source::Simulated { at, since } => {
                let passed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                Timestamp::from_millis(at.as_millis().saturating_add(passed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_set_clock_goes_on_with_tokios_time() {
        let clock = Clock::at(Timestamp::from_millis(5_000));
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(6_500));
    }
}
