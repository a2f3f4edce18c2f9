//! WebSocket frames of a leg (RFC 6455): an incremental decoder and an encoder, without I/O.
//!
//! Binary messages are not buffered: each run of payload is passed on as soon as it arrives, and successive runs are sent in one frame,
//! whatever frames they arrived in. Text messages are short and are buffered.
//!
//! Owns: headers, masks, the order of frames, size limits. Does not own: the meaning of messages, and replies to them.

mod batch;
mod client;
mod decoder;

pub use batch::Batch;
pub use client::{HEADER_ROOM, Kind, client_frame, close_payload};
pub use decoder::{Decoder, Event, Run};

use crate::close::CloseReason;

/// Bits and codes of the first two bytes of a frame.
mod bits {
    pub(super) const FIN: u8 = 0x80;
    pub(super) const RESERVED: u8 = 0x70;
    pub(super) const OPCODE: u8 = 0x0f;
    pub(super) const MASKED: u8 = 0x80;
    pub(super) const LENGTH: u8 = 0x7f;
    /// Two bytes of length follow.
    pub(super) const TWO: u8 = 126;
    /// Eight bytes of length follow.
    pub(super) const EIGHT: u8 = 127;

    pub(super) const MORE: u8 = 0x0;
    pub(super) const TEXT: u8 = 0x1;
    pub(super) const BINARY: u8 = 0x2;
    pub(super) const CLOSE: u8 = 0x8;
    pub(super) const PING: u8 = 0x9;
    pub(super) const PONG: u8 = 0xa;
}

/// Maximum payload of a control frame, in bytes.
pub const CONTROL_PAYLOAD_BYTES: usize = 125;

/// The content of a Close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code, one that may be sent (RFC 6455, 7.4).
    pub code: u16,
    /// The reason. Text of the peer: make it printable before it is logged.
    pub reason: String,
}

/// A violation of RFC 6455 or of a leg's size limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A client's frame must be masked.
    #[error("a frame that is not masked")]
    Unmasked,
    /// A server's frame must not be masked.
    #[error("a frame that is masked")]
    Masked,
    /// No extension was negotiated that uses the bit.
    #[error("a reserved bit is set")]
    ReservedBit,
    /// An opcode without a meaning.
    #[error("the reserved opcode {0}")]
    ReservedOpcode(u8),
    /// There is no message to continue.
    #[error("a continuation without a message")]
    UnexpectedContinuation,
    /// The message before has not ended.
    #[error("a message inside another message")]
    InterleavedMessage,
    /// Control frames must not be fragmented.
    #[error("a fragmented control frame")]
    FragmentedControl,
    /// Control frames have at most [`CONTROL_PAYLOAD_BYTES`].
    #[error("a control frame of {0} bytes")]
    ControlTooLong(usize),
    /// A Close code has two bytes.
    #[error("a Close of one byte")]
    TruncatedCode,
    /// A code that must not be sent (RFC 6455, 7.4).
    #[error("a Close with the code {0}")]
    CloseCode(u16),
    /// The reason of a Close must be UTF-8.
    #[error("a Close whose reason is not UTF-8")]
    CloseUtf8,
    /// A text message must be UTF-8.
    #[error("text that is not UTF-8")]
    TextUtf8,
    /// A message over its size limit.
    #[error("a message of {size} bytes, at most {max} are allowed")]
    TooBig {
        /// Its payload as far as announced, in bytes.
        size: u64,
        /// The limit in bytes.
        max: usize,
    },
    /// Too many fragments: empty ones do not count towards the size of a message, so they have a limit of their own.
    #[error("a message in more than {0} bytes of frames")]
    TooManyFragments(usize),
}

impl FrameError {
    /// The close code for the error.
    pub fn reason(self) -> CloseReason {
        match self {
            Self::Unmasked
            | Self::Masked
            | Self::ReservedBit
            | Self::ReservedOpcode(_)
            | Self::UnexpectedContinuation
            | Self::InterleavedMessage
            | Self::FragmentedControl
            | Self::ControlTooLong(_)
            | Self::TruncatedCode
            | Self::CloseCode(_) => CloseReason::Framing,
            Self::CloseUtf8 | Self::TextUtf8 => CloseReason::BadUtf8,
            Self::TooBig { .. } => CloseReason::TooBig,
            Self::TooManyFragments(_) => CloseReason::Protocol,
        }
    }
}

#[cfg(test)]
mod tests;
