//! A bound on the bytes of frames that one WebSocket message may take.
//!
//! tungstenite bounds the payload of a message, not the number of its frames: a message whose frames carry nothing would never end, and
//! never be too long.

use std::io;

use tokio_tungstenite::tungstenite::Message;

use crate::limits::{MESSAGE_FRAME_BYTES, UNAUTHENTICATED_MESSAGE_FRAME_BYTES};

/// Bytes of the header of a client's ping or pong.
const CONTROL_HEADER_BYTES: usize = 6;

/// Whose messages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessagesFrom {
    /// A peer that has not authenticated.
    Unauthenticated,
    /// A peer that has.
    Authenticated,
}

/// A message took more bytes of frames than it may, and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message in more than {0} bytes of frames")]
pub struct MessageTooLong(usize);

/// Counts the bytes that were read since the last complete message.
#[derive(Debug)]
pub(super) struct MessageLimit {
    unfinished: usize,
    max: usize,
}

impl MessagesFrom {
    fn max_bytes(self) -> usize {
        match self {
            Self::Unauthenticated => UNAUTHENTICATED_MESSAGE_FRAME_BYTES,
            Self::Authenticated => MESSAGE_FRAME_BYTES,
        }
    }
}

impl MessageTooLong {
    /// The error itself, if that is what an error of the connection is.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|source| source.downcast_ref::<Self>()).copied()
    }
}

impl MessageLimit {
    pub(super) fn new(from: MessagesFrom) -> Self {
        Self { unfinished: 0, max: from.max_bytes() }
    }

    /// Counts bytes that were read.
    ///
    /// # Errors
    /// [`MessageTooLong`].
    pub(super) fn on_bytes(&mut self, count: usize) -> Result<(), MessageTooLong> {
        self.unfinished = self.unfinished.saturating_add(count);
        if self.unfinished > self.max { Err(MessageTooLong(self.max)) } else { Ok(()) }
    }

    /// Notes a complete message. A ping or pong may stand between the frames of another message, and completes nothing but itself.
    pub(super) fn on_message(&mut self, message: &Message) {
        self.unfinished = match message {
            Message::Ping(payload) | Message::Pong(payload) => self.unfinished.saturating_sub(CONTROL_HEADER_BYTES + payload.len()),
            Message::Text(_) | Message::Binary(_) | Message::Close(_) | Message::Frame(_) => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_an_end_is_too_long_and_pings_between_its_frames_change_nothing() {
        let mut limit = MessageLimit::new(MessagesFrom::Unauthenticated);
        let ping = Message::Ping(vec![7; 10].into());
        limit.on_bytes(UNAUTHENTICATED_MESSAGE_FRAME_BYTES).unwrap();
        assert_eq!(limit.on_bytes(16), Err(MessageTooLong(UNAUTHENTICATED_MESSAGE_FRAME_BYTES)));
        limit.on_message(&ping);
        limit.on_bytes(0).unwrap();
        limit.on_bytes(1).unwrap_err();
        limit.on_message(&Message::text("whole"));
        limit.on_bytes(UNAUTHENTICATED_MESSAGE_FRAME_BYTES).unwrap();
    }

    #[test]
    fn the_error_is_found_again_in_an_error_of_the_connection() {
        let error = io::Error::other(MessageTooLong(7));
        assert_eq!(MessageTooLong::of(&error), Some(MessageTooLong(7)));
        assert_eq!(MessageTooLong::of(&io::Error::other("else")), None);
    }
}
