//! Scripted devices and callers that speak the protocol message by message over any byte stream, so that scenarios can make them misbehave.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use moorline_proto::control::{Accept, Attempt, FromDevice, Hello, Offer, Reject, RejectCode, Service, ToDevice, Welcome};
use moorline_proto::id::{DeviceId, Instance, StreamId};
use moorline_proto::message::Decoded;
use moorline_proto::millis::Millis;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL, PROOF_TYP};
use moorline_proto::problem::Problem;
use moorline_proto::proof::ProofClaims;
use moorline_proto::secret::Secret;
use moorline_proto::text::Text;
use moorline_relay::access::mint::SigningKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::observed;
pub use crate::wire_leg::{LegEvent, WireLeg};

/// The longest that a scripted peer waits for one message. Two hours: most scenarios run on a paused clock.
pub const PATIENCE: Duration = Duration::from_secs(7_200);

/// A byte stream to a relay.
pub trait Pipe: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Pipe for S {}

/// A refused WebSocket upgrade.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body, if it is a problem document.
    pub problem: Option<Problem>,
}

/// Upgrades `pipe` to a WebSocket.
///
/// # Errors
/// The relay's refusal. Any other failure panics.
pub async fn upgrade<S: Pipe>(
    pipe: S,
    host: &str,
    path: &str,
    subprotocol: &str,
    headers: &[(&str, &str)],
) -> Result<(WebSocketStream<S>, HeaderMap), Refusal> {
    let mut request: Request<()> = format!("ws://{host}{path}").into_client_request().expect("the path of a scenario is valid");
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_str(subprotocol).expect("subprotocols are ASCII"));
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a header's name");
        request.headers_mut().append(name, HeaderValue::from_str(value).expect("a header's value"));
    }
    let config = WebSocketConfig::default().read_buffer_size(64 << 10).write_buffer_size(0);
    match timeout(PATIENCE, tokio_tungstenite::client_async_with_config(request, pipe, Some(config))).await {
        Ok(Ok((socket, answer))) => Ok((socket, answer.into_parts().0.headers)),
        Ok(Err(WsError::Http(response))) => {
            let (head, body) = response.into_parts();
            let problem: Option<Problem> = body.and_then(|body| serde_json::from_slice(&body).ok());
            problem.iter().for_each(observed::problem);
            Err(Refusal { status: head.status.as_u16(), headers: head.headers, problem })
        }
        Ok(Err(error)) => panic!("no answer to the upgrade: {error}"),
        Err(_) => panic!("no answer to the upgrade in time"),
    }
}

/// `Authorization` for a token.
pub fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.reveal())
}

/// A `hello` of `bytes` bytes whose device id is invalid: line ends, terminal escapes and bidirectional controls.
pub fn invalid_hello(bytes: usize) -> String {
    let id = "\\n\\u001b[31mERROR forged line\\u202e\\u2028";
    let (begins, ends) = (r#"{"type":"hello","device":""#, r#"","instance":"00112233445566778899aabbccddeeff"}"#);
    let repeated = id.repeat((bytes.saturating_sub(begins.len() + ends.len())) / id.len());
    format!("{begins}{repeated}{ends}")
}

/// Signs a device's proof with these claims.
pub fn proof(key: &SigningKey, claims: &ProofClaims) -> String {
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    header.typ = Some(PROOF_TYP.to_owned());
    header.kid = Some(key.public().thumbprint().to_string());
    let pem = key.to_pem().expect("a key that was made is written");
    let key = jsonwebtoken::EncodingKey::from_ed_pem(pem.reveal().as_bytes()).expect("PKCS#8 is read");
    jsonwebtoken::encode(&header, claims, &key).expect("claims are signed")
}

/// A scripted device: one control channel.
#[derive(Debug)]
pub struct WireDevice<S> {
    /// The WebSocket.
    pub socket: WebSocketStream<S>,
    /// The relay's `welcome`.
    pub welcome: Welcome,
    /// The attempt of the latest offer of each stream, which answers carry.
    attempts: HashMap<StreamId, Attempt>,
}

/// The code and reason of a Close, 1005 if it has none.
pub(crate) fn parts(frame: Option<CloseFrame>) -> (u16, String) {
    frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()))
}

/// The identity that a scripted device claims.
#[derive(Debug)]
pub struct Persona<'a> {
    /// Its id.
    pub device: DeviceId,
    /// Its key.
    pub key: &'a SigningKey,
    /// Its instance.
    pub instance: Instance,
    /// The services that it exposes.
    pub services: &'a [&'a str],
    /// The host name that it dials.
    pub host: &'a str,
    /// The features that it announces.
    pub features: &'a [&'a str],
}

/// The code and reason with which the relay closed a control channel; 1006 if the connection ended without a Close.
#[derive(Debug, PartialEq, Eq)]
pub struct ChannelClosed(pub u16, pub String);

impl<S: Pipe> WireDevice<S> {
    /// Opens the control channel and authenticates.
    ///
    /// # Errors
    /// [`ChannelClosed`], if the relay closes it instead of sending `welcome`.
    pub async fn connect(pipe: S, persona: &Persona<'_>) -> Result<Self, ChannelClosed> {
        let (mut socket, _) =
            upgrade(pipe, persona.host, CONTROL, CONTROL_SUBPROTOCOL, &[]).await.expect("a control channel needs no token");
        let ToDevice::Challenge(challenge) = receive(&mut socket).await.expect("a challenge") else { panic!("the challenge comes first") };
        let claims = ProofClaims {
            nonce: challenge.nonce,
            aud: persona.host.to_owned(),
            sub: persona.device.clone(),
            instance: persona.instance.clone(),
        };
        let hello = Hello {
            device: persona.device.clone(),
            instance: persona.instance.clone(),
            proof: Text::truncated(&proof(persona.key, &claims)),
            agent: Text::truncated("wire"),
            services: persona.services.iter().map(|name| Service { name: name.parse().expect("a service"), description: None }).collect(),
            features: persona.features.iter().map(|name| name.parse().expect("a feature")).collect(),
            hostname: None,
            os: None,
        };
        socket.send(Message::text(FromDevice::from(hello).encode())).await.expect("hello is sent");
        match receive(&mut socket).await? {
            ToDevice::Welcome(welcome) => Ok(Self { socket, welcome, attempts: HashMap::new() }),
            other => panic!("{other:?} instead of welcome"),
        }
    }

    /// Opens a control channel, answers its challenge with this text instead of a `hello`, and returns how the relay closes the channel.
    ///
    /// # Panics
    /// If the relay does not close it.
    pub async fn connect_with(pipe: S, host: &str, text: String) -> ChannelClosed {
        let (mut socket, _) = upgrade(pipe, host, CONTROL, CONTROL_SUBPROTOCOL, &[]).await.expect("a control channel needs no token");
        assert!(matches!(receive(&mut socket).await, Ok(ToDevice::Challenge(_))), "the challenge comes first");
        // The relay may close before it has read everything.
        socket.send(Message::text(text)).await.ok();
        receive(&mut socket).await.expect_err("it is closed")
    }

    /// Receives the next message. Pings are answered meanwhile.
    ///
    /// # Errors
    /// [`ChannelClosed`].
    pub async fn next(&mut self) -> Result<ToDevice, ChannelClosed> {
        let message = receive(&mut self.socket).await?;
        if let ToDevice::Offer(offer) = &message {
            self.attempts.insert(offer.stream, offer.attempt);
        }
        Ok(message)
    }

    /// Receives the next message, which must be an offer.
    pub async fn offer(&mut self) -> Offer {
        match self.next().await {
            Ok(ToDevice::Offer(offer)) => offer,
            other => panic!("{other:?} instead of an offer"),
        }
    }

    /// Waits until the relay closes the channel; any other message panics.
    pub async fn closed(&mut self) -> ChannelClosed {
        match self.next().await {
            Err(closed) => closed,
            Ok(message) => panic!("{message:?} instead of a close"),
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: impl Into<FromDevice>) {
        self.socket.send(Message::text(message.into().encode())).await.expect("the control channel is open");
    }

    /// Accepts an offer.
    pub async fn accept(&mut self, stream: StreamId) {
        let attempt = self.attempts.get(&stream).copied().unwrap_or_default();
        self.send(Accept { stream, attempt, data: None, features: Vec::new(), dial_ms: Some(Millis::from_millis(1)) }).await;
    }

    /// Rejects an offer.
    pub async fn reject(&mut self, stream: StreamId, code: RejectCode, detail: &str) {
        observed::reject(code);
        let attempt = self.attempts.get(&stream).copied().unwrap_or_default();
        self.send(Reject { stream, attempt, code, detail: Some(Text::truncated(detail)) }).await;
    }
}

async fn receive<S: Pipe>(socket: &mut WebSocketStream<S>) -> Result<ToDevice, ChannelClosed> {
    let read = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                    Ok(Decoded::Known(message)) => {
                        if let ToDevice::Cancel(cancel) = &message {
                            observed::cancel(cancel.code);
                        }
                        return Ok(message);
                    }
                    other => panic!("the relay sent {text}: {other:?}"),
                },
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = parts(frame);
                    observed::close(code);
                    return Err(ChannelClosed(code, reason));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(ChannelClosed(1006, String::new())),
            }
        }
    };
    timeout(PATIENCE, read).await.expect("the relay sends something in time")
}
