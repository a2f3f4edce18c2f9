//! When the device connects again, by how it came to be offline. Pure: time and randomness are arguments.
//!
//! Does not own: how pauses grow ([`moorline_transport::backoff`]).

use std::time::Duration;

use moorline_proto::close::{CloseReason, ReconnectPolicy};
use moorline_transport::backoff::{Backoff, Pauses};
use rand::{Rng, RngExt};
use tokio::time::Instant;

/// A longer `Retry-After` is taken as this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// A control channel that was open for less counts as a failed attempt, however it ended.
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

/// What one agent's connections and attempts until now mean for the next one.
#[derive(Debug)]
pub struct Reconnection {
    backoff: Backoff,
    superseded_at: Option<Instant>,
    duplicate_delay: Duration,
}

impl Default for Reconnection {
    fn default() -> Self {
        Self { backoff: Backoff::new(Pauses::CHANNEL), superseded_at: None, duplicate_delay: DUPLICATE_FIRST_DELAY }
    }
}

impl Reconnection {
    /// Records a control channel that was open for `lasted`.
    pub fn was_online(&mut self, lasted: Duration) {
        if lasted >= STABLE_AFTER {
            self.backoff.reset();
        }
        if lasted >= DUPLICATE_MAX_DELAY {
            self.duplicate_delay = DUPLICATE_FIRST_DELAY;
        }
    }

    /// Returns when to connect again after `cause`, which occurred at `now`. At most 90 minutes.
    pub fn next(&mut self, cause: &DisconnectCause, now: Instant, rng: &mut impl Rng) -> Retry {
        let transient = |after| Retry { after, reason: RetryReason::Transient };
        match cause {
            DisconnectCause::Transient | DisconnectCause::Overloaded(None) => transient(self.backoff.pause(rng)),
            // Up to half more at random, so that a fleet that was told the same time does not return at once. A relay that asks for
            // no pause gets the usual one.
            DisconnectCause::Overloaded(Some(after)) => {
                let asked = (*after).min(RETRY_AFTER_MAX).mul_f64(rng.random_range(1.0..=1.5));
                transient(asked.max(self.backoff.pause(rng)))
            }
            DisconnectCause::ClientError => transient(CLIENT_ERROR_DELAY),
            DisconnectCause::SupersededByOther => self.superseded(now, rng),
            DisconnectCause::Closed(code) => match CloseReason::from_code(*code).map(CloseReason::reconnect_policy) {
                Some(ReconnectPolicy::After(wait)) => transient(wait),
                Some(ReconnectPolicy::Rarely(wait)) => {
                    Retry { after: wait.mul_f64(rng.random_range(0.5..=1.5)), reason: RetryReason::NotAdmitted }
                }
                Some(ReconnectPolicy::Backoff | ReconnectPolicy::UnlessSuperseded) | None => transient(self.backoff.pause(rng)),
            },
        }
    }

    /// Returns when to connect anew after `go_away` asked for `asked` on a channel that was open for `online_for`. On a channel that was
    /// just opened it counts as a failure: a relay that sends it on every channel must not be dialled as fast as it can.
    pub fn after_go_away(&mut self, asked: Duration, online_for: Duration, rng: &mut impl Rng) -> Duration {
        self.was_online(online_for);
        if online_for >= STABLE_AFTER { asked } else { asked.max(self.backoff.pause(rng)) }
    }

    /// Reconnects once. An agent that is superseded again within the window is one of two with the same identity, and backs off.
    fn superseded(&mut self, now: Instant, rng: &mut impl Rng) -> Retry {
        let before = self.superseded_at.replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) >= FLAPPING_WINDOW) {
            return Retry { after: self.backoff.pause(rng), reason: RetryReason::Transient };
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
    fn fleet() -> Vec<(Reconnection, SmallRng)> {
        (0..200).map(|seed| (Reconnection::default(), SmallRng::seed_from_u64(seed))).collect()
    }

    /// Checks that the next delays of a fleet spread from the shortest, a tenth of a second, to `ceiling`.
    fn assert_spread(fleet: &mut [(Reconnection, SmallRng)], ceiling: Duration) {
        let now = Instant::now();
        let delays: Vec<_> =
            fleet.iter_mut().map(|(reconnection, rng)| reconnection.next(&DisconnectCause::Transient, now, rng).after).collect();
        let (shortest, longest) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*longest <= ceiling && *longest > ceiling * 9 / 10, "{longest:?} of {ceiling:?}");
        assert!(*shortest < ceiling / 6, "{shortest:?} of {ceiling:?}");
    }

    fn were_online(fleet: &mut [(Reconnection, SmallRng)], lasted: Duration) {
        fleet.iter_mut().for_each(|(reconnection, _)| reconnection.was_online(lasted));
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
        let mut tenths = [0; 9];
        for _ in 0..1_000 {
            let after = Reconnection::default().next(&DisconnectCause::Transient, now, &mut rng).after;
            tenths[usize::try_from(after.as_millis() / 100).unwrap().min(9) - 1] += 1;
        }
        assert!(tenths.iter().all(|&count| count > 50), "{tenths:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_relays_instructions_are_followed_within_bounds() {
        let (mut reconnection, mut rng, now) = (Reconnection::default(), rng(), Instant::now());
        let overloaded = reconnection.next(&DisconnectCause::Overloaded(Some(30 * S)), now, &mut rng);
        assert!(overloaded.after >= 30 * S && overloaded.after <= 45 * S);
        let absurd = reconnection.next(&DisconnectCause::Overloaded(Some(Duration::MAX)), now, &mut rng);
        assert!(absurd.after >= 3_600 * S && absurd.after <= 5_400 * S, "{absurd:?}");
        assert_eq!(reconnection.next(&DisconnectCause::ClientError, now, &mut rng).after, 60 * S);
        assert_eq!(reconnection.next(&DisconnectCause::Closed(4400), now, &mut rng).after, 60 * S);
        for code in [4401, 4403, 4006] {
            let retry = reconnection.next(&DisconnectCause::Closed(code), now, &mut rng);
            assert!(retry.after >= 150 * S && retry.after <= 450 * S && retry.reason == RetryReason::NotAdmitted, "{code}: {retry:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_machines_with_one_identity_stop_superseding_each_other() {
        let (mut reconnection, mut rng, mut now) = (Reconnection::default(), rng(), Instant::now());
        let first = reconnection.next(&DisconnectCause::SupersededByOther, now, &mut rng);
        assert_eq!(first.reason, RetryReason::Transient, "it reconnects once");
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            now += S;
            let retry = reconnection.next(&DisconnectCause::SupersededByOther, now, &mut rng);
            assert_eq!((retry.after, retry.reason), (minutes * 60 * S, RetryReason::DuplicateIdentity));
            now += retry.after;
        }
        reconnection.was_online(3600 * S);
        now += 3600 * S;
        assert_eq!(reconnection.next(&DisconnectCause::SupersededByOther, now, &mut rng).reason, RetryReason::Transient);
    }
}
