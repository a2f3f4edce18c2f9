//! Why a stream was not opened, and which failures of an attempt are worth another one.

use std::io;
use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::join::ForeignUrl;
use moorline_proto::problem::Problem;
use moorline_transport::dial::DialError;
use moorline_transport::leg::EndReason;

use crate::refusal::{attempt_error, problem_of};
use crate::retry::{AttemptError, RetryError};

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The relay cannot be reached, or the peer is not a relay.
    #[error("the relay cannot be reached")]
    Unreachable(#[source] Box<DialError>),
    /// The relay or the device refused the stream.
    #[error("{} ({})", .0.detail, .0.code)]
    Refused(Box<Problem>),
    /// The leg ended before the stream was open. If a retry could help, it was retried for as long as there was time.
    #[error("the leg ended before the stream was open")]
    Ended(#[source] EndReason),
    /// The source of the stream's first bytes failed ([`crate::Open::send_from`]). The request was cancelled.
    #[error("what was to be sent cannot be read")]
    Source(#[source] io::Error),
    /// The relay did not answer in the time it has.
    #[error("the relay did not answer within {waited:?}")]
    TimedOut {
        /// How long it was awaited.
        waited: Duration,
    },
    /// The relay's response breaks the protocol.
    #[error("the relay's response breaks the protocol: {0}")]
    Answer(String),
    /// The relay handed out an address of another host.
    #[error(transparent)]
    ForeignUrl(#[from] ForeignUrl),
}

impl OpenError {
    /// The relay's or the device's problem, if one of them refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Unreachable(_) | Self::Ended(_) | Self::Source(_) | Self::TimedOut { .. } | Self::Answer(_) | Self::ForeignUrl(_) => None,
        }
    }

    /// The error of a series of attempts that lasted `waited` at most.
    pub(crate) fn give_up(error: RetryError<Self>, waited: Duration) -> Self {
        match error {
            RetryError::Attempt(error) | RetryError::TimedOut(Some(error)) => error,
            RetryError::TimedOut(None) => Self::TimedOut { waited },
        }
    }
}

/// Whether a leg that ended like this before `opened` was only lost, so that the stream may still wait for it.
pub(crate) fn is_recoverable(end: &EndReason) -> bool {
    match end {
        EndReason::Lost(_) | EndReason::Silent(_) => true,
        EndReason::Finished | EndReason::CutShort | EndReason::ProtocolError { .. } => false,
        // A code outside the protocol comes from an intermediary.
        EndReason::Closed { code, .. } => CloseReason::from_code(*code).is_none_or(|reason| match reason {
            CloseReason::RelayDraining | CloseReason::PeerLost => true,
            CloseReason::Finished
            | CloseReason::Framing
            | CloseReason::BadUtf8
            | CloseReason::TooBig
            | CloseReason::Reset
            | CloseReason::IdleTimeout
            | CloseReason::Expired
            | CloseReason::Killed
            | CloseReason::Revoked
            | CloseReason::Superseded
            | CloseReason::Limit
            | CloseReason::Refused
            | CloseReason::Protocol
            | CloseReason::Unauthenticated
            | CloseReason::Forbidden => false,
        }),
    }
}

/// Whether an idle leg that ended like this behind an `ask` says nothing about the stream, so that a new leg takes its place. A leg that
/// was superseded, or whose relay broke the protocol, would only be followed by another such.
pub(crate) fn is_replaceable(end: &EndReason) -> bool {
    match end {
        EndReason::ProtocolError { .. } => false,
        _ if end.close_reason() == Some(CloseReason::Superseded) => false,
        EndReason::Lost(_) | EndReason::Silent(_) | EndReason::Closed { .. } | EndReason::Finished | EndReason::CutShort => true,
    }
}

/// Sorts a request that failed. It carries an idempotency key or a leg token: sent again, it names the same stream.
pub(crate) fn request_error(error: DialError) -> AttemptError<OpenError> {
    if error.is_lost_exchange() {
        return AttemptError::LostExchange(unreachable_or_refused(error));
    }
    attempt_error(error, unreachable_or_refused)
}

pub(crate) fn unreachable_or_refused(error: DialError) -> OpenError {
    problem_of(error).map_or_else(OpenError::Unreachable, OpenError::Refused)
}
