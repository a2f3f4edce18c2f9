//! How many pings a WebSocket peer may send. Every ping must be answered, so a peer that sends nothing else still costs work.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::PINGS_PER_SECOND;

/// A window begins with the first ping after the end of the previous one.
const WINDOW: Duration = Duration::from_secs(1);

/// Counts the pings of one peer. Pure: the time is an argument.
#[derive(Debug)]
pub(crate) struct PingLimiter {
    window_start: Instant,
    count: u32,
}

/// The peer sent more pings than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {PINGS_PER_SECOND} pings a second")]
pub(crate) struct TooManyPings;

impl PingLimiter {
    /// A limiter that has seen no ping.
    pub(crate) fn new(now: Instant) -> Self {
        Self { window_start: now, count: 0 }
    }

    /// Counts one ping.
    ///
    /// # Errors
    /// [`TooManyPings`], if it is one too many in this window.
    pub(crate) fn count(&mut self, now: Instant) -> Result<(), TooManyPings> {
        if now.duration_since(self.window_start) >= WINDOW {
            (self.window_start, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count > PINGS_PER_SECOND { Err(TooManyPings) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_ping_too_many_in_a_second_is_refused_and_the_next_second_counts_anew() {
        let start = Instant::now();
        let mut limiter = PingLimiter::new(start);
        for _ in 0..PINGS_PER_SECOND {
            limiter.count(start + Duration::from_millis(999)).unwrap();
        }
        assert_eq!(limiter.count(start + Duration::from_millis(999)), Err(TooManyPings));
        assert_eq!(TooManyPings.to_string(), "more than 100 pings a second");
        for _ in 0..PINGS_PER_SECOND {
            limiter.count(start + WINDOW).unwrap();
        }
        assert_eq!(limiter.count(start + WINDOW), Err(TooManyPings));
    }
}
