//! The control channel: the one WebSocket that a device holds open. From the 101 to its end.
//!
//! ```text
//!   Unauthenticated ── authenticate ──▶ Authenticated ── admit ──▶ Session ── run ──▶ CloseCause
//! ```
//!
//! Does not know where devices are listed, nor what streams are: it carries out commands and reports answers.

pub mod handle;
pub mod handshake;
pub mod idle;
pub mod keepalive;
pub mod session;

use moorline_proto::frame::FrameError;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::net::connection::MessageTooLong;

/// Small buffers: most devices are idle most of the day. Messages that are sent together are written together.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(1024)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(4 * moorline_proto::bounds::CONTROL_MESSAGE_BYTES)
        .max_message_size(Some(moorline_proto::bounds::CONTROL_MESSAGE_BYTES))
        .max_frame_size(Some(moorline_proto::bounds::CONTROL_MESSAGE_BYTES))
}

/// How the peer broke the protocol, if a WebSocket error means that; otherwise the connection was lost. (tungstenite counts a connection
/// that ends without a Close among protocol errors.)
pub(crate) fn broken(error: &WsError) -> Option<String> {
    match error {
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        WsError::Protocol(error) => Some(frame_error(error).map_or_else(|| "an invalid frame".to_owned(), |error| error.to_string())),
        WsError::Capacity(CapacityError::MessageTooLong { size, max_size: max }) => {
            Some(FrameError::TooBig { size: u64::try_from(*size).unwrap_or(u64::MAX), max: *max }.to_string())
        }
        WsError::Capacity(CapacityError::TooManyHeaders) => None,
        WsError::Utf8(_) => Some(FrameError::TextUtf8.to_string()),
        WsError::Io(error) => MessageTooLong::of(error).map(|too_long| too_long.to_string()),
        _ => None,
    }
}

/// The same error in the words of legs. A control channel closes with 4400 whatever it is.
fn frame_error(error: &ProtocolError) -> Option<FrameError> {
    Some(match error {
        ProtocolError::UnmaskedFrameFromClient => FrameError::Unmasked,
        ProtocolError::NonZeroReservedBits => FrameError::ReservedBit,
        ProtocolError::UnknownControlFrameType(opcode)
        | ProtocolError::UnknownDataFrameType(opcode)
        | ProtocolError::InvalidOpcode(opcode) => FrameError::ReservedOpcode(*opcode),
        ProtocolError::UnexpectedContinueFrame => FrameError::UnexpectedContinuation,
        ProtocolError::ExpectedFragment(_) => FrameError::InterleavedMessage,
        ProtocolError::FragmentedControlFrame => FrameError::FragmentedControl,
        ProtocolError::InvalidCloseSequence => FrameError::TruncatedCode,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::AsyncWriteExt;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn words_for(frame: &[u8]) -> Option<String> {
        let (mut device, relay) = tokio::io::duplex(1024);
        device.write_all(frame).await.expect("the pipe is there");
        let mut socket = WebSocketStream::from_raw_socket(relay, Role::Server, Some(websocket_config())).await;
        drop(device);
        socket.next().await.and_then(Result::err).and_then(|error| broken(&error))
    }

    #[tokio::test]
    async fn framing_errors_have_the_words_that_legs_use() {
        const MASK: [u8; 4] = [0; 4];
        let masked = |head: [u8; 2], payload: &[u8]| [&head[..], &MASK, payload].concat();
        for (frame, error) in [
            (b"\x81\x00".to_vec(), FrameError::Unmasked),
            (masked([0xc1, 0x80], b""), FrameError::ReservedBit),
            (masked([0x8b, 0x80], b""), FrameError::ReservedOpcode(11)),
            (masked([0x83, 0x80], b""), FrameError::ReservedOpcode(3)),
            (masked([0x80, 0x80], b""), FrameError::UnexpectedContinuation),
            ([masked([0x01, 0x80], b""), masked([0x81, 0x80], b"")].concat(), FrameError::InterleavedMessage),
            (masked([0x09, 0x80], b""), FrameError::FragmentedControl),
            (masked([0x88, 0x81], b"x"), FrameError::TruncatedCode),
            (masked([0x81, 0x81], b"\xff"), FrameError::TextUtf8),
            ([&[0x82, 0xff][..], &1_000_000_u64.to_be_bytes(), &MASK].concat(), FrameError::TooBig { size: 1_000_000, max: 65_536 }),
        ] {
            assert_eq!(words_for(&frame).await.as_deref(), Some(error.to_string().as_str()), "{frame:?}");
        }
        assert_eq!(words_for(b"\x81").await, None, "a lost connection is no fault of the protocol");
    }
}
