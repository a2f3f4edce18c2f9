//! How far a stream has come, as everybody else sees it: published once for each change; lists, `POST` and the record read it.

use std::sync::Arc;

use moorline_proto::api::NegotiationState;
use moorline_proto::problem::Problem;

/// How far a stream has come.
#[derive(Clone, Debug)]
pub enum Status {
    /// Its device is offline and waited for.
    Waiting,
    /// Its device was asked.
    Offered,
    /// Its device accepted.
    Accepted,
    /// Bytes flow.
    Opened,
    /// It has ended, and a side has not taken all of it yet.
    Closing,
    /// There will be no stream.
    Refused(Arc<Problem>),
}

impl Status {
    /// The word in lists.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Offered => "offered",
            Self::Accepted => "accepted",
            Self::Opened => "opened",
            Self::Closing => "closing",
            Self::Refused(_) => "refused",
        }
    }

    /// Whether the device has decided, or nobody will ask it any more.
    pub fn is_decided(&self) -> bool {
        match self {
            Self::Waiting | Self::Offered => false,
            Self::Accepted | Self::Opened | Self::Closing | Self::Refused(_) => true,
        }
    }

    /// Whether the stream was opened.
    pub fn was_opened(&self) -> bool {
        match self {
            Self::Waiting | Self::Offered | Self::Accepted | Self::Refused(_) => false,
            Self::Opened | Self::Closing => true,
        }
    }

    /// The state that a negotiating caller gets.
    ///
    /// # Errors
    /// The problem of a stream that was refused.
    pub fn negotiation(&self) -> Result<NegotiationState, Arc<Problem>> {
        match self {
            Self::Waiting => Ok(NegotiationState::Waiting),
            Self::Offered => Ok(NegotiationState::Offered),
            Self::Accepted | Self::Opened | Self::Closing => Ok(NegotiationState::Accepted),
            Self::Refused(problem) => Err(Arc::clone(problem)),
        }
    }
}
