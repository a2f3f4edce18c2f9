//! How long to wait before the next connection attempt. Pure: time and randomness are arguments.

use std::time::Duration;

use moorline_proto::close::{CloseReason, ReconnectPolicy};
use rand::{Rng, RngExt};
use tokio::time::Instant;

/// Upper bound of the first jittered delay.
const FIRST_CEILING: Duration = Duration::from_secs(1);
/// The upper bound doubles up to this.
const LAST_CEILING: Duration = Duration::from_secs(60);
/// A longer `Retry-After` is taken as this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// A connection that lasted this long resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Delay after an error that points to a bug or a wrong address.
const CLIENT_ERROR_DELAY: Duration = Duration::from_secs(60);
/// An agent that is superseded twice within this time shares its identity with another machine.
const FLAPPING_WINDOW: Duration = Duration::from_secs(600);
/// First delay of an agent that shares its identity; each further one doubles.
const DUPLICATE_FIRST_DELAY: Duration = Duration::from_secs(60);
/// Longest delay of an agent that shares its identity.
const DUPLICATE_MAX_DELAY: Duration = Duration::from_secs(3600);

/// Why the device is offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisconnectCause {
    /// A condition that may pass: no route to the relay, a lost connection, a 5xx status, a timeout.
    Transient,
    /// Status 429 or 503, with its `Retry-After`.
    Overloaded(Option<Duration>),
    /// Any other 4xx status of the control request.
    ClientError,
    /// The relay closed the control channel with this code.
    Closed(u16),
    /// Another agent process with the same identity took over.
    SupersededByOther,
}

/// When to connect again, and what to report meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Delay before the next attempt.
    pub after: Duration,
    /// What to report.
    pub reason: RetryReason,
}

/// The log's description of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// Nothing that needs an operator.
    Transient,
    /// The relay does not admit this device: an operator must register it or its key.
    NotAdmitted,
    /// Two machines use the same identity.
    DuplicateIdentity,
}

/// Backoff state of one agent.
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
    /// Records a control channel that was open for `lasted`.
    pub fn was_online(&mut self, lasted: Duration) {
        if lasted >= STABLE_AFTER {
            self.attempts = 0;
        }
        if lasted >= DUPLICATE_MAX_DELAY {
            self.duplicate_delay = DUPLICATE_FIRST_DELAY;
        }
    }

    /// Returns when to connect again after `cause`, which occurred at `now`. At most 90 minutes.
    pub fn next(&mut self, cause: &DisconnectCause, now: Instant, rng: &mut impl Rng) -> Retry {
        let transient = |after| Retry { after, reason: RetryReason::Transient };
        match cause {
            DisconnectCause::Transient | DisconnectCause::Overloaded(None) => transient(self.jitter(rng)),
            // Up to half more at random, so that a fleet that was told the same time does not return at once.
            DisconnectCause::Overloaded(Some(after)) => transient((*after).min(RETRY_AFTER_MAX).mul_f64(rng.random_range(1.0..=1.5))),
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

    /// Full jitter: uniform between zero and a ceiling that doubles from 1 s to 60 s, so that a fleet does not reconnect at once.
    fn jitter(&mut self, rng: &mut impl Rng) -> Duration {
        let ceiling = FIRST_CEILING.saturating_mul(2_u32.saturating_pow(self.attempts)).min(LAST_CEILING);
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(rng.random_range(0.0..=1.0))
    }

    /// Reconnects once. An agent that is superseded again within the window is one of two with the same identity, and backs off.
    fn superseded(&mut self, now: Instant, rng: &mut impl Rng) -> Retry {
        let before = self.superseded_at.replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) >= FLAPPING_WINDOW) {
            return Retry { after: self.jitter(rng), reason: RetryReason::Transient };
        }
        let after = self.duplicate_delay;
        self.duplicate_delay = after.saturating_mul(2).min(DUPLICATE_MAX_DELAY);
        // The window starts when the delay ends. Otherwise a long delay would look like a stable connection.
        self.superseded_at = Some(now + after);
        Retry { after, reason: RetryReason::DuplicateIdentity }
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

    /// Many agents, each with random numbers of its own.
    fn fleet() -> Vec<(Backoff, SmallRng)> {
        (0..200).map(|seed| (Backoff::default(), SmallRng::seed_from_u64(seed))).collect()
    }

    /// Checks that the next delays of a fleet spread from about zero to `ceiling`.
    fn assert_spread(fleet: &mut [(Backoff, SmallRng)], ceiling: Duration) {
        let now = Instant::now();
        let delays: Vec<_> = fleet.iter_mut().map(|(backoff, rng)| backoff.next(&DisconnectCause::Transient, now, rng).after).collect();
        let (shortest, longest) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*longest <= ceiling && *longest > ceiling * 9 / 10, "{longest:?} of {ceiling:?}");
        assert!(*shortest < ceiling / 10, "{shortest:?} of {ceiling:?}");
    }

    fn were_online(fleet: &mut [(Backoff, SmallRng)], lasted: Duration) {
        fleet.iter_mut().for_each(|(backoff, _)| backoff.was_online(lasted));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_of_a_fleet_double_to_a_minute_and_start_over_after_a_minute_online() {
        let mut fleet = fleet();
        for ceiling in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert_spread(&mut fleet, ceiling * S);
        }
        were_online(&mut fleet, 59 * S); // does not reset the backoff
        assert_spread(&mut fleet, 60 * S);
        were_online(&mut fleet, 60 * S);
        assert_spread(&mut fleet, S);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_spreads_over_the_whole_delay() {
        let (mut rng, now) = (rng(), Instant::now());
        let mut tenths = [0; 10];
        for _ in 0..1_000 {
            let after = Backoff::default().next(&DisconnectCause::Transient, now, &mut rng).after;
            tenths[usize::try_from(after.as_millis() / 100).unwrap().min(9)] += 1;
        }
        assert!(tenths.iter().all(|&count| count > 50), "{tenths:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_relays_instructions_are_followed_within_bounds() {
        let (mut backoff, mut rng, now) = (Backoff::default(), rng(), Instant::now());
        let overloaded = backoff.next(&DisconnectCause::Overloaded(Some(30 * S)), now, &mut rng);
        assert!(overloaded.after >= 30 * S && overloaded.after <= 45 * S);
        let absurd = backoff.next(&DisconnectCause::Overloaded(Some(Duration::MAX)), now, &mut rng);
        assert!(absurd.after >= 3_600 * S && absurd.after <= 5_400 * S, "{absurd:?}");
        assert_eq!(backoff.next(&DisconnectCause::ClientError, now, &mut rng).after, 60 * S);
        assert_eq!(backoff.next(&DisconnectCause::Closed(4400), now, &mut rng).after, 60 * S);
        for code in [4401, 4403, 4006] {
            let retry = backoff.next(&DisconnectCause::Closed(code), now, &mut rng);
            assert!(retry.after >= 150 * S && retry.after <= 450 * S && retry.reason == RetryReason::NotAdmitted, "{code}: {retry:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_machines_with_one_identity_stop_superseding_each_other() {
        let (mut backoff, mut rng, mut now) = (Backoff::default(), rng(), Instant::now());
        let first = backoff.next(&DisconnectCause::SupersededByOther, now, &mut rng);
        assert_eq!(first.reason, RetryReason::Transient, "it reconnects once");
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
