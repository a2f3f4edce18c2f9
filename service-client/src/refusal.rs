//! Refusals: the problem in them, and whether and when the same request may be sent again.

use std::time::Duration;

use moorline_proto::problem::{Problem, ProblemCode};
use moorline_transport::dial::{DialError, Refusal};

use crate::retry::AttemptError;

/// The pause before the retry of a temporary refusal that does not say when.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Sorts a failed dial or request: a temporary refusal is worth one retry, any other one is final, and everything else means that the relay
/// cannot be reached.
pub(crate) fn attempt_error<E>(error: DialError, wrap: impl FnOnce(DialError) -> E) -> AttemptError<E> {
    match error.refusal().map(retry_after) {
        Some(Some(after)) => AttemptError::Later { error: wrap(error), after },
        Some(None) => AttemptError::Final(wrap(error)),
        None => AttemptError::Unreachable(wrap(error)),
    }
}

/// The problem that made a dial fail, if the relay sent one. A refusal without a problem comes from an intermediary.
pub(crate) fn problem_of(error: DialError) -> Result<Box<Problem>, Box<DialError>> {
    match error.refusal().and_then(|refusal| refusal.problem.clone()) {
        Some(problem) => Ok(Box::new(problem)),
        None => Err(Box::new(error)),
    }
}

/// After how long a refused request may be sent again; `None` if that cannot help.
fn retry_after(refusal: &Refusal) -> Option<Duration> {
    let is_temporary = refusal.problem.as_ref().map_or(is_temporary_status(refusal.status), is_temporary);
    is_temporary.then(|| refusal.retry_after.unwrap_or(DEFAULT_RETRY_AFTER))
}

/// The same for a problem that came on a leg, without headers.
pub(crate) fn problem_retry_after(problem: &Problem) -> Option<Duration> {
    is_temporary(problem).then(|| problem.retry_after_s.map_or(DEFAULT_RETRY_AFTER, Duration::from_secs))
}

/// Whether a refusal is about the current state of the node. `too_many_streams` and `device_busy` last until somebody closes a stream, and
/// the others until their cause is fixed: the user should see those at once. An unknown code counts by its status.
fn is_temporary(problem: &Problem) -> bool {
    problem.known_code().map_or_else(
        || is_temporary_status(problem.status),
        |code| {
            matches!(code, ProblemCode::RateLimited | ProblemCode::Draining | ProblemCode::Overloaded | ProblemCode::DirectoryUnavailable)
        },
    )
}

fn is_temporary_status(status: u16) -> bool {
    matches!(status, 429 | 503)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_current_state_of_a_node_is_temporary() {
        let temporary: Vec<&str> = ProblemCode::ALL
            .iter()
            .filter(|&&code| problem_retry_after(&Problem::new(code, "x")).is_some())
            .map(|code| code.as_str())
            .collect();
        assert_eq!(temporary, ["rate_limited", "draining", "overloaded", "directory_unavailable"]);
    }

    #[test]
    fn the_relay_sets_the_pause_and_an_unknown_code_is_classified_by_status() {
        let of_later = |status| Problem { code: "moon_phase".to_owned(), status, ..Problem::new(ProblemCode::Internal, "x") };
        assert_eq!(problem_retry_after(&of_later(503)), Some(DEFAULT_RETRY_AFTER));
        assert_eq!(problem_retry_after(&of_later(409)), None);
        let busy = Problem { retry_after_s: Some(7), ..Problem::new(ProblemCode::Overloaded, "x") };
        assert_eq!(problem_retry_after(&busy), Some(Duration::from_secs(7)));
        let header = Refusal { status: 503, problem: None, retry_after: Some(Duration::from_secs(9)) };
        assert_eq!(retry_after(&header), Some(Duration::from_secs(9)));
    }
}
