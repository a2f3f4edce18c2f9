//! How a leg ends, and what its text messages mean for the stream. Pure.

use moorline_proto::close::CloseReason;
use moorline_proto::frame::FrameError;
use moorline_proto::leg::LegText;
use moorline_proto::message::{Decoded, MessageError};
use moorline_proto::reuse::ReuseText;

/// How a leg ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegEnd {
    /// It closed with 1000 or without a code: it finished.
    Done,
    /// It closed with another code.
    Reset(u16),
    /// Its connection was lost, or the keepalive found it dead.
    Lost,
    /// It broke the protocol: the code to close it with, and a detail.
    Broke(CloseReason, String),
}

impl LegEnd {
    /// A violation of the stream subprotocol, as opposed to WebSocket.
    pub(super) fn protocol(detail: &str) -> Self {
        Self::Broke(CloseReason::Protocol, detail.to_owned())
    }
}

impl From<FrameError> for LegEnd {
    fn from(error: FrameError) -> Self {
        Self::Broke(error.reason(), error.to_string())
    }
}

/// What a text message means for the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextMeaning {
    /// Nothing: it is forwarded unchanged.
    Forward,
    /// It is forwarded unchanged, and the side will send no more bytes.
    End,
    /// It is forwarded unchanged: the side has everything up to the other side's `end`.
    Delivered,
}

/// Reads a text message from a side.
///
/// # Errors
/// [`LegEnd::Broke`].
pub fn read(text: &str) -> Result<TextMeaning, LegEnd> {
    match LegText::decode(text) {
        Ok(Decoded::Known(LegText::End(_))) => Ok(TextMeaning::End),
        Ok(Decoded::Known(LegText::Delivered(_))) => Ok(TextMeaning::Delivered),
        Ok(Decoded::Known(LegText::Opened(_) | LegText::Refused(_))) | Err(MessageError::Field { .. }) => {
            Err(LegEnd::protocol("only the relay sends opened and refused"))
        }
        Ok(Decoded::Unknown(kind)) if ReuseText::TYPES.contains(&kind.as_str()) => {
            Err(LegEnd::protocol(&format!("a side does not send {kind} on this leg")))
        }
        Ok(Decoded::Unknown(_)) => Ok(TextMeaning::Forward),
        Err(MessageError::NoType | MessageError::TooLarge { .. }) => Err(LegEnd::protocol("text is not a JSON object with a type")),
    }
}

#[cfg(test)]
mod tests {
    use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT};

    use super::*;

    #[test]
    fn text_of_any_type_is_forwarded() {
        assert_eq!(read(r#"{"type":"resume","at":7}"#), Ok(TextMeaning::Forward));
        assert_eq!(read(END_TEXT), Ok(TextMeaning::End));
        assert_eq!(read(r#"{ "type": "end", "later": 1 }"#), Ok(TextMeaning::End));
        assert_eq!(read(DELIVERED_TEXT), Ok(TextMeaning::Delivered));
    }

    #[test]
    fn a_violation_is_named() {
        let reserved = ReuseText::TYPES.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect::<Vec<_>>();
        let others = ["[]", "hello", r#"{"kind":"end"}"#, r#"{"type":"opened"}"#, r#"{"type":"refused"}"#];
        for text in reserved.iter().map(String::as_str).chain(others) {
            assert!(matches!(read(text), Err(LegEnd::Broke(CloseReason::Protocol, _))), "{text}");
        }
    }
}
