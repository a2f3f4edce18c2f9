//! Why a leg ended, and why it was not opened.

use std::io;
use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::problem::Problem;

/// Why a leg ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// Close 1000 after the far side's `delivered`, or as the answer to this side's Close: both sides have everything.
    #[error("finished")]
    Finished,
    /// Close 1000 without the far side's `delivered`: the far side stopped reading, and what this side sent may be lost.
    #[error("the far side finished without having received everything")]
    CutShort,
    /// Any other Close.
    #[error("the relay closed the leg with {code}{}{reason}", if .reason.is_empty() { "" } else { " " })]
    Closed {
        /// The code; 1005 if there was none.
        code: u16,
        /// The reason in the Close frame.
        reason: String,
    },
    /// The connection was lost without a Close.
    #[error("the connection to the relay was lost: {0}")]
    Lost(String),
    /// Nothing was received for this long, although pings were due.
    #[error("the relay was silent for {0:?}")]
    Silent(Duration),
    /// The relay broke the protocol. The leg was closed with `close`.
    #[error("the relay broke the protocol: {detail}")]
    ProtocolError {
        /// The reason in the Close that was sent.
        close: CloseReason,
        /// What was wrong.
        detail: String,
    },
}

impl EndReason {
    /// Common errors in plain words.
    pub(super) fn lost(error: Option<&io::Error>) -> Self {
        let plain = match error.map(io::Error::kind) {
            None | Some(io::ErrorKind::UnexpectedEof) => "it ended without a Close",
            Some(io::ErrorKind::ConnectionReset) => "it was reset",
            Some(_) => return Self::Lost(error.map(ToString::to_string).unwrap_or_default()),
        };
        Self::Lost(plain.to_owned())
    }

    /// Whether everything that the far side sent has arrived. This side's bytes may be missing: see [`EndReason::CutShort`].
    pub const fn is_clean(&self) -> bool {
        match self {
            Self::Finished | Self::CutShort => true,
            Self::Closed { .. } | Self::Lost(_) | Self::Silent(_) | Self::ProtocolError { .. } => false,
        }
    }

    /// The protocol's reason for the Close code, if it is one of the protocol's.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self {
            Self::Finished | Self::CutShort => Some(CloseReason::Finished),
            Self::Closed { code, .. } => CloseReason::from_code(*code),
            Self::Lost(_) | Self::Silent(_) => None,
            Self::ProtocolError { close, .. } => Some(*close),
        }
    }

    pub(super) fn to_error(&self) -> io::Error {
        let kind = if self.is_clean() { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset };
        io::Error::new(kind, self.clone())
    }
}

/// Why a leg was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// `refused`: the relay or the device refused the stream.
    #[error("refused: {}: {}", .0.code, .0.detail)]
    Refused(Box<Problem>),
    /// The leg ended without `opened` or `refused`.
    #[error(transparent)]
    Ended(#[from] EndReason),
}
