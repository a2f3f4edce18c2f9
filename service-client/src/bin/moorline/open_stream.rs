//! A stream as a command asks for it, and what its failures mean to the person who asked.

use std::io;

use moorline::{BridgeEnd, EndReason, Open, OpenError, Stream};
use moorline_proto::close::CloseReason;

use crate::cli::StreamArgs;
use crate::exit::{Exit, Failure};

/// Asks with what the command line says.
///
/// # Errors
/// As the library has them; [`open_failure`] tells them.
pub(crate) async fn open_stream(mut open: Open, stream_args: &StreamArgs) -> Result<Stream, OpenError> {
    if let Some(wait) = stream_args.wait {
        open = open.wait(wait);
    }
    if let Some(deadline) = stream_args.deadline {
        open = open.deadline(deadline);
    }
    if let Some(reason) = &stream_args.reason {
        open = open.reason(reason.clone());
    }
    open.await
}

/// Why there is no stream.
pub(crate) fn open_failure(what: &str, error: &OpenError) -> Failure {
    match error {
        OpenError::Refused(problem) => Failure::refused(what, problem),
        OpenError::Unreachable(error) => Failure::unreachable(what, error),
        OpenError::TimedOut { .. } => Failure::new(Exit::Unreachable, what)
            .caused_by(error)
            .next("look at the network between here and the relay, and at the relay's log"),
        OpenError::Ended(EndReason::Lost(_) | EndReason::Silent(_)) => {
            Failure::new(Exit::Unreachable, what).caused_by(error).next("look at the network between here and the relay, and try again")
        }
        OpenError::Ended(_) => Failure::new(Exit::Failed, what).caused_by(error),
        OpenError::Answer(_) | OpenError::ForeignUrl(_) => {
            Failure::new(Exit::Failed, what).caused_by(error).next("compare the versions of moorline and the relay")
        }
    }
}

/// How a stream ended: well, or with what a person should know.
///
/// # Errors
/// Everything but a clean end of both directions.
pub(crate) fn end_failure(what: &str, ended: &BridgeEnd) -> Result<(), Failure> {
    let failure = Failure::new(Exit::Failed, format!("{what} did not end well"));
    Err(match ended {
        BridgeEnd::Finished => return Ok(()),
        BridgeEnd::Stopped => Failure::silent(),
        // Like `yes | head`: whoever stopped reading does not want to be told.
        BridgeEnd::Local(error) if error.kind() == io::ErrorKind::BrokenPipe => Failure::silent(),
        BridgeEnd::Local(_) => failure.caused_by(ended),
        BridgeEnd::CutShort => failure.caused_by(ended).next("what was sent last may not have arrived: look at the far side"),
        BridgeEnd::Leg(reason) => {
            let failure = failure.caused_by(reason);
            match after_end(reason) {
                Some(next) => failure.next(next),
                None => failure,
            }
        }
    })
}

fn after_end(reason: &EndReason) -> Option<&'static str> {
    match reason {
        EndReason::Finished | EndReason::CutShort => None,
        EndReason::Lost(_) | EndReason::Silent(_) => Some("look at the network between here and the relay, and try again"),
        EndReason::ProtocolError { .. } => Some("compare the versions of moorline and the relay"),
        EndReason::Closed { .. } => reason.close_reason().and_then(after_close),
    }
}

/// What to do after a stream was cut with this code, where there is something to say.
const fn after_close(reason: CloseReason) -> Option<&'static str> {
    match reason {
        CloseReason::Reset => Some("the service or the device reset the connection: look at the service's log on the device"),
        CloseReason::PeerLost => Some("the device's connection was lost: see that it is online, and try again"),
        CloseReason::IdleTimeout => Some("nothing was sent for longer than the relay allows: have the programs at the ends send something"),
        CloseReason::Expired => Some("the leave for this stream was for a time: ask the operator for more"),
        CloseReason::Killed => Some("an operator did this on purpose: ask why before you try again"),
        CloseReason::Revoked => Some("ask the relay's operator whether you or the device shall have this leave again"),
        CloseReason::RelayDraining => Some("try again: another node of the relay takes over, or this one comes back"),
        CloseReason::Limit => Some("a budget of bytes or time is spent: ask the operator for more"),
        CloseReason::Framing | CloseReason::BadUtf8 | CloseReason::TooBig | CloseReason::Protocol => {
            Some("compare the versions of moorline and the relay")
        }
        CloseReason::Finished | CloseReason::Superseded | CloseReason::Refused | CloseReason::Unauthenticated | CloseReason::Forbidden => {
            None
        }
    }
}

/// Whether an end is an everyday event of a network program, which nobody needs to be told of each time.
pub(crate) fn is_routine(ended: &BridgeEnd) -> bool {
    match ended {
        BridgeEnd::Finished | BridgeEnd::Local(_) | BridgeEnd::Stopped => true,
        BridgeEnd::CutShort => false,
        BridgeEnd::Leg(reason) => reason.close_reason() == Some(CloseReason::Reset),
    }
}

#[cfg(test)]
mod tests {
    use moorline::{Problem, ProblemCode};

    use super::*;

    fn closed(reason: CloseReason) -> BridgeEnd {
        BridgeEnd::Leg(EndReason::Closed { code: reason.code(), reason: reason.name().to_owned() })
    }

    fn lost() -> EndReason {
        EndReason::Lost("it is gone".to_owned())
    }

    #[test]
    fn only_a_clean_end_is_a_success() {
        end_failure("x", &BridgeEnd::Finished).unwrap();
        for end in [BridgeEnd::CutShort, BridgeEnd::Leg(lost()), closed(CloseReason::Reset), closed(CloseReason::Killed)] {
            let failure = end_failure("x", &end).unwrap_err();
            assert!(failure.exit == Exit::Failed && failure.next.is_some(), "{failure:?}");
        }
        for &reason in CloseReason::ALL {
            assert_eq!(end_failure("x", &closed(reason)).unwrap_err().exit, Exit::Failed, "{reason}");
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_not_told() {
        assert_eq!(end_failure("x", &BridgeEnd::Local(io::ErrorKind::BrokenPipe.into())).unwrap_err(), Failure::silent());
        assert_ne!(end_failure("x", &BridgeEnd::Local(io::ErrorKind::Other.into())).unwrap_err(), Failure::silent());
    }

    #[test]
    fn resets_are_everyday_and_losses_are_not() {
        assert!(is_routine(&closed(CloseReason::Reset)) && is_routine(&BridgeEnd::Local(io::ErrorKind::ConnectionReset.into())));
        assert!(!is_routine(&closed(CloseReason::Killed)) && !is_routine(&BridgeEnd::Leg(lost())) && !is_routine(&BridgeEnd::CutShort));
    }

    #[test]
    fn exit_codes_tell_refusals_from_a_relay_that_is_not_there() {
        let offline = OpenError::Refused(Box::new(Problem::new(ProblemCode::DeviceOffline, "it is off")));
        assert_eq!(open_failure("x", &offline).exit, Exit::Refused);
        assert_eq!(open_failure("x", &OpenError::Ended(lost())).exit, Exit::Unreachable);
        assert_eq!(open_failure("x", &OpenError::TimedOut { waited: std::time::Duration::from_secs(70) }).exit, Exit::Unreachable);
        assert_eq!(open_failure("x", &OpenError::Ended(EndReason::CutShort)).exit, Exit::Failed);
    }
}
