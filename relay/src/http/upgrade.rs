//! Upgrading a request to a WebSocket: what its headers must say, the 101, and the connection behind it.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use data_encoding::BASE64;
use http::header::{CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use moorline_proto::names::{LEG_HEADER, REUSE};
use moorline_proto::problem::ProblemCode;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::http::head_watch::HeadWatch;
use crate::http::problem::Refusal;

use crate::net::connection::{MessagesFrom, Socket};

/// A request that passed the checks for an upgrade.
#[must_use = "the peer waits for an answer"]
#[derive(Debug)]
pub struct Upgrade {
    on: OnUpgrade,
    accept: String,
    subprotocol: &'static str,
}

/// The subprotocols that the client offers, in its order.
pub fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).map(str::trim)
}

/// Whether a side asks for a leg that is used again.
pub(super) fn wants_reuse(headers: &HeaderMap) -> bool {
    has_token(headers, HeaderName::from_static(LEG_HEADER), REUSE)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// Checks the headers of a request for an upgrade to `subprotocol`.
///
/// # Errors
/// `upgrade_required`, `malformed`, `origin_not_allowed`.
pub(super) fn check(headers: &HeaderMap, subprotocol: &'static str, origins: &[String]) -> Result<(), Refusal> {
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(Refusal::new(ProblemCode::UpgradeRequired, "this address is a WebSocket: Connection: Upgrade, Upgrade: websocket"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Refusal::new(ProblemCode::UpgradeRequired, "Sec-WebSocket-Version must be 13"));
    }
    if !headers.get(SEC_WEBSOCKET_KEY).is_some_and(|key| BASE64.decode(key.as_bytes()).is_ok_and(|bits| bits.len() == 16)) {
        return Err(malformed("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    if !subprotocols(headers).any(|offered| offered == subprotocol) {
        return Err(malformed("Sec-WebSocket-Protocol does not name the subprotocol of this address").supporting(subprotocol));
    }
    let is_listed = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| origins.iter().any(|own| own.eq_ignore_ascii_case(origin)));
    if !headers.get(ORIGIN).is_none_or(is_listed) {
        return Err(Refusal::new(ProblemCode::OriginNotAllowed, "the operator has not listed this Origin"));
    }
    Ok(())
}

fn malformed(detail: &str) -> Refusal {
    Refusal::new(ProblemCode::Malformed, detail)
}

/// The connection ended between the 101 and the first frame.
#[derive(Debug, thiserror::Error)]
#[error("the connection ended before the upgrade")]
pub struct NotUpgraded(#[source] Option<hyper::Error>);

/// The upgraded connection, once the 101 of an [`Upgrade`] was written.
#[must_use = "the upgraded connection would be dropped"]
#[derive(Debug)]
pub struct Upgrading {
    on: OnUpgrade,
}

impl Upgrade {
    /// Takes hyper's upgrade out of a request that passed [`check`].
    ///
    /// # Errors
    /// `malformed` where there is none.
    pub(super) fn new(request: &mut Request, subprotocol: &'static str) -> Result<Self, Refusal> {
        let on = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(|| malformed("this connection cannot be upgraded"))?;
        let key = request.headers().get(SEC_WEBSOCKET_KEY).map_or(&[][..], HeaderValue::as_bytes);
        Ok(Self { on, accept: derive_accept_key(key), subprotocol })
    }

    /// The 101 of a leg that may be used again, and the connection behind it.
    pub fn accept_for_reuse(self) -> (Response, Upgrading) {
        let (mut answer, upgrading) = self.accept();
        answer.headers_mut().insert(LEG_HEADER, HeaderValue::from_static(REUSE));
        (answer, upgrading)
    }

    /// The 101, and the connection behind it.
    pub fn accept(self) -> (Response, Upgrading) {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.subprotocol));
        headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(self.accept).expect("base64 is a header value"));
        (answer, Upgrading { on: self.on })
    }
}

impl Upgrading {
    /// The WebSocket of a peer that has not authenticated. Await it in another task than the connection's, which writes the 101.
    ///
    /// # Errors
    /// [`NotUpgraded`].
    pub async fn websocket(self, config: WebSocketConfig) -> Result<WebSocketStream<Socket>, NotUpgraded> {
        let (mut socket, read_ahead) = self.parts().await?;
        socket.limit_messages(MessagesFrom::Unauthenticated);
        Ok(WebSocketStream::from_partially_read(socket, read_ahead, Role::Server, Some(config)).await)
    }

    /// The bare connection, for code that reads frames itself. Otherwise as [`Upgrading::websocket`].
    ///
    /// # Errors
    /// [`NotUpgraded`].
    pub async fn socket(self) -> Result<Socket, NotUpgraded> {
        let (mut socket, read_ahead) = self.parts().await?;
        socket.put_back(read_ahead.into());
        Ok(socket)
    }

    /// The connection, and the bytes that hyper read beyond the request.
    async fn parts(self) -> Result<(Socket, Vec<u8>), NotUpgraded> {
        let upgraded = self.on.await.map_err(|error| NotUpgraded(Some(error)))?;
        let parts = upgraded.downcast::<TokioIo<HeadWatch>>().map_err(|_| NotUpgraded(None))?;
        // A view of hyper's buffer: copied, so that the buffer is freed.
        Ok((parts.io.into_inner().into_inner(), parts.read_buf.to_vec()))
    }
}
