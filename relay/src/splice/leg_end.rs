//! How a leg comes to its end, and what its text means for the splice. Pure.

use moorline_proto::close::CloseReason;
use moorline_proto::frame::FrameError;
use moorline_proto::leg::LegText;
use moorline_proto::message::{Decoded, MessageError};

/// How a leg came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegEnd {
    /// It closed with 1000 or without a code: it is done.
    Done,
    /// It closed with another code.
    Reset(u16),
    /// It vanished, or was judged dead.
    Lost,
    /// It broke the protocol.
    Broke(CloseReason, String),
}

impl LegEnd {
    /// Against the stream subprotocol, not against WebSocket.
    pub(super) fn protocol(words: &str) -> Self {
        Self::Broke(CloseReason::Protocol, words.to_owned())
    }
}

impl From<FrameError> for LegEnd {
    fn from(error: FrameError) -> Self {
        Self::Broke(error.reason(), error.to_string())
    }
}

/// What becomes of a text message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextMeaning {
    /// It is passed on unchanged.
    Forward,
    /// It is passed on unchanged, and the side will send no more bytes.
    End,
}

/// Reads a text message of a side.
///
/// # Errors
/// [`LegEnd::Broke`].
pub fn read(text: &str) -> Result<TextMeaning, LegEnd> {
    match LegText::decode(text) {
        Ok(Decoded::Known(LegText::End(_))) => Ok(TextMeaning::End),
        Ok(Decoded::Known(LegText::Opened(_) | LegText::Refused(_))) | Err(MessageError::Field { .. }) => {
            Err(LegEnd::protocol("only the relay says opened and refused"))
        }
        Ok(Decoded::Unknown(_)) => Ok(TextMeaning::Forward),
        Err(MessageError::NoType | MessageError::TooLarge { .. }) => Err(LegEnd::protocol("text that is no JSON object with a type")),
    }
}

#[cfg(test)]
mod tests {
    use moorline_proto::leg::END_TEXT;

    use super::*;

    #[test]
    fn text_of_any_type_passes() {
        assert_eq!(read(r#"{"type":"resume","at":7}"#), Ok(TextMeaning::Forward));
        assert_eq!(read(END_TEXT), Ok(TextMeaning::End));
        assert_eq!(read(r#"{ "type": "end", "later": 1 }"#), Ok(TextMeaning::End));
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        for text in ["[]", "hello", r#"{"kind":"end"}"#, r#"{"type":"opened"}"#, r#"{"type":"refused"}"#] {
            assert!(matches!(read(text), Err(LegEnd::Broke(CloseReason::Protocol, _))), "{text}");
        }
    }
}
