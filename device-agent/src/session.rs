//! One control channel of the device, from the dial to its end: receives offers and cancels, sends answers, pings.
//!
//! ```text
//!   device                          relay
//!     │── GET /v1/control ───────────▶│
//!     │◀────────────── challenge ─────│
//!     │── hello, with the proof ─────▶│
//!     │◀──────────────── welcome ─────│   online from here on
//!     │◀── offer, cancel, go_away ────│
//!     │── accept, reject, services ──▶│
//! ```
//!
//! Does not own: what happens to an offer (`offer`), when to connect again ([`crate::reconnect`]).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_proto::bounds::{CLOSE_TIMEOUT, WELCOME_TIMEOUT};
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Cancel, FromDevice, Hello, Offer, Service, Services, ToDevice, Welcome};
use moorline_proto::id::Instance;
use moorline_proto::message::Decoded;
use moorline_proto::names::{CONTROL, HEARTBEAT_FEATURE, REUSE};
use moorline_proto::proof::ProofClaims;
use moorline_proto::text::{Text, printable};
use moorline_transport::dial::{DialError, Dialer, Refusal, WebSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::debug;

use crate::identity::IdentityError;
use crate::limits::{CONNECT_TIMEOUT, OUTGOING_QUEUE, PEER_TEXT_CHARS, WRITE_TIMEOUT};
use crate::reconnect::DisconnectCause;
use crate::settings::Settings;

/// A control channel on which the relay has sent `welcome`.
#[derive(Debug)]
pub struct Session {
    socket: WebSocket,
    /// The relay's `welcome`.
    pub welcome: Welcome,
    /// When `welcome` came.
    pub online_since: Instant,
    settings: watch::Receiver<Arc<Settings>>,
    /// The services that the relay knows of.
    announced: Vec<Service>,
    outgoing_sender: mpsc::Sender<FromDevice>,
    outgoing: mpsc::Receiver<FromDevice>,
    /// A message that the socket has not taken yet.
    unsent: Option<Message>,
    heartbeat: Duration,
    last_frame: Instant,
    next_ping: Instant,
    pings: bool,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The relay was not reached, or refused the request.
    #[error("cannot open a control channel")]
    Dial(#[from] DialError),
    /// The relay closed the control channel before `welcome`.
    #[error("the relay closed the control channel with {code}: {reason}")]
    Closed {
        /// The close code.
        code: u16,
        /// The reason, in printable characters.
        reason: String,
    },
    /// The connection was lost before `welcome`.
    #[error("the connection was lost before welcome")]
    Lost,
    /// `challenge` or `welcome` did not come in time.
    #[error("the relay did not send {0} in time")]
    Timeout(&'static str),
    /// The relay violated the protocol.
    #[error("the relay violated the protocol: {0}")]
    ProtocolViolation(String),
    /// The proof could not be signed.
    #[error("cannot sign the device's proof")]
    Identity(#[from] IdentityError),
}

impl ConnectError {
    /// What to do about it, where that is known.
    pub(crate) fn advice(&self) -> Option<String> {
        if let Self::Dial(error) = self { Some(error.tls_fault()?.advice()) } else { None }
    }

    /// What the error means for the next attempt.
    pub fn disconnect_cause(&self) -> DisconnectCause {
        match self {
            Self::Dial(error) => match error.refusal() {
                Some(Refusal { status: 429 | 503, retry_after, .. }) => DisconnectCause::Overloaded(*retry_after),
                Some(Refusal { status: 400..=499, .. }) => DisconnectCause::ClientError,
                Some(_) | None => DisconnectCause::Transient,
            },
            Self::Closed { code, .. } => DisconnectCause::Closed(*code),
            Self::Lost | Self::Timeout(_) | Self::ProtocolViolation(_) | Self::Identity(_) => DisconnectCause::Transient,
        }
    }
}

/// What happens on a session.
#[derive(Debug)]
pub enum SessionEvent {
    /// A caller wants a stream.
    Offer(Box<Offer>),
    /// An offer is void.
    Cancel(Cancel),
    /// The node is leaving: connect anew after this time. The session goes on until the relay closes it.
    GoAway(Duration),
    /// The session is over.
    Ended(SessionEnd),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// The relay closed the control channel.
    #[error("closed by the relay with {code}: {reason}")]
    Closed {
        /// The close code.
        code: u16,
        /// The reason, in printable characters.
        reason: String,
    },
    /// The connection was lost.
    #[error("the connection was lost")]
    Lost,
    /// The relay sent nothing for too long, or took nothing.
    #[error("the relay is unresponsive")]
    Unresponsive,
    /// The relay violated the protocol.
    #[error("the relay violated the protocol: {0}")]
    ProtocolViolation(String),
}

impl SessionEnd {
    /// What the end means for the next attempt of the agent process `own`.
    pub fn disconnect_cause(&self, own: &Instance) -> DisconnectCause {
        match self {
            Self::Closed { code, .. } if *code == CloseReason::Superseded.code() => {
                if self.is_superseded_by(own) {
                    DisconnectCause::Transient
                } else {
                    DisconnectCause::SupersededByOther
                }
            }
            Self::Closed { code, .. } => DisconnectCause::Closed(*code),
            Self::Lost | Self::Unresponsive | Self::ProtocolViolation(_) => DisconnectCause::Transient,
        }
    }

    /// Whether the relay closed the channel because its node is leaving.
    pub fn is_drained(&self) -> bool {
        matches!(self, Self::Closed { code, .. } if *code == CloseReason::RelayDraining.code())
    }

    /// Whether a newer channel of the agent process `instance` took over: the reason is `superseded INSTANCE`.
    pub fn is_superseded_by(&self, instance: &Instance) -> bool {
        matches!(self, Self::Closed { code, reason }
            if *code == CloseReason::Superseded.code() && reason.split_whitespace().nth(1) == Some(instance.as_str()))
    }
}

impl Session {
    /// Connects, proves the device's identity, and waits for `welcome`.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn connect(dialer: &Dialer, mut settings: watch::Receiver<Arc<Settings>>, instance: &Instance) -> Result<Self, ConnectError> {
        let mut socket = dialer.control(CONTROL, Instant::now() + CONNECT_TIMEOUT).await?;
        let challenge = match receive(&mut socket, "challenge").await? {
            ToDevice::Challenge(challenge) => challenge,
            other => return Err(ConnectError::ProtocolViolation(format!("{} before challenge", other.kind()))),
        };
        let current = Arc::clone(&settings.borrow_and_update());
        let claims = ProofClaims {
            nonce: challenge.nonce,
            aud: dialer.url().host().to_owned(),
            sub: current.device.clone(),
            instance: instance.clone(),
        };
        let hello = hello(&current, instance, &current.identity.sign_proof(&claims)?);
        let text = Message::text(FromDevice::from(hello).encode());
        timeout(WRITE_TIMEOUT, socket.send(text)).await.map_err(|_| ConnectError::Lost)?.map_err(|_| ConnectError::Lost)?;
        match receive(&mut socket, "welcome").await? {
            ToDevice::Welcome(welcome) => Ok(Self::welcomed(socket, welcome, settings, current.services.clone())),
            other => Err(ConnectError::ProtocolViolation(format!("{} instead of welcome", other.kind()))),
        }
    }

    fn welcomed(socket: WebSocket, welcome: Welcome, settings: watch::Receiver<Arc<Settings>>, announced: Vec<Service>) -> Self {
        let (outgoing_sender, outgoing) = mpsc::channel(OUTGOING_QUEUE);
        let now = Instant::now();
        let pings = welcome.features.iter().any(|feature| feature.as_str() == HEARTBEAT_FEATURE);
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms);
        Self {
            socket,
            welcome,
            online_since: now,
            settings,
            announced,
            outgoing_sender,
            outgoing,
            unsent: None,
            heartbeat,
            last_frame: now,
            next_ping: now + heartbeat,
            pings,
        }
    }

    /// The queue of outgoing messages. They are sent while [`Session::next`] is polled.
    pub fn sender(&self) -> mpsc::Sender<FromDevice> {
        self.outgoing_sender.clone()
    }

    /// Returns the next event. There is none after [`SessionEvent::Ended`].
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> SessionEvent {
        loop {
            match self.step().await {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(ended) => return SessionEvent::Ended(ended),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<SessionEvent>, SessionEnd> {
        if self.unsent.is_some() {
            return self.flush().await;
        }
        let silent_at = self.silent_at();
        let timer = if self.pings { silent_at.min(self.next_ping) } else { silent_at };
        // Each of these can be dropped: partial messages stay in the socket, `recv` and `changed` take nothing before they are ready, and
        // the times are fields.
        self.unsent = tokio::select! {
            message = self.socket.next() => return self.on_message(message),
            Some(message) = self.outgoing.recv() => Some(Message::text(message.encode())),
            Ok(()) = self.settings.changed() => self.on_settings_changed(),
            () = sleep_until(timer) => Some(self.on_tick()?),
        };
        self.flush().await
    }

    /// When the relay counts as unresponsive: two and a half heartbeats after its last frame.
    fn silent_at(&self) -> Instant {
        self.last_frame + self.heartbeat * 5 / 2
    }

    fn on_tick(&mut self) -> Result<Message, SessionEnd> {
        let now = Instant::now();
        if now >= self.silent_at() {
            return Err(SessionEnd::Unresponsive);
        }
        self.next_ping = now + self.heartbeat;
        Ok(Message::Ping(Vec::new().into()))
    }

    /// The device's services, if they are not those that the relay knows of.
    fn on_settings_changed(&mut self) -> Option<Message> {
        let services = self.settings.borrow_and_update().services.clone();
        if services == self.announced {
            return None;
        }
        self.announced.clone_from(&services);
        Some(Message::text(FromDevice::from(Services { services }).encode()))
    }

    /// Hands the unsent message to the socket and writes out what the socket holds.
    async fn flush(&mut self) -> Result<Option<SessionEvent>, SessionEnd> {
        let (socket, unsent) = (&mut self.socket, &mut self.unsent);
        let sent = async {
            poll_fn(|cx| socket.poll_ready_unpin(cx)).await?;
            if let Some(message) = unsent.take() {
                socket.start_send_unpin(message)?;
            }
            socket.flush().await
        };
        match timeout(WRITE_TIMEOUT, sent).await {
            Ok(Ok(())) => Ok(None),
            Ok(Err(_)) => Err(SessionEnd::Lost),
            Err(_) => Err(SessionEnd::Unresponsive),
        }
    }

    fn on_message(&mut self, message: Option<Result<Message, WsError>>) -> Result<Option<SessionEvent>, SessionEnd> {
        self.last_frame = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                Ok(Decoded::Known(ToDevice::Offer(offer))) => Ok(Some(SessionEvent::Offer(Box::new(offer)))),
                Ok(Decoded::Known(ToDevice::Cancel(cancel))) => Ok(Some(SessionEvent::Cancel(cancel))),
                Ok(Decoded::Known(ToDevice::GoAway(away))) => Ok(Some(SessionEvent::GoAway(Duration::from_millis(away.reconnect_in_ms)))),
                Ok(Decoded::Known(ToDevice::Challenge(_) | ToDevice::Welcome(_))) => Ok(None),
                Ok(Decoded::Unknown(kind)) => {
                    debug!(kind, "message of an unknown type ignored");
                    Ok(None)
                }
                Err(error) => Err(SessionEnd::ProtocolViolation(printable(&error.to_string(), PEER_TEXT_CHARS))),
            },
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = close_code_and_reason(frame);
                Err(SessionEnd::Closed { code, reason })
            }
            Some(Ok(Message::Binary(_))) => Err(SessionEnd::ProtocolViolation("binary message on a control channel".to_owned())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Err(error @ (WsError::Capacity(_) | WsError::Utf8(_)))) => {
                Err(SessionEnd::ProtocolViolation(printable(&error.to_string(), PEER_TEXT_CHARS)))
            }
            Some(Err(_)) | None => Err(SessionEnd::Lost),
        }
    }

    /// Closes the channel and waits for the relay's Close, 5 s at most. A device that stops on purpose closes with 1000.
    pub async fn close(mut self, reason: CloseReason, detail: &str) {
        let frame = CloseFrame { code: reason.code().into(), reason: reason.text(detail).into() };
        let closed = async {
            self.socket.send(Message::Close(Some(frame))).await?;
            while let Some(message) = self.socket.next().await {
                message?;
            }
            Ok::<_, WsError>(())
        };
        // The channel is over, whatever comes of it.
        timeout(CLOSE_TIMEOUT, closed).await.ok();
    }
}

/// Receives the next message of a known type.
async fn receive(socket: &mut WebSocket, expected: &'static str) -> Result<ToDevice, ConnectError> {
    let deadline = Instant::now() + WELCOME_TIMEOUT;
    loop {
        let message = timeout_at(deadline, socket.next()).await.map_err(|_| ConnectError::Timeout(expected))?;
        match message {
            Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                Ok(Decoded::Known(message)) => return Ok(message),
                Ok(Decoded::Unknown(_)) => {}
                Err(error) => return Err(ConnectError::ProtocolViolation(printable(&error.to_string(), PEER_TEXT_CHARS))),
            },
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = close_code_and_reason(frame);
                return Err(ConnectError::Closed { code, reason });
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(ConnectError::Lost),
        }
    }
}

/// The reason is the relay's text: fit to be logged. 1005 stands for a Close without a code (RFC 6455, 7.1.5).
fn close_code_and_reason(frame: Option<CloseFrame>) -> (u16, String) {
    frame.map_or((1005, String::new()), |frame| (frame.code.into(), printable(&frame.reason, PEER_TEXT_CHARS)))
}

fn hello(settings: &Settings, instance: &Instance, proof: &str) -> Hello {
    Hello {
        device: settings.device.clone(),
        instance: instance.clone(),
        proof: Text::truncated(proof),
        agent: Text::truncated(concat!("moorline-agent/", env!("CARGO_PKG_VERSION"))),
        services: settings.services.clone(),
        features: [Some(HEARTBEAT_FEATURE), (settings.idle_legs > 0).then_some(REUSE)].into_iter().flatten().flat_map(str::parse).collect(),
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| Text::truncated(name.trim())),
        os: Some(Text::truncated(std::env::consts::OS)),
    }
}
