//! WebSocket frames of a leg (RFC 6455), as pure data: what comes is taken apart as it comes, what goes out is put together.
//!
//! A message of bytes is never gathered: each run of its payload is given out as soon as it is there, and runs that follow one another
//! leave in one frame, however they came. Text is short here, and gathered.
//!
//! Owns: headers, masks, the order of frames, a leg's sizes. Does not own: what a text means, and who answers what.

mod batch;
mod client;
mod decoder;

pub use batch::Batch;
pub use client::{HEADER_ROOM, Kind, client_frame, close_payload};
pub use decoder::{Decoder, Event, Run};

use crate::close::CloseReason;

/// Bits and codes of a frame's first two bytes.
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

/// Bytes of payload that a control frame may have.
pub const CONTROL_PAYLOAD_BYTES: usize = 125;

/// Why a WebSocket ends: the code and words of its Close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code, one that may be sent.
    pub code: u16,
    /// The words.
    pub reason: String,
}

/// What breaks WebSocket itself, or the sizes that a leg allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A client's frames are masked.
    #[error("a frame that is not masked")]
    Unmasked,
    /// A server's frames are not.
    #[error("a frame that is masked")]
    Masked,
    /// No extension was agreed that would give it a meaning.
    #[error("a reserved bit is set")]
    ReservedBit,
    /// Neither text nor bytes nor a control frame.
    #[error("the reserved opcode {0}")]
    ReservedOpcode(u8),
    /// Nothing was begun.
    #[error("a continuation of nothing")]
    NothingBegun,
    /// The one before has not ended.
    #[error("a message inside another")]
    MessageInMessage,
    /// A ping, pong or Close is one frame.
    #[error("a control frame in fragments")]
    FragmentedControl,
    /// A ping, pong or Close is short.
    #[error("a control frame of {0} bytes")]
    LongControl(usize),
    /// A code has two bytes.
    #[error("a Close of one byte")]
    HalfACode,
    /// RFC 6455, 7.4.
    #[error("a Close with the code {0}")]
    CloseCode(u16),
    /// A Close's words.
    #[error("a Close whose reason is no UTF-8")]
    CloseUtf8,
    /// A text message's bytes.
    #[error("text that is no UTF-8")]
    TextUtf8,
    /// Over the size of its kind.
    #[error("a message of {size} bytes, at most {most} are allowed")]
    TooBig {
        /// Its payload as far as it is announced.
        size: u64,
        /// What is allowed.
        most: usize,
    },
    /// Fragments without a byte in them make no message longer, so no bound on its size ends them.
    #[error("a message in more than {0} bytes of frames")]
    Endless(usize),
}

impl FrameError {
    /// What the leg is closed with.
    pub fn reason(self) -> CloseReason {
        match self {
            Self::Unmasked
            | Self::Masked
            | Self::ReservedBit
            | Self::ReservedOpcode(_)
            | Self::NothingBegun
            | Self::MessageInMessage
            | Self::FragmentedControl
            | Self::LongControl(_)
            | Self::HalfACode
            | Self::CloseCode(_) => CloseReason::Framing,
            Self::CloseUtf8 | Self::TextUtf8 => CloseReason::BadUtf8,
            Self::TooBig { .. } => CloseReason::TooBig,
            Self::Endless(_) => CloseReason::Protocol,
        }
    }
}

#[cfg(test)]
mod tests;
