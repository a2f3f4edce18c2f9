//! What a leg says, piece by piece, and what breaks the protocol. Pure.

use bytes::Bytes;
use moorline_proto::bounds::LEG_TEXT_BYTES;
use moorline_proto::close::CloseReason;
use moorline_proto::leg::{END_TEXT, LegText};
use moorline_proto::message::{Heard, MessageError};
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};

use crate::socket::Endless;

/// One message to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the stream.
    Bytes(Bytes),
    /// Text between the ends, passed on unchanged.
    Text(Utf8Bytes),
    /// The side will send no more bytes.
    End,
}

impl Piece {
    /// Bytes of payload.
    pub fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Text(text) => text.len(),
            Self::End => 0,
        }
    }

    /// As it is sent on.
    pub fn into_message(self) -> Message {
        match self {
            Self::Bytes(bytes) => Message::Binary(bytes),
            Self::Text(text) => Message::Text(text),
            Self::End => Message::Text(Utf8Bytes::from_static(END_TEXT)),
        }
    }
}

/// How a leg came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It closed with 1000 or without a code: it is done.
    Done,
    /// It closed with another code.
    Reset(u16),
    /// It vanished, or was judged dead.
    Lost,
    /// It broke the protocol.
    Broke(CloseReason, String),
}

impl Fate {
    /// What a WebSocket's end or error means.
    pub fn of(error: Option<WsError>) -> Self {
        match error {
            Some(WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake)) | None => Self::Lost,
            Some(WsError::Protocol(error)) => Self::Broke(CloseReason::Framing, error.to_string()),
            Some(WsError::Utf8(_)) => Self::Broke(CloseReason::BadUtf8, "text that is no UTF-8".to_owned()),
            Some(WsError::Capacity(CapacityError::MessageTooLong { size, max_size })) => {
                Self::Broke(CloseReason::TooBig, format!("a message of {size} bytes, at most {max_size} are allowed"))
            }
            Some(WsError::Io(error)) => {
                Endless::of(&error).map_or(Self::Lost, |endless| Self::Broke(CloseReason::Protocol, endless.to_string()))
            }
            Some(_) => Self::Lost,
        }
    }
}

/// Reads a message of a side that has (or has not) said `end` before; nothing where there is nothing to pass on.
///
/// # Errors
/// [`Fate::Broke`].
pub fn classify(message: Message, ended: bool) -> Result<Option<Piece>, Fate> {
    let broke = |reason, words: &str| Err(Fate::Broke(reason, words.to_owned()));
    match message {
        Message::Binary(bytes) if bytes.is_empty() => Ok(None),
        Message::Binary(_) if ended => broke(CloseReason::Protocol, "bytes after end"),
        Message::Binary(bytes) => Ok(Some(Piece::Bytes(bytes))),
        Message::Text(text) if text.len() > LEG_TEXT_BYTES => broke(CloseReason::TooBig, "a text message over 4 KiB"),
        Message::Text(text) => match LegText::decode(&text) {
            Ok(Heard::Known(LegText::End(_))) => Ok((!ended).then_some(Piece::End)),
            Ok(Heard::Known(LegText::Opened(_) | LegText::Refused(_))) | Err(MessageError::Field { .. }) => {
                broke(CloseReason::Protocol, "only the relay says opened and refused")
            }
            Ok(Heard::Unknown(_)) => Ok(Some(Piece::Text(text))),
            Err(MessageError::NoType | MessageError::TooLarge { .. }) => {
                broke(CloseReason::Protocol, "text that is no JSON object with a type")
            }
        },
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Close(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_text_of_any_type_pass_and_empty_messages_are_nothing() {
        assert_eq!(classify(Message::binary(vec![1]), false), Ok(Some(Piece::Bytes(vec![1].into()))));
        assert_eq!(classify(Message::binary(vec![]), true), Ok(None));
        let resume = r#"{"type":"resume","at":7}"#;
        assert_eq!(classify(Message::text(resume), true), Ok(Some(Piece::Text(resume.into()))));
        assert_eq!(classify(Message::text(END_TEXT), false), Ok(Some(Piece::End)));
        assert_eq!(classify(Message::text(END_TEXT), true), Ok(None), "a second end is dropped");
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        let code = |message, ended| match classify(message, ended) {
            Err(Fate::Broke(reason, _)) => reason.code(),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(Message::binary(vec![1]), true), 4400);
        assert_eq!(code(Message::text("[]"), false), 4400);
        assert_eq!(code(Message::text("hello"), false), 4400);
        assert_eq!(code(Message::text(r#"{"type":"opened"}"#), false), 4400);
        assert_eq!(code(Message::text(r#"{"type":"refused"}"#), false), 4400);
        assert_eq!(code(Message::text(format!(r#"{{"type":"x","x":"{}"}}"#, "y".repeat(4096))), false), 1009);
    }
}
