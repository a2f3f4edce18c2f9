//! Repeats a request: while its leg is lost before `opened`, and once if the relay refuses it temporarily. The caller defines what an attempt
//! is and how its failures count.

use std::time::Duration;

use moorline_transport::backoff::{Backoff, Pauses};
use tokio::time::{Instant, sleep_until, timeout_at};

/// The longest pause before the retry of a temporary refusal. If the relay asks for more, the refusal is returned at once.
const LONGEST_DEFERRAL: Duration = Duration::from_secs(60);

/// Retries of a request whose connections are lost before any response. A relay or a balancer that does nothing else is reported soon.
const MAX_LOST_EXCHANGES: u32 = 3;

/// How one attempt failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AttemptError<E> {
    /// A retry cannot help.
    Final(E),
    /// The request may have reached the relay and the connection was lost: the same request names the same stream.
    Lost(E),
    /// The connection was lost before the relay's response. The request may have reached it, and names the same stream when it is sent again.
    LostExchange(E),
    /// The relay could not be reached. Worth a retry only if an earlier attempt may be waiting there.
    Unreachable(E),
    /// The relay refused it temporarily. Worth one retry, after `after`.
    Later {
        /// The refusal.
        error: E,
        /// The time that the relay asks for.
        after: Duration,
    },
}

/// How a series of attempts failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RetryError<E> {
    /// The attempt that ended the series.
    Attempt(E),
    /// The time ran out, during an attempt or after the failure given.
    TimedOut(Option<E>),
}

/// Runs `attempt` until it succeeds, fails for good, or `deadline` passes; pauses between attempts.
///
/// After a loss, temporary failures are retried until the deadline. Otherwise a temporary refusal is retried once, if the pause ends
/// before the deadline, and an exchange that is lost three times.
///
/// # Cancel safety
/// Dropping the future drops the current attempt.
pub(crate) async fn retry_until<T, E, F>(deadline: Instant, mut attempt: impl FnMut() -> F) -> Result<T, RetryError<E>>
where
    F: Future<Output = Result<T, AttemptError<E>>>,
{
    let (mut was_lost, mut was_deferred, mut lost_exchanges) = (false, false, 0);
    let (mut last, mut backoff) = (None, Backoff::new(Pauses::REQUEST));
    loop {
        let Ok(attempted) = timeout_at(deadline, attempt()).await else { break };
        let usual = backoff.pause(&mut rand::rng());
        let (error, pause) = match attempted {
            Ok(value) => return Ok(value),
            Err(AttemptError::Lost(error)) => {
                was_lost = true;
                (error, usual)
            }
            Err(AttemptError::Unreachable(error) | AttemptError::LostExchange(error)) if was_lost => (error, usual),
            // A node that drained is gone by now: what it said explains that.
            Err(AttemptError::Unreachable(error) | AttemptError::LostExchange(error)) if was_deferred => {
                return Err(RetryError::Attempt(last.unwrap_or(error)));
            }
            Err(AttemptError::LostExchange(error)) if lost_exchanges < MAX_LOST_EXCHANGES => {
                lost_exchanges += 1;
                (error, usual)
            }
            Err(AttemptError::Later { error, after }) if was_lost || !was_deferred => {
                was_deferred = true;
                let pause = deferral(after).max(usual);
                if after > LONGEST_DEFERRAL || Instant::now() + pause >= deadline {
                    return Err(RetryError::Attempt(error));
                }
                (error, pause)
            }
            Err(
                AttemptError::Final(error)
                | AttemptError::Unreachable(error)
                | AttemptError::LostExchange(error)
                | AttemptError::Later { error, .. },
            ) => return Err(RetryError::Attempt(error)),
        };
        last = Some(error);
        let again = Instant::now() + pause;
        if again >= deadline {
            break;
        }
        sleep_until(again).await;
    }
    Err(RetryError::TimedOut(last))
}

/// The pause that the relay asks for, and up to a quarter more at random, so that the refused callers do not return at the same time.
fn deferral(after: Duration) -> Duration {
    after.min(LONGEST_DEFERRAL).mul_f64(rand::random_range(1.0..=1.25))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Runs the attempts of a script, and counts them.
    async fn scripted(
        script: impl IntoIterator<Item = Result<u8, AttemptError<&'static str>>>,
    ) -> (Result<u8, RetryError<&'static str>>, usize) {
        let mut script: VecDeque<_> = script.into_iter().collect();
        let all = script.len();
        let result = retry_until(Instant::now() + MINUTE, || {
            let next = script.pop_front();
            async move {
                match next {
                    Some(next) => next,
                    None => pending().await,
                }
            }
        })
        .await;
        (result, all - script.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_leg_is_dialled_again() {
        let lost = || Err(AttemptError::Lost("cut"));
        assert_eq!(scripted([lost(), lost(), Ok(7)]).await, (Ok(7), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_exchange_is_repeated_three_times_and_not_behind_a_refusal() {
        let lost = || Err(AttemptError::LostExchange("cut"));
        assert_eq!(scripted([lost(), lost(), lost(), Ok(7)]).await, (Ok(7), 4));
        assert_eq!(scripted([lost(), lost(), lost(), lost(), Ok(7)]).await, (Err(RetryError::Attempt("cut")), 4));
        assert_eq!(scripted([Err(later(1)), lost(), Ok(7)]).await, (Err(RetryError::Attempt("busy")), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_was_never_reached_is_reported_at_once() {
        assert_eq!(scripted([Err(AttemptError::Unreachable("no route")), Ok(7)]).await, (Err(RetryError::Attempt("no route")), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarting_relay_is_retried_once_a_request_has_reached_it() {
        let gone = || Err(AttemptError::Unreachable("refused"));
        assert_eq!(scripted([Err(AttemptError::Lost("cut")), gone(), gone(), Ok(7)]).await, (Ok(7), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_the_retries() {
        assert_eq!(
            scripted([Err(AttemptError::Lost("cut")), Err(AttemptError::Final("no")), Ok(7)]).await,
            (Err(RetryError::Attempt("no")), 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn retries_end_at_the_deadline_with_the_last_error() {
        let begun = Instant::now();
        assert_eq!(scripted([]).await.0, Err(RetryError::TimedOut(None)));
        assert_eq!(begun.elapsed(), MINUTE);
        assert_eq!(scripted([Err(AttemptError::Lost("cut"))]).await.0, Err(RetryError::TimedOut(Some("cut"))));

        let begun = Instant::now();
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            async { Err(AttemptError::Lost("cut")) }
        };
        let always = retry_until::<(), _, _>(begun + MINUTE, attempt).await;
        assert_eq!(always, Err(RetryError::TimedOut(Some("cut"))));
        // A pause that would exceed the deadline is not waited for.
        assert!((MINUTE - Pauses::REQUEST.longest()..=MINUTE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        // Four pauses up to 4.8 s, and then one of 0.3 to 5 s each.
        assert!((12..=50).contains(&attempts), "{attempts}");
    }

    fn later(after: u64) -> AttemptError<&'static str> {
        AttemptError::Later { error: "busy", after: Duration::from_secs(after) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_temporary_refusal_is_retried_once_after_the_pause_the_relay_asked_for() {
        let begun = Instant::now();
        assert_eq!(scripted([Err(later(4)), Ok(7)]).await, (Ok(7), 2));
        assert!((4.0..=5.001).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        assert_eq!(scripted([Err(later(4)), Err(later(4)), Ok(7)]).await, (Err(RetryError::Attempt("busy")), 2));
        assert_eq!(scripted([Err(later(4)), Err(AttemptError::Unreachable("gone")), Ok(7)]).await, (Err(RetryError::Attempt("busy")), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_with_too_long_a_pause_is_returned_at_once() {
        let begun = Instant::now();
        for after in [60, 61, 3_600] {
            assert_eq!(scripted([Err(later(after)), Ok(7)]).await, (Err(RetryError::Attempt("busy")), 1));
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_loss_a_relay_that_restarts_may_refuse_several_times() {
        let script = [Err(AttemptError::Lost("cut")), Err(later(1)), Err(later(1)), Ok(7)];
        assert_eq!(scripted(script).await, (Ok(7), 4));
    }

    #[test]
    fn no_pause_of_a_peer_overflows() {
        assert!(deferral(Duration::MAX) <= LONGEST_DEFERRAL * 5 / 4);
    }
}
