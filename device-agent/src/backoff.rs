//! How long to stay away after which cause. Pure: randomness and time are arguments.

use std::time::Duration;

use moorline_proto::close::{CloseReason, ReconnectPolicy};
use rand::{Rng, RngExt};
use tokio::time::Instant;

/// First ceiling of the jitter.
const FIRST_CEILING: Duration = Duration::from_secs(1);
/// Last ceiling of the jitter.
const LAST_CEILING: Duration = Duration::from_secs(60);
/// A Retry-After is kept up to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Online for this long, and the ceiling is the first one again.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// After what looks like a bug or a wrong address.
const CLIENT_ERROR_DELAY: Duration = Duration::from_secs(60);
/// An instance that was superseded and comes back within this time, and is superseded again, shares its identity.
const FLAPPING_WINDOW: Duration = Duration::from_secs(600);
/// The first pause of one that shares its identity; it doubles.
const DUPLICATE_FIRST_DELAY: Duration = Duration::from_secs(60);
/// The longest pause of one that shares its identity.
const DUPLICATE_MAX_DELAY: Duration = Duration::from_secs(3600);

/// Why the device is not online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisconnectCause {
    /// Anything that time may mend: no way to the relay, a lost connection, 5xx, silence.
    Transient,
    /// 429 or 503, with its Retry-After.
    Overloaded(Option<Duration>),
    /// Another 4xx on the control request.
    ClientError,
    /// The channel was closed with a code.
    Closed(u16),
    /// Superseded by another start of an agent with this identity.
    SupersededByOther,
}

/// What to do, and whether to say that an operator is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Stay away for this long.
    pub after: Duration,
    /// What to say about it.
    pub reason: RetryReason,
}

/// What is to be said about a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// Nothing that does not pass.
    Transient,
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
    duplicate_delay: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { attempts: 0, superseded_at: None, duplicate_delay: DUPLICATE_FIRST_DELAY }
    }
}

impl Backoff {
    /// The device was online for so long.
    pub fn was_online(&mut self, lasted: Duration) {
        if lasted >= STABLE_AFTER {
            self.attempts = 0;
        }
        if lasted >= DUPLICATE_MAX_DELAY {
            self.duplicate_delay = DUPLICATE_FIRST_DELAY;
        }
    }

    /// How long to stay away after `cause` at `now`.
    pub fn next(&mut self, cause: &DisconnectCause, now: Instant, rng: &mut impl Rng) -> Retry {
        let transient = |wait| Retry { after: wait, reason: RetryReason::Transient };
        match cause {
            DisconnectCause::Transient => transient(self.jitter(rng)),
            DisconnectCause::Overloaded(Some(wait)) => transient((*wait).min(RETRY_AFTER_MAX).mul_f64(rng.random_range(1.0..=1.5))),
            DisconnectCause::Overloaded(None) => transient(self.jitter(rng)),
            DisconnectCause::ClientError => transient(CLIENT_ERROR_DELAY),
            DisconnectCause::SupersededByOther => self.superseded(now, rng),
            DisconnectCause::Closed(code) => match CloseReason::from_code(*code).map(CloseReason::reconnect_policy) {
                Some(ReconnectPolicy::After(wait)) => transient(wait),
                Some(ReconnectPolicy::Rarely(wait)) => {
                    Retry { after: wait.mul_f64(rng.random_range(0.5..=1.5)), reason: RetryReason::NotAdmitted }
                }
                Some(ReconnectPolicy::Backoff | ReconnectPolicy::UnlessSuperseded) | None => transient(self.jitter(rng)),
            },
        }
    }

    /// Full jitter: from nothing to a ceiling that doubles from 1 s to 60 s, so that a fleet does not return as one.
    fn jitter(&mut self, rng: &mut impl Rng) -> Duration {
        let ceiling = FIRST_CEILING.saturating_mul(2_u32.saturating_pow(self.attempts)).min(LAST_CEILING);
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(rng.random_range(0.0..=1.0))
    }

    /// Comes back once; whoever is superseded again within ten minutes is one of two with the same identity.
    fn superseded(&mut self, now: Instant, rng: &mut impl Rng) -> Retry {
        let before = self.superseded_at.replace(now);
        if before.is_none_or(|before| now.duration_since(before) >= FLAPPING_WINDOW) {
            return Retry { after: self.jitter(rng), reason: RetryReason::Transient };
        }
        let wait = self.duplicate_delay;
        self.duplicate_delay = (wait * 2).min(DUPLICATE_MAX_DELAY);
        // The pause itself does not make the next one look new.
        self.superseded_at = Some(now + wait);
        Retry { after: wait, reason: RetryReason::DuplicateIdentity }
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
            let retry = backoff.next(&DisconnectCause::Transient, now, &mut rng).after;
            assert!(retry <= ceiling * S, "{retry:?} of at most {ceiling} s");
        }
        backoff.was_online(59 * S);
        let longest = (0..50).map(|_| backoff.next(&DisconnectCause::Transient, now, &mut rng).after).max();
        assert!(longest > Some(30 * S), "a short visit changes nothing: {longest:?}");
        backoff.was_online(60 * S);
        assert!(backoff.next(&DisconnectCause::Transient, now, &mut rng).after <= S);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_relay_says_about_coming_back_is_kept() {
        let (mut backoff, mut rng, now) = (Backoff::default(), rng(), Instant::now());
        let busy = backoff.next(&DisconnectCause::Overloaded(Some(30 * S)), now, &mut rng);
        assert!(busy.after >= 30 * S && busy.after <= 45 * S);
        assert_eq!(backoff.next(&DisconnectCause::ClientError, now, &mut rng).after, 60 * S);
        assert_eq!(backoff.next(&DisconnectCause::Closed(4400), now, &mut rng).after, 60 * S);
        for code in [4401, 4403, 4006] {
            let retry = backoff.next(&DisconnectCause::Closed(code), now, &mut rng);
            assert!(retry.after >= 150 * S && retry.after <= 450 * S && retry.reason == RetryReason::NotAdmitted, "{code}: {retry:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_machines_with_one_identity_stop_fighting() {
        let (mut backoff, mut rng, mut now) = (Backoff::default(), rng(), Instant::now());
        assert_eq!(backoff.next(&DisconnectCause::SupersededByOther, now, &mut rng).reason, RetryReason::Transient, "it comes back once");
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            now += S;
            let retry = backoff.next(&DisconnectCause::SupersededByOther, now, &mut rng);
            assert_eq!((retry.after, retry.reason), (minutes * 60 * S, RetryReason::DuplicateIdentity));
            now += retry.after;
        }
        backoff.was_online(3600 * S);
        now += 3600 * S;
        assert_eq!(backoff.next(&DisconnectCause::SupersededByOther, now, &mut rng).reason, RetryReason::Transient);
    }
}
