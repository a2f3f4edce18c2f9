//! The control channel: the one WebSocket that a device holds open. From the 101 to its end.
//!
//! ```text
//!   Unauthenticated ── authenticate ──▶ Authenticated ── admit ──▶ Session ── run ──▶ CloseCause
//! ```
//!
//! Does not know where devices are listed, nor what streams are: it carries out commands and reports answers.

pub mod handle;
pub mod handshake;
pub mod keepalive;
pub mod session;

use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;
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
        WsError::Protocol(error) => Some(error.to_string()),
        WsError::Capacity(error) => Some(error.to_string()),
        WsError::Utf8(_) => Some("text that is no UTF-8".to_owned()),
        WsError::Io(error) => MessageTooLong::of(error).map(|too_long| too_long.to_string()),
        _ => None,
    }
}
