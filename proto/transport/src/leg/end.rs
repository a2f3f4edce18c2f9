//! Why a leg ended, and why there was no stream on it.

use std::io;
use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::problem::Problem;

/// Why a leg ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// Close 1000 after this side's `end`: both directions came to their end.
    #[error("finished")]
    Finished,
    /// Close 1000 before this side's `end` was sent: the far side was done, and what this side had still to say is lost.
    #[error("the far side was done before this side's end")]
    CutShort,
    /// Any other Close.
    #[error("the relay closed the leg with {code}{}{reason}", if .reason.is_empty() { "" } else { " " })]
    Closed {
        /// The code, 1005 where there is none (before `opened`).
        code: u16,
        /// The relay's words.
        reason: String,
    },
    /// The connection is gone without a Close.
    #[error("the connection to the relay was lost: {0}")]
    Lost(String),
    /// Nothing came for this long, though pings were due.
    #[error("the relay was silent for {0:?}")]
    Silent(Duration),
    /// The relay broke the protocol; it was told so with this close reason.
    #[error("the relay broke the protocol: {detail}")]
    ProtocolError {
        /// What the leg was closed with.
        close: CloseReason,
        /// What was wrong.
        detail: String,
    },
}

impl EndReason {
    /// In words that people know, where the library's own speak to programmers.
    pub(super) fn lost(error: Option<&io::Error>) -> Self {
        let plain = match error.map(io::Error::kind) {
            None | Some(io::ErrorKind::UnexpectedEof) => "it ended without a Close",
            Some(io::ErrorKind::ConnectionReset) => "it was reset",
            Some(_) => return Self::Lost(error.map(ToString::to_string).unwrap_or_default()),
        };
        Self::Lost(plain.to_owned())
    }

    /// Whether nothing that came from the far side is missing. What this side said may be, see [`EndReason::CutShort`].
    pub const fn is_clean(&self) -> bool {
        match self {
            Self::Finished | Self::CutShort => true,
            Self::Closed { .. } | Self::Lost(_) | Self::Silent(_) | Self::ProtocolError { .. } => false,
        }
    }

    /// The protocol's reason for the code of a Close, if it is one of the protocol's.
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

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// `refused`: the relay or the device said no.
    #[error("refused: {}: {}", .0.code, .0.detail)]
    Refused(Box<Problem>),
    /// The leg ended without either `opened` or `refused`.
    #[error(transparent)]
    Ended(#[from] EndReason),
}
