//! How long to wait before something is tried again: every retry of a device and of a caller takes its pauses from here.
//!
//! A pause is random, so that many peers of one relay do not return together; its range grows with each attempt, up to a bound.
//! Does not own: what is worth another attempt, and for how long.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The pauses of one kind of attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// No pause is shorter.
    shortest: Duration,
    /// The longest first pause. It doubles with each further attempt.
    first: Duration,
    /// No pause is longer.
    longest: Duration,
}

impl Pauses {
    /// For a control channel. The machine may be offline for days.
    pub const CHANNEL: Self =
        Self { shortest: Duration::from_millis(100), first: Duration::from_secs(1), longest: Duration::from_secs(60) };
    /// For a leg, and for a request that somebody waits for.
    pub const REQUEST: Self =
        Self { shortest: Duration::from_millis(300), first: Duration::from_millis(600), longest: Duration::from_secs(5) };

    /// The longest pause.
    pub const fn longest(self) -> Duration {
        self.longest
    }
}

/// The pauses between the attempts of one series.
#[derive(Debug)]
pub struct Backoff {
    pauses: Pauses,
    attempts: u32,
}

impl Backoff {
    /// A series before its first pause.
    pub const fn new(pauses: Pauses) -> Self {
        Self { pauses, attempts: 0 }
    }

    /// The next pause.
    pub fn pause(&mut self, rng: &mut impl Rng) -> Duration {
        let Pauses { shortest, first, longest } = self.pauses;
        let ceiling = first.saturating_mul(2_u32.saturating_pow(self.attempts)).min(longest);
        self.attempts = self.attempts.saturating_add(1);
        rng.random_range(shortest..=ceiling)
    }

    /// Starts the series over: what follows is not the continuation of a failure.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// The shortest and the longest of the next pauses of many series.
    fn range(series: &mut [(Backoff, SmallRng)]) -> (Duration, Duration) {
        let pauses: Vec<_> = series.iter_mut().map(|(backoff, rng)| backoff.pause(rng)).collect();
        (*pauses.iter().min().unwrap(), *pauses.iter().max().unwrap())
    }

    #[test]
    fn pauses_spread_from_the_shortest_to_a_ceiling_that_doubles_up_to_the_longest() {
        for (pauses, ceilings_ms) in [
            (Pauses::CHANNEL, &[1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000][..]),
            (Pauses::REQUEST, &[600, 1_200, 2_400, 4_800, 5_000, 5_000]),
        ] {
            let mut series: Vec<_> = (0..400).map(|seed| (Backoff::new(pauses), SmallRng::seed_from_u64(seed))).collect();
            for &ceiling in ceilings_ms {
                let (ceiling, (shortest, longest)) = (Duration::from_millis(ceiling), range(&mut series));
                let tenth = (ceiling - pauses.shortest) / 10;
                assert!(longest <= ceiling && longest > ceiling - tenth, "{longest:?} of {ceiling:?}");
                assert!(shortest >= pauses.shortest && shortest < pauses.shortest + tenth, "{shortest:?} of {ceiling:?}");
            }
            series.iter_mut().for_each(|(backoff, _)| backoff.reset());
            assert!(range(&mut series).1 <= pauses.first);
        }
    }

    #[test]
    fn the_longest_pause_holds_however_many_attempts_there_were() {
        let mut backoff = Backoff { pauses: Pauses::CHANNEL, attempts: u32::MAX };
        assert!(backoff.pause(&mut SmallRng::seed_from_u64(7)) <= Pauses::CHANNEL.longest());
    }
}
