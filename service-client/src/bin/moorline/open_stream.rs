//! Opens a stream for a command, and explains its failures to the user.

use std::io;

use moorline::{BridgeEnd, EndReason, Open, OpenError, Stream};
use moorline_proto::close::CloseReason;
use tokio::io::AsyncRead;

use crate::cli::StreamArgs;
use crate::exit::{Exit, Failure};

/// Opens a stream with the options of the command line, and sends what `source` has to say meanwhile.
///
/// # Errors
/// The library's errors; [`open_failure`] explains them.
pub(crate) async fn open_stream(
    mut open: Open,
    stream_args: &StreamArgs,
    source: &mut (impl AsyncRead + Unpin),
) -> Result<Stream, OpenError> {
    if let Some(wait) = stream_args.wait {
        open = open.wait(wait);
    }
    if let Some(deadline) = stream_args.deadline {
        open = open.deadline(deadline);
    }
    if let Some(reason) = &stream_args.reason {
        open = open.reason(reason.clone());
    }
    open.send_from(source).await
}

/// Explains why there is no stream.
pub(crate) fn open_failure(what: &str, error: &OpenError) -> Failure {
    match error {
        OpenError::Refused(problem) => Failure::refused(what, problem),
        OpenError::Unreachable(error) => Failure::unreachable(what, error),
        OpenError::TimedOut { .. } => {
            Failure::new(Exit::Unreachable, what).caused_by(error).next("check the network between here and the relay, and the relay's log")
        }
        OpenError::Ended(EndReason::Lost(_) | EndReason::Silent(_)) => {
            Failure::new(Exit::Unreachable, what).caused_by(error).next("check the network between here and the relay, and try again")
        }
        OpenError::Ended(_) | OpenError::Source(_) => Failure::new(Exit::Failed, what).caused_by(error),
        OpenError::Answer(_) | OpenError::ForeignUrl(_) => {
            Failure::new(Exit::Failed, what).caused_by(error).next("compare the versions of moorline and the relay")
        }
    }
}

/// Explains how a stream ended.
///
/// # Errors
/// Everything but a clean end of both directions.
pub(crate) fn end_failure(what: &str, ended: &BridgeEnd) -> Result<(), Failure> {
    let failure = Failure::new(Exit::Failed, format!("{what} did not end well"));
    Err(match ended {
        BridgeEnd::Finished => return Ok(()),
        BridgeEnd::Stopped => Failure::silent(),
        // As in `yes | head`: a reader that stopped reading needs no message.
        BridgeEnd::Local(error) if error.kind() == io::ErrorKind::BrokenPipe => Failure::silent(),
        BridgeEnd::Local(_) => failure.caused_by(ended),
        BridgeEnd::CutShort => failure.caused_by(ended).next("what was sent last may not have arrived: check the far side"),
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
        EndReason::Lost(_) | EndReason::Silent(_) => Some("check the network between here and the relay, and try again"),
        EndReason::ProtocolError { .. } => Some("compare the versions of moorline and the relay"),
        EndReason::Closed { .. } => reason.close_reason().and_then(after_close),
    }
}

/// What to do after a stream was closed with this code, if there is something to do.
const fn after_close(reason: CloseReason) -> Option<&'static str> {
    match reason {
        CloseReason::Reset => Some("the service or the device reset the connection: check the service's log on the device"),
        CloseReason::PeerLost => Some("the device's connection was lost: check that it is online, and try again"),
        CloseReason::IdleTimeout => Some("nothing was sent for longer than the relay allows: let the programs at the ends send something"),
        CloseReason::Expired => Some("the permission for this stream was limited in time: ask the operator for more"),
        CloseReason::Killed => Some("an operator ended it on purpose: ask why before you try again"),
        CloseReason::Revoked => Some("ask the relay's operator whether you or the device should be allowed again"),
        CloseReason::RelayDraining => Some("try again: another node of the relay takes over, or this one comes back"),
        CloseReason::Limit => Some("a limit of bytes or time was reached: ask the operator for more"),
        CloseReason::Framing | CloseReason::BadUtf8 | CloseReason::TooBig | CloseReason::Protocol => {
            Some("compare the versions of moorline and the relay")
        }
        CloseReason::Finished | CloseReason::Superseded | CloseReason::Refused | CloseReason::Unauthenticated | CloseReason::Forbidden => {
            None
        }
    }
}

/// Whether an end is routine for a network program and needs no message each time.
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
            assert!(failure.exit == Exit::Failed && !failure.advice().is_empty(), "{failure:?}");
        }
        for &reason in CloseReason::ALL {
            assert_eq!(end_failure("x", &closed(reason)).unwrap_err().exit, Exit::Failed, "{reason}");
        }
    }

    #[test]
    fn a_closed_pipe_is_not_reported() {
        assert_eq!(end_failure("x", &BridgeEnd::Local(io::ErrorKind::BrokenPipe.into())).unwrap_err(), Failure::silent());
        assert_ne!(end_failure("x", &BridgeEnd::Local(io::ErrorKind::Other.into())).unwrap_err(), Failure::silent());
    }

    #[test]
    fn resets_are_routine_and_losses_are_not() {
        assert!(is_routine(&closed(CloseReason::Reset)) && is_routine(&BridgeEnd::Local(io::ErrorKind::ConnectionReset.into())));
        assert!(!is_routine(&closed(CloseReason::Killed)) && !is_routine(&BridgeEnd::Leg(lost())) && !is_routine(&BridgeEnd::CutShort));
    }

    #[test]
    fn exit_codes_distinguish_refusals_from_an_unreachable_relay() {
        let offline = OpenError::Refused(Box::new(Problem::new(ProblemCode::DeviceOffline, "it is off")));
        assert_eq!(open_failure("x", &offline).exit, Exit::Refused);
        assert_eq!(open_failure("x", &OpenError::Ended(lost())).exit, Exit::Unreachable);
        assert_eq!(open_failure("x", &OpenError::TimedOut { waited: std::time::Duration::from_secs(70) }).exit, Exit::Unreachable);
        assert_eq!(open_failure("x", &OpenError::Ended(EndReason::CutShort)).exit, Exit::Failed);
    }
}
