//! How long to stay away after which trouble. Pure: randomness and time are arguments.

use std::time::Duration;

use moorline_proto::close::{CloseReason, ReconnectPolicy};
use rand::{Rng, RngExt};
use tokio::time::Instant;

/// First ceiling of the jitter.
const FIRST: Duration = Duration::from_secs(1);
/// Last ceiling of the jitter.
const LONGEST: Duration = Duration::from_secs(60);
/// A Retry-After is kept up to this.
const BUSY_LONGEST: Duration = Duration::from_secs(3600);
/// Online for this long, and the ceiling is the first one again.
const STEADY: Duration = Duration::from_secs(60);
/// After what looks like a bug or a wrong address.
const MISTAKE: Duration = Duration::from_secs(60);
/// An instance that was superseded and comes back within this time, and is superseded again, shares its identity.
const FLAPPING: Duration = Duration::from_secs(600);
/// The first pause of one that shares its identity; it doubles.
const DUPLICATE_FIRST: Duration = Duration::from_secs(60);
/// The longest pause of one that shares its identity.
const DUPLICATE_LONGEST: Duration = Duration::from_secs(3600);

/// Why the device is not online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Anything that time may mend: no way to the relay, a lost connection, 5xx, silence.
    Passing,
    /// 429 or 503, with its Retry-After.
    Busy(Option<Duration>),
    /// Another 4xx on the control request.
    Mistake,
    /// The channel was closed with a code.
    Closed(u16),
    /// Superseded by another start of an agent with this identity.
    SupersededByAnother,
}

/// What to do, and whether to say that an operator is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Stay away for this long.
    pub wait: Duration,
    /// What to say about it.
    pub because: Because,
}

/// What is to be said about a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// Nothing that does not pass.
    Ordinary,
    /// The relay does not take this device: somebody must add it, or its key.
    NotAdmitted,
    /// Two machines share this identity.
    DuplicateIdentity,
}

/// How often it went wrong lately.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
    superseded_at: Option<Instant>,
    duplicate_pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { attempts: 0, superseded_at: None, duplicate_pause: DUPLICATE_FIRST }
    }
}

impl Backoff {
    /// The device was online for so long.
    pub fn was_online(&mut self, lasted: Duration) {
        if lasted >= STEADY {
            self.attempts = 0;
        }
        if lasted >= DUPLICATE_LONGEST {
            self.duplicate_pause = DUPLICATE_FIRST;
        }
    }

    /// How long to stay away after `trouble` at `now`.
    pub fn pause(&mut self, trouble: &Trouble, now: Instant, rng: &mut impl Rng) -> Pause {
        let ordinary = |wait| Pause { wait, because: Because::Ordinary };
        match trouble {
            Trouble::Passing => ordinary(self.jitter(rng)),
            Trouble::Busy(Some(wait)) => ordinary((*wait).min(BUSY_LONGEST).mul_f64(rng.random_range(1.0..=1.5))),
            Trouble::Busy(None) => ordinary(self.jitter(rng)),
            Trouble::Mistake => ordinary(MISTAKE),
            Trouble::SupersededByAnother => self.superseded(now, rng),
            Trouble::Closed(code) => match CloseReason::from_code(*code).map(CloseReason::reconnect_policy) {
                Some(ReconnectPolicy::After(wait)) => ordinary(wait),
                Some(ReconnectPolicy::Rarely(wait)) => {
                    Pause { wait: wait.mul_f64(rng.random_range(0.5..=1.5)), because: Because::NotAdmitted }
                }
                Some(ReconnectPolicy::Backoff | ReconnectPolicy::UnlessSuperseded) | None => ordinary(self.jitter(rng)),
            },
        }
    }

    /// Full jitter: from nothing to a ceiling that doubles from 1 s to 60 s, so that a fleet does not return as one.
    fn jitter(&mut self, rng: &mut impl Rng) -> Duration {
        let ceiling = FIRST.saturating_mul(2_u32.saturating_pow(self.attempts)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(rng.random_range(0.0..=1.0))
    }

    /// Comes back once; whoever is superseded again within ten minutes is one of two with the same identity.
    fn superseded(&mut self, now: Instant, rng: &mut impl Rng) -> Pause {
        let before = self.superseded_at.replace(now);
        if before.is_none_or(|before| now.duration_since(before) >= FLAPPING) {
            return Pause { wait: self.jitter(rng), because: Because::Ordinary };
        }
        let wait = self.duplicate_pause;
        self.duplicate_pause = (wait * 2).min(DUPLICATE_LONGEST);
        // The pause itself does not make the next one look new.
        self.superseded_at = Some(now + wait);
        Pause { wait, because: Because::DuplicateIdentity }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(7)
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_minute_and_begin_anew_after_a_minute_online() {
        let (mut backoff, mut rng, now) = (Backoff::default(), rng(), Instant::now());
        for ceiling in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let pause = backoff.pause(&Trouble::Passing, now, &mut rng).wait;
            assert!(pause <= ceiling * S, "{pause:?} of at most {ceiling} s");
        }
        backoff.was_online(59 * S);
        let longest = (0..50).map(|_| backoff.pause(&Trouble::Passing, now, &mut rng).wait).max();
        assert!(longest > Some(30 * S), "a short visit changes nothing: {longest:?}");
        backoff.was_online(60 * S);
        assert!(backoff.pause(&Trouble::Passing, now, &mut rng).wait <= S);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_relay_says_about_coming_back_is_kept() {
        let (mut backoff, mut rng, now) = (Backoff::default(), rng(), Instant::now());
        let busy = backoff.pause(&Trouble::Busy(Some(30 * S)), now, &mut rng);
        assert!(busy.wait >= 30 * S && busy.wait <= 45 * S);
        assert_eq!(backoff.pause(&Trouble::Mistake, now, &mut rng).wait, 60 * S);
        assert_eq!(backoff.pause(&Trouble::Closed(4400), now, &mut rng).wait, 60 * S);
        for code in [4401, 4403, 4006] {
            let pause = backoff.pause(&Trouble::Closed(code), now, &mut rng);
            assert!(pause.wait >= 150 * S && pause.wait <= 450 * S && pause.because == Because::NotAdmitted, "{code}: {pause:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_machines_with_one_identity_stop_fighting() {
        let (mut backoff, mut rng, mut now) = (Backoff::default(), rng(), Instant::now());
        assert_eq!(backoff.pause(&Trouble::SupersededByAnother, now, &mut rng).because, Because::Ordinary, "it comes back once");
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            now += S;
            let pause = backoff.pause(&Trouble::SupersededByAnother, now, &mut rng);
            assert_eq!((pause.wait, pause.because), (minutes * 60 * S, Because::DuplicateIdentity));
            now += pause.wait;
        }
        backoff.was_online(3600 * S);
        now += 3600 * S;
        assert_eq!(backoff.pause(&Trouble::SupersededByAnother, now, &mut rng).because, Because::Ordinary);
    }
}
