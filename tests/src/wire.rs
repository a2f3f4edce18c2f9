//! Devices and callers that speak the protocol frame by frame, so that scenarios can make them misbehave. Over any stream of bytes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use moorline_proto::control::{Accept, FromDevice, Hello, Offer, Reject, RejectCode, Service, ToDevice, Welcome};
use moorline_proto::id::{DeviceId, Instance, StreamId};
use moorline_proto::leg::{END_TEXT, LegText, Opened};
use moorline_proto::message::Decoded;
use moorline_proto::millis::Millis;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL, PROOF_TYP, STREAM_SUBPROTOCOL};
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

/// Nothing in a scenario waits longer than this for a single thing.
pub const PATIENCE: Duration = Duration::from_secs(7_200);

/// What a stream of bytes to a relay must be.
pub trait Pipe: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Pipe for S {}

/// A refusal on the way to a WebSocket.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body, if it is a problem.
    pub problem: Option<Problem>,
}

/// Asks for a WebSocket over `pipe`.
///
/// # Errors
/// The relay's refusal. Anything else that goes wrong panics: it is no part of a scenario.
pub async fn upgrade<S: Pipe>(
    pipe: S,
    host: &str,
    path: &str,
    subprotocol: &str,
    headers: &[(&str, &str)],
) -> Result<WebSocketStream<S>, Refusal> {
    let mut request: Request<()> = format!("ws://{host}{path}").into_client_request().expect("the path of a scenario is good");
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_str(subprotocol).expect("subprotocols are ASCII"));
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a header's name");
        request.headers_mut().append(name, HeaderValue::from_str(value).expect("a header's value"));
    }
    let config = WebSocketConfig::default().read_buffer_size(64 << 10).write_buffer_size(0);
    match timeout(PATIENCE, tokio_tungstenite::client_async_with_config(request, pipe, Some(config))).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(WsError::Http(response))) => {
            let (head, body) = response.into_parts();
            let problem = body.and_then(|body| serde_json::from_slice(&body).ok());
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

/// Makes the proof of a device, with every part of it to choose.
pub fn proof(key: &SigningKey, claims: &ProofClaims) -> String {
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    header.typ = Some(PROOF_TYP.to_owned());
    header.kid = Some(key.public().thumbprint().to_string());
    let pem = key.to_pem().expect("a key that was made is written");
    let key = jsonwebtoken::EncodingKey::from_ed_pem(pem.reveal().as_bytes()).expect("PKCS#8 is read");
    jsonwebtoken::encode(&header, claims, &key).expect("claims are signed")
}

/// A device's control channel, frame by frame.
#[derive(Debug)]
pub struct WireDevice<S> {
    /// The WebSocket.
    pub socket: WebSocketStream<S>,
    /// What it was told when it came online.
    pub welcome: Welcome,
}

/// Who a scripted device says it is.
#[derive(Debug)]
pub struct Persona<'a> {
    /// Its id.
    pub device: DeviceId,
    /// Its key.
    pub key: &'a SigningKey,
    /// The start of its program.
    pub instance: Instance,
    /// What it exposes.
    pub services: &'a [&'a str],
    /// The host that it dialled.
    pub host: &'a str,
    /// Features that it names.
    pub features: &'a [&'a str],
}

/// Why a scripted device did not come online: the close code and reason.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAdmitted(pub u16, pub String);

impl<S: Pipe> WireDevice<S> {
    /// Opens the control channel and proves who it is.
    ///
    /// # Errors
    /// [`NotAdmitted`], if the relay closes it instead of saying `welcome`.
    pub async fn come_online(pipe: S, persona: &Persona<'_>) -> Result<Self, NotAdmitted> {
        let mut socket = upgrade(pipe, persona.host, CONTROL, CONTROL_SUBPROTOCOL, &[]).await.expect("anyone may open a control channel");
        let ToDevice::Challenge(challenge) = said(&mut socket).await.expect("a challenge") else { panic!("the challenge comes first") };
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
        match said(&mut socket).await? {
            ToDevice::Welcome(welcome) => Ok(Self { socket, welcome }),
            other => panic!("{other:?} instead of welcome"),
        }
    }

    /// What the relay says next; pings are answered on the way.
    ///
    /// # Errors
    /// The Close, code and reason; 1006 where the connection ended without one.
    pub async fn next(&mut self) -> Result<ToDevice, NotAdmitted> {
        said(&mut self.socket).await
    }

    /// The next message, which must be an offer.
    pub async fn offer(&mut self) -> Offer {
        match self.next().await {
            Ok(ToDevice::Offer(offer)) => offer,
            other => panic!("{other:?} instead of an offer"),
        }
    }

    /// The code and reason that the channel is closed with next.
    pub async fn closed(&mut self) -> NotAdmitted {
        match self.next().await {
            Err(closed) => closed,
            Ok(message) => panic!("{message:?} instead of a close"),
        }
    }

    /// Says something.
    pub async fn say(&mut self, message: impl Into<FromDevice>) {
        self.socket.send(Message::text(message.into().encode())).await.expect("the control channel lives");
    }

    /// Says yes to an offer.
    pub async fn accept(&mut self, stream: StreamId) {
        self.say(Accept { stream, attempt: Default::default(), data: None, features: Vec::new(), dial_ms: Some(Millis::from_millis(1)) })
            .await;
    }

    /// Says no to an offer.
    pub async fn reject(&mut self, stream: StreamId, code: RejectCode, detail: &str) {
        self.say(Reject { stream, attempt: Default::default(), code, detail: Some(Text::truncated(detail)) }).await;
    }
}

async fn said<S: Pipe>(socket: &mut WebSocketStream<S>) -> Result<ToDevice, NotAdmitted> {
    let read = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                    Ok(Decoded::Known(message)) => return Ok(message),
                    other => panic!("the relay says {text}: {other:?}"),
                },
                Some(Ok(Message::Close(frame))) => {
                    return Err(
                        frame.map_or(NotAdmitted(1005, String::new()), |frame| NotAdmitted(frame.code.into(), frame.reason.to_string()))
                    );
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(NotAdmitted(1006, String::new())),
            }
        }
    };
    timeout(PATIENCE, read).await.expect("the relay says something in time")
}

/// What comes on a leg.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Bytes of the stream.
    Bytes(Bytes),
    /// `opened`.
    Opened(Box<Opened>),
    /// `refused`.
    Refused(Box<Problem>),
    /// `end`.
    End,
    /// Any other text.
    Text(String),
    /// A Close with this code.
    Close(u16, String),
    /// The connection ended without a Close.
    Lost,
}

/// A leg, frame by frame.
#[derive(Debug)]
pub struct WireLeg<S> {
    /// The WebSocket.
    pub socket: WebSocketStream<S>,
}

impl<S: Pipe> WireLeg<S> {
    /// Joins a leg by its token, or opens one by `connect`.
    ///
    /// # Errors
    /// The relay's refusal.
    pub async fn join(pipe: S, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refusal> {
        upgrade(pipe, host, path, STREAM_SUBPROTOCOL, headers).await.map(|socket| Self { socket })
    }

    /// What comes next; pings are answered on the way.
    pub async fn next(&mut self) -> Said {
        let read = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => return Said::Bytes(bytes),
                    Some(Ok(Message::Text(text))) => return text_of(&text),
                    Some(Ok(Message::Close(frame))) => {
                        return frame
                            .map_or(Said::Close(1005, String::new()), |frame| Said::Close(frame.code.into(), frame.reason.to_string()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Said::Lost,
                }
            }
        };
        timeout(PATIENCE, read).await.expect("something comes on the leg in time")
    }

    /// The next message, which must be `opened`.
    pub async fn opened(&mut self) -> Opened {
        match self.next().await {
            Said::Opened(opened) => *opened,
            other => panic!("{other:?} instead of opened"),
        }
    }

    /// The next message, which must be `refused`, with the close behind it.
    pub async fn refused(&mut self) -> Problem {
        let Said::Refused(problem) = self.next().await else { panic!("not refused") };
        assert!(matches!(self.next().await, Said::Close(4010, _)), "refused is followed by 4010");
        *problem
    }

    /// The code that the leg is closed with, 1006 where there is none; bytes before it are dropped.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Said::Close(code, _) => return code,
                Said::Lost => return 1006,
                Said::Bytes(_) | Said::End | Said::Text(_) | Said::Opened(_) | Said::Refused(_) => {}
            }
        }
    }

    /// Exactly so many bytes, in however many messages.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            match self.next().await {
                Said::Bytes(bytes) => all.extend_from_slice(&bytes),
                other => panic!("{other:?} after {} of {count} bytes", all.len()),
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    /// Sends bytes as one message.
    pub async fn say(&mut self, bytes: impl Into<Bytes>) {
        self.send(Message::Binary(bytes.into())).await;
    }

    /// Sends any message.
    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.expect("the leg lives");
    }

    /// Says `end`.
    pub async fn end(&mut self) {
        self.send(Message::text(END_TEXT)).await;
    }

    /// Closes with a code.
    pub async fn close(&mut self, code: u16) {
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))).await;
    }
}

fn text_of(text: &str) -> Said {
    match LegText::decode(text) {
        Ok(Decoded::Known(LegText::Opened(opened))) => Said::Opened(opened),
        Ok(Decoded::Known(LegText::Refused(refused))) => Said::Refused(Box::new(refused.problem)),
        Ok(Decoded::Known(LegText::End(_))) => Said::End,
        Ok(Decoded::Unknown(_)) | Err(_) => Said::Text(text.to_owned()),
    }
}
