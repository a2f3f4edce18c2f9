//! One control channel of the device, from the dial to its end. It reads offers and cancels, and says what others hand it.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_proto::bounds::{CLOSE_TIMEOUT, WELCOME_TIMEOUT};
use moorline_proto::close::{CloseReason, truncated_reason};
use moorline_proto::control::{Cancel, FromDevice, Hello, Offer, ToDevice, Welcome};
use moorline_proto::id::Instance;
use moorline_proto::message::Decoded;
use moorline_proto::names::{CONTROL, HEARTBEAT_FEATURE};
use moorline_proto::proof::ProofClaims;
use moorline_proto::text::Text;
use moorline_transport::dial::{DialError, Dialer, Refusal, WebSocket};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::debug;

use crate::backoff::DisconnectCause;
use crate::identity::IdentityError;
use crate::settings::Settings;

/// DNS, TCP, TLS and the upgrade together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A relay that does not take a message in this time is dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that wait to be said.
const OUTGOING_QUEUE: usize = 64;

/// A control channel whose device was welcomed.
#[derive(Debug)]
pub struct Session {
    socket: WebSocket,
    /// What the relay said.
    pub welcome: Welcome,
    /// Since when.
    pub online_since: Instant,
    outgoing_sender: mpsc::Sender<FromDevice>,
    outgoing: mpsc::Receiver<FromDevice>,
    last_frame: Instant,
    next_ping: Instant,
    pings: bool,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No WebSocket came about.
    #[error("no control channel")]
    Dial(#[from] DialError),
    /// The relay closed it before `welcome`.
    #[error("the relay closed the control channel with {code}: {reason}")]
    Closed {
        /// The close code.
        code: u16,
        /// The reason.
        reason: String,
    },
    /// The connection ended before `welcome`.
    #[error("the control channel was lost before welcome")]
    Lost,
    /// No `challenge`, or no `welcome`, in time.
    #[error("the relay did not say {0} in time")]
    Timeout(&'static str),
    /// What came is against the protocol.
    #[error("the relay broke the protocol: {0}")]
    ProtocolViolation(String),
    /// The proof could not be made.
    #[error("the device's proof could not be made")]
    Identity(#[from] IdentityError),
}

impl ConnectError {
    /// What it means for coming back.
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

/// What a session brings.
#[derive(Debug)]
pub enum SessionEvent {
    /// A question.
    Offer(Box<Offer>),
    /// A question is void.
    Cancel(Cancel),
    /// The node leaves: dial anew after this time. The session goes on.
    GoAway(Duration),
    /// It is over.
    Ended(SessionEnd),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The relay closed it.
    Closed {
        /// The close code.
        code: u16,
        /// The reason.
        reason: String,
    },
    /// The connection was lost.
    Lost,
    /// The relay was silent for too long, or takes nothing.
    Unresponsive,
    /// The relay broke the protocol.
    ProtocolViolation(String),
}

impl SessionEnd {
    /// What it means for coming back, for the start of the agent that is `own`.
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

    /// Whether the node closed the channel because it leaves.
    pub fn is_drained(&self) -> bool {
        matches!(self, Self::Closed { code, .. } if *code == CloseReason::RelayDraining.code())
    }

    /// Whether a newer channel of this start of the agent took over: the reason is `superseded INSTANCE`.
    pub fn is_superseded_by(&self, instance: &Instance) -> bool {
        matches!(self, Self::Closed { code, reason }
            if *code == CloseReason::Superseded.code() && reason.split_whitespace().nth(1) == Some(instance.as_str()))
    }
}

impl Session {
    /// Dials, proves who the device is, and waits to be welcomed.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn connect(dialer: &Dialer, settings: &Settings, instance: &Instance) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut socket = dialer.control(CONTROL, deadline).await?;
        let challenge = match receive(&mut socket, "challenge").await? {
            ToDevice::Challenge(challenge) => challenge,
            other => return Err(ConnectError::ProtocolViolation(format!("{} before challenge", other.kind()))),
        };
        let claims = ProofClaims {
            nonce: challenge.nonce,
            aud: dialer.url().host().to_owned(),
            sub: settings.device.clone(),
            instance: instance.clone(),
        };
        let proof = settings.identity.sign_proof(&claims)?;
        let hello = hello(settings, instance, &proof);
        let text = Message::text(FromDevice::from(hello).encode());
        timeout(WRITE_TIMEOUT, socket.send(text)).await.map_err(|_| ConnectError::Lost)?.map_err(|_| ConnectError::Lost)?;
        match receive(&mut socket, "welcome").await? {
            ToDevice::Welcome(welcome) => Ok(Self::welcomed(socket, welcome)),
            other => Err(ConnectError::ProtocolViolation(format!("{} instead of welcome", other.kind()))),
        }
    }

    fn welcomed(socket: WebSocket, welcome: Welcome) -> Self {
        let (outgoing_sender, outgoing) = mpsc::channel(OUTGOING_QUEUE);
        let now = Instant::now();
        let pings = welcome.features.iter().any(|feature| feature.as_str() == HEARTBEAT_FEATURE);
        let mut session = Self { socket, welcome, online_since: now, outgoing_sender, outgoing, last_frame: now, next_ping: now, pings };
        session.next_ping = now + session.heartbeat_interval();
        session
    }

    fn heartbeat_interval(&self) -> Duration {
        // A relay that wants a ping every moment is not obeyed.
        Duration::from_millis(self.welcome.heartbeat_ms.max(50))
    }

    /// How to say something here, from any task.
    pub fn sender(&self) -> mpsc::Sender<FromDevice> {
        self.outgoing_sender.clone()
    }

    /// What comes next. After [`SessionEvent::Ended`] nothing does.
    ///
    /// # Cancel safety
    /// A message that is being said may be cut short; the session is to be dropped then. Otherwise nothing is lost.
    pub async fn next(&mut self) -> SessionEvent {
        loop {
            let silent_at = self.last_frame + self.heartbeat_interval() * 5 / 2;
            let timer = if self.pings { silent_at.min(self.next_ping) } else { silent_at };
            // `next` keeps partial messages in the socket, `recv` keeps what was not taken, the timer is state of ours.
            let step = tokio::select! {
                message = self.socket.next() => self.on_message(message),
                Some(message) = self.outgoing.recv() => self.send(Message::text(message.encode())).await,
                () = sleep_until(timer) => self.on_tick().await,
            };
            match step {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(ended) => return SessionEvent::Ended(ended),
            }
        }
    }

    async fn on_tick(&mut self) -> Result<Option<SessionEvent>, SessionEnd> {
        let now = Instant::now();
        if now >= self.last_frame + self.heartbeat_interval() * 5 / 2 {
            return Err(SessionEnd::Unresponsive);
        }
        self.next_ping = now + self.heartbeat_interval();
        self.send(Message::Ping(Vec::new().into())).await
    }

    async fn send(&mut self, message: Message) -> Result<Option<SessionEvent>, SessionEnd> {
        match timeout(WRITE_TIMEOUT, self.socket.send(message)).await {
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
                    debug!(kind, "a message of an unknown type was passed over");
                    Ok(None)
                }
                Err(error) => Err(SessionEnd::ProtocolViolation(error.to_string())),
            },
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                Err(SessionEnd::Closed { code, reason })
            }
            Some(Ok(Message::Binary(_))) => Err(SessionEnd::ProtocolViolation("binary on a control channel".to_owned())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Err(error @ (WsError::Capacity(_) | WsError::Utf8(_)))) => Err(SessionEnd::ProtocolViolation(error.to_string())),
            Some(Err(_)) | None => Err(SessionEnd::Lost),
        }
    }

    /// Closes the channel: with 1000 where the device stops on purpose. Five seconds at most.
    pub async fn close(mut self, reason: CloseReason, words: &str) {
        let text = if words.is_empty() { reason.name().to_owned() } else { format!("{}: {words}", reason.name()) };
        let frame = CloseFrame { code: reason.code().into(), reason: truncated_reason(&text).into() };
        let closed = async {
            self.socket.send(Message::Close(Some(frame))).await?;
            while let Some(message) = self.socket.next().await {
                message?;
            }
            Ok::<_, WsError>(())
        };
        // Whatever goes wrong here, the channel is over.
        timeout(CLOSE_TIMEOUT, closed).await.ok();
    }
}

async fn receive(socket: &mut WebSocket, what: &'static str) -> Result<ToDevice, ConnectError> {
    let deadline = Instant::now() + WELCOME_TIMEOUT;
    loop {
        let message = timeout_at(deadline, socket.next()).await.map_err(|_| ConnectError::Timeout(what))?;
        match message {
            Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                Ok(Decoded::Known(message)) => return Ok(message),
                Ok(Decoded::Unknown(_)) => {}
                Err(error) => return Err(ConnectError::ProtocolViolation(error.to_string())),
            },
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                return Err(ConnectError::Closed { code, reason });
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(ConnectError::Lost),
        }
    }
}

fn hello(settings: &Settings, instance: &Instance, proof: &str) -> Hello {
    Hello {
        device: settings.device.clone(),
        instance: instance.clone(),
        proof: Text::truncated(proof),
        agent: Text::truncated(concat!("moorline-agent/", env!("CARGO_PKG_VERSION"))),
        services: settings.services.clone(),
        features: HEARTBEAT_FEATURE.parse().into_iter().collect(),
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| Text::truncated(name.trim())),
        os: Some(Text::truncated(std::env::consts::OS)),
    }
}
