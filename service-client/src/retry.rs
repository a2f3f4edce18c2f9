//! Repeats a request for a stream while its leg is lost before `opened`. The caller says what an attempt is and which failures are losses.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

/// The pause before the first retry. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How one attempt failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AttemptError<E> {
    /// A retry cannot help.
    Final(E),
    /// The request may have reached the relay and the connection was lost: the same request names the same stream.
    Lost(E),
    /// The relay could not be reached. Worth a retry only if an earlier attempt may be waiting there.
    Unreachable(E),
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
/// # Cancel safety
/// Dropping the future drops the current attempt.
pub(crate) async fn retry_until<T, E, F>(deadline: Instant, mut attempt: impl FnMut() -> F) -> Result<T, RetryError<E>>
where
    F: Future<Output = Result<T, AttemptError<E>>>,
{
    let mut last = None;
    for retry in 0.. {
        let error = match (timeout_at(deadline, attempt()).await, &last) {
            (Err(_), _) => break,
            (Ok(Ok(opened)), _) => return Ok(opened),
            (Ok(Err(AttemptError::Final(error))), _) | (Ok(Err(AttemptError::Unreachable(error))), None) => {
                return Err(RetryError::Attempt(error));
            }
            (Ok(Err(AttemptError::Lost(error))), _) | (Ok(Err(AttemptError::Unreachable(error))), Some(_)) => error,
        };
        last = Some(error);
        let again = Instant::now() + pause(retry);
        if again >= deadline {
            break;
        }
        sleep_until(again).await;
    }
    Err(RetryError::TimedOut(last))
}

/// Half to all of an exponential backoff, at random, so that many callers of a restarted relay do not return at once.
fn pause(retry: u32) -> Duration {
    let ceiling = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(retry)).min(LONGEST_PAUSE);
    ceiling.mul_f64(rand::random_range(0.5..=1.0))
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
    async fn a_relay_that_was_never_reached_is_told_at_once() {
        assert_eq!(scripted([Err(AttemptError::Unreachable("no route")), Ok(7)]).await, (Err(RetryError::Attempt("no route")), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_restarts_is_waited_for_once_it_was_asked() {
        let gone = || Err(AttemptError::Unreachable("refused"));
        assert_eq!(scripted([Err(AttemptError::Lost("cut")), gone(), gone(), Ok(7)]).await, (Ok(7), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_it() {
        assert_eq!(
            scripted([Err(AttemptError::Lost("cut")), Err(AttemptError::Final("no")), Ok(7)]).await,
            (Err(RetryError::Attempt("no")), 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_at_the_deadline_with_what_went_wrong_before() {
        let begun = Instant::now();
        assert_eq!(scripted([]).await.0, Err(RetryError::TimedOut(None)));
        assert_eq!(begun.elapsed(), MINUTE);
        assert_eq!(scripted([Err(AttemptError::Lost("cut"))]).await.0, Err(RetryError::TimedOut(Some("cut"))));

        let begun = Instant::now();
        let always = retry_until::<(), _, _>(begun + MINUTE, || async { Err(AttemptError::Lost("cut")) }).await;
        assert_eq!(always, Err(RetryError::TimedOut(Some("cut"))));
        assert!(begun.elapsed() <= MINUTE);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        for retry in [0, 1, 5, 40, u32::MAX] {
            assert!((FIRST_PAUSE / 2..=LONGEST_PAUSE).contains(&pause(retry)));
        }
    }
}
