//! Wall time, the one place that asks the machine for it. Spans and deadlines are `tokio::time`'s matter.

use std::time::SystemTime;

use moorline_proto::timestamp::Timestamp;
use tokio::time::Instant;

/// Tells the time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Simulated { at: Timestamp, since: Instant },
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `at` now and goes on with tokio's time, so that it stands still and jumps where that does.
    pub fn at(at: Timestamp) -> Self {
        Self(Source::Simulated { at, since: Instant::now() })
    }

    /// The time.
    #[expect(clippy::disallowed_methods, reason = "everybody else is handed a Clock")]
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
