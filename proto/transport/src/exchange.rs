//! One HTTP/1.1 request on one connection, and its response or upgrade.
//!
//! This uses hyper rather than tungstenite's handshake, which drops the bodies of refusals. Redirects are returned like any other response.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Parts};
use hyper_util::rt::TokioIo;
use moorline_proto::bounds::{CONTROL_MESSAGE_BYTES, RETRY_AFTER_MAX_S};
use moorline_proto::join::RelayUrl;
use moorline_proto::message::decode_body;
use moorline_proto::names::{CONTROL_SUBPROTOCOL, LEG_HEADER, REUSE, STREAM_SUBPROTOCOL};
use moorline_proto::problem::Problem;
use moorline_proto::secret::Secret;
use tokio::select;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::connection::Connection;
use crate::error::{DialError, Refusal};

/// Bytes read of a refusal's body. The relay's own have a few hundred.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// A refusal's status matters more than its body: the body is awaited no longer than this.
const REFUSAL_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read of a response's body: enough for lists of tens of thousands of devices.
const MAX_RESPONSE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of a response's head; the rest of hyper's buffer is for the body.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The purpose of a WebSocket to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subprotocol {
    /// A device's control channel.
    Control,
    /// A leg of a stream.
    Stream,
}

impl Subprotocol {
    /// The value in `Sec-WebSocket-Protocol`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Control => CONTROL_SUBPROTOCOL,
            Self::Stream => STREAM_SUBPROTOCOL,
        }
    }
}

/// A control channel is idle most of its life and its messages are short, so its buffers are small.
pub(crate) fn control_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * CONTROL_MESSAGE_BYTES)
        .max_message_size(Some(CONTROL_MESSAGE_BYTES))
        .max_frame_size(Some(CONTROL_MESSAGE_BYTES))
}

/// The parts of a request.
#[derive(Debug)]
pub(crate) struct RequestParts<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) bearer: Option<&'a Secret>,
    /// JSON.
    pub(crate) body: Option<String>,
}

/// The relay's answer to a request of the HTTP API.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Response {
    /// The response itself if its status is a success.
    ///
    /// # Errors
    /// [`DialError::Refused`] for any other status, redirects included.
    pub fn accepted(self) -> Result<Self, DialError> {
        if self.status.is_success() { Ok(self) } else { Err(DialError::Refused(Box::new(self.refusal()))) }
    }

    /// Reads the body as a JSON object.
    ///
    /// # Errors
    /// [`DialError::Body`], which names the place of the error.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, DialError> {
        decode_body(&self.body).map_err(|error| DialError::Body(error.to_string()))
    }

    /// The response as a refusal.
    fn refusal(&self) -> Refusal {
        let problem: Option<Problem> = decode_body(&self.body).ok();
        let seconds = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let seconds = seconds.or(problem.as_ref().and_then(|problem| problem.retry_after_s));
        let retry_after = seconds.map(|seconds| Duration::from_secs(seconds.min(RETRY_AFTER_MAX_S)));
        Refusal { status: self.status.as_u16(), problem, retry_after }
    }
}

/// Sends a request and reads its response.
pub(crate) async fn exchange(connection: Connection, url: &RelayUrl, parts: RequestParts<'_>) -> Result<Response, DialError> {
    let request = request(url, parts)?;
    match send(connection, request, MAX_RESPONSE_BYTES).await? {
        Exchange::Response(response) => Ok(response),
        Exchange::Upgraded(..) => Err(DialError::Upgrade("no upgrade was requested")),
    }
}

/// A connection after its 101.
#[derive(Debug)]
pub(crate) struct Upgraded {
    pub(crate) connection: Connection,
    /// The bytes that were read beyond the 101.
    pub(crate) ahead: Bytes,
    /// The 101 grants that the leg is used again.
    pub(crate) grants_reuse: bool,
}

/// Asks for an upgrade.
pub(crate) async fn upgrade(
    connection: Connection,
    url: &RelayUrl,
    parts: RequestParts<'_>,
    subprotocol: Subprotocol,
) -> Result<Upgraded, DialError> {
    let mut request = request(url, parts)?;
    let key = generate_key();
    let mut set = |name: HeaderName, value: &'static str| request.headers_mut().insert(name, HeaderValue::from_static(value));
    set(CONNECTION, "Upgrade");
    set(UPGRADE, "websocket");
    set(SEC_WEBSOCKET_VERSION, "13");
    set(SEC_WEBSOCKET_PROTOCOL, subprotocol.name());
    let key_value = HeaderValue::from_str(&key).map_err(|error| DialError::Request(error.into()))?;
    request.headers_mut().insert(SEC_WEBSOCKET_KEY, key_value);

    match send(connection, request, MAX_REFUSAL_BYTES).await? {
        Exchange::Response(response) => Err(DialError::Refused(Box::new(response.refusal()))),
        Exchange::Upgraded(headers, parts) => {
            check_upgrade(&headers, &key, subprotocol)?;
            // This is a view into hyper's buffer. Copy it, so that the buffer is freed.
            let ahead = Bytes::copy_from_slice(&parts.read_buf);
            Ok(Upgraded { connection: parts.io.into_inner(), ahead, grants_reuse: grants_reuse(&headers) })
        }
    }
}

fn request(url: &RelayUrl, parts: RequestParts<'_>) -> Result<Request<Full<Bytes>>, DialError> {
    let mut request = Request::builder().method(parts.method).uri(parts.path);
    if let Some(headers) = request.headers_mut() {
        headers.clone_from(parts.headers);
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(concat!("moorline/", env!("CARGO_PKG_VERSION"))));
        if parts.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let authority = HeaderValue::from_str(&url.authority()).map_err(|error| DialError::Request(error.into()))?;
        headers.insert(HOST, authority);
        if let Some(token) = parts.bearer {
            let bearer = format!("Bearer {}", token.reveal()); // sent to the relay it is meant for, over TLS
            let mut bearer = HeaderValue::from_str(&bearer).map_err(|error| DialError::Request(error.into()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
    }
    request.body(parts.body.map(Full::from).unwrap_or_default()).map_err(DialError::Request)
}

/// The outcome of a request.
enum Exchange {
    Response(Response),
    Upgraded(HeaderMap, Parts<TokioIo<Connection>>),
}

/// Sends the request and drives the connection until the response is complete or is a 101. A body larger than `max_body` is an error.
async fn send(connection: Connection, request: Request<Full<Bytes>>, max_body: usize) -> Result<Exchange, DialError> {
    let builder = Builder::new().max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(connection));
    let (mut sender, driver) = builder.await.map_err(DialError::Http)?;
    let mut driver = pin!(driver.without_shutdown());
    let mut driven = None;
    // The driver may finish in the same poll that completes the response, and must not be polled after that.
    macro_rules! drive {
        ($work:expr) => {{
            let mut work = pin!($work);
            loop {
                select! {
                    biased; // a response that has arrived counts, whatever happened to the connection
                    done = &mut work => break done,
                    done = &mut driver, if driven.is_none() => driven = Some(done),
                }
            }
        }};
    }

    let response: http::Response<Incoming> = drive!(sender.send_request(request)).map_err(DialError::Http)?;
    let (head, body) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let parts = match driven {
            Some(parts) => parts,
            None => driver.await,
        };
        return Ok(Exchange::Upgraded(head.headers, parts.map_err(DialError::Http)?));
    }
    let body = if head.status.is_success() {
        let read = drive!(Limited::new(body, max_body).collect());
        read.map_err(|error| DialError::Body(error.to_string()))?.to_bytes()
    } else {
        let read = drive!(timeout(REFUSAL_BODY_TIMEOUT, Limited::new(body, MAX_REFUSAL_BYTES).collect()));
        read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default()
    };
    Ok(Exchange::Response(Response { status: head.status, headers: head.headers, body }))
}

/// Whether the 101 has [`REUSE`] among the words of [`LEG_HEADER`].
fn grants_reuse(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(LEG_HEADER).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case(REUSE))
}

fn check_upgrade(headers: &HeaderMap, key: &str, subprotocol: Subprotocol) -> Result<(), DialError> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let is_websocket = text(UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let lists_upgrade = |value: &str| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    if !is_websocket || !text(CONNECTION).is_some_and(lists_upgrade) {
        return Err(DialError::Upgrade("it is not a WebSocket upgrade"));
    }
    if text(SEC_WEBSOCKET_ACCEPT) != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return Err(DialError::Upgrade("Sec-WebSocket-Accept does not match the key"));
    }
    if text(SEC_WEBSOCKET_PROTOCOL) != Some(subprotocol.name()) {
        return Err(DialError::Upgrade("Sec-WebSocket-Protocol is not the requested one"));
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(DialError::Upgrade("an extension that was not requested"));
    }
    Ok(())
}
