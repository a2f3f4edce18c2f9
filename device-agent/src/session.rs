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

use crate::backoff::Trouble;
use crate::identity::IdentityError;
use crate::settings::Settings;

/// DNS, TCP, TLS and the upgrade together.
const DIAL_WITHIN: Duration = Duration::from_secs(30);
/// A relay that does not take a message in this time is dead.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Answers that wait to be said.
const ANSWERS: usize = 64;

/// A control channel whose device was welcomed.
#[derive(Debug)]
pub struct Session {
    socket: WebSocket,
    /// What the relay said.
    pub welcome: Welcome,
    /// Since when.
    pub since: Instant,
    says: mpsc::Sender<FromDevice>,
    said: mpsc::Receiver<FromDevice>,
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
    TooLate(&'static str),
    /// What came is against the protocol.
    #[error("the relay broke the protocol: {0}")]
    Broke(String),
    /// The proof could not be made.
    #[error("the device's proof could not be made")]
    Identity(#[from] IdentityError),
}

impl ConnectError {
    /// What it means for coming back.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Dial(error) => match error.refusal() {
                Some(Refusal { status: 429 | 503, retry_after, .. }) => Trouble::Busy(*retry_after),
                Some(Refusal { status: 400..=499, .. }) => Trouble::Mistake,
                Some(_) | None => Trouble::Passing,
            },
            Self::Closed { code, .. } => Trouble::Closed(*code),
            Self::Lost | Self::TooLate(_) | Self::Broke(_) | Self::Identity(_) => Trouble::Passing,
        }
    }
}

/// What a session brings.
#[derive(Debug)]
pub enum Event {
    /// A question.
    Offer(Box<Offer>),
    /// A question is void.
    Cancel(Cancel),
    /// The node leaves: dial anew after this time. The session goes on.
    GoAway(Duration),
    /// It is over.
    Ended(Ended),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
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
    Silent,
    /// The relay broke the protocol.
    Broke(String),
}

impl Ended {
    /// What it means for coming back, for the start of the agent that is `own`.
    pub fn trouble(&self, own: &Instance) -> Trouble {
        match self {
            Self::Closed { code, .. } if *code == CloseReason::Superseded.code() => {
                if self.is_superseded_by(own) {
                    Trouble::Passing
                } else {
                    Trouble::SupersededByAnother
                }
            }
            Self::Closed { code, .. } => Trouble::Closed(*code),
            Self::Lost | Self::Silent | Self::Broke(_) => Trouble::Passing,
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
        let deadline = Instant::now() + DIAL_WITHIN;
        let mut socket = dialer.control(CONTROL, deadline).await?;
        let challenge = match expect(&mut socket, "challenge").await? {
            ToDevice::Challenge(challenge) => challenge,
            other => return Err(ConnectError::Broke(format!("{} before challenge", other.kind()))),
        };
        let claims = ProofClaims {
            nonce: challenge.nonce,
            aud: dialer.url().host().to_owned(),
            sub: settings.device.clone(),
            instance: instance.clone(),
        };
        let proof = settings.identity.prove(&claims)?;
        let hello = hello(settings, instance, &proof);
        let text = Message::text(FromDevice::from(hello).encode());
        timeout(WRITE_WITHIN, socket.send(text)).await.map_err(|_| ConnectError::Lost)?.map_err(|_| ConnectError::Lost)?;
        match expect(&mut socket, "welcome").await? {
            ToDevice::Welcome(welcome) => Ok(Self::welcomed(socket, welcome)),
            other => Err(ConnectError::Broke(format!("{} instead of welcome", other.kind()))),
        }
    }

    fn welcomed(socket: WebSocket, welcome: Welcome) -> Self {
        let (says, said) = mpsc::channel(ANSWERS);
        let now = Instant::now();
        let pings = welcome.features.iter().any(|feature| feature.as_str() == HEARTBEAT_FEATURE);
        let mut session = Self { socket, welcome, since: now, says, said, last_frame: now, next_ping: now, pings };
        session.next_ping = now + session.heartbeat();
        session
    }

    fn heartbeat(&self) -> Duration {
        // A relay that wants a ping every moment is not obeyed.
        Duration::from_millis(self.welcome.heartbeat_ms.max(50))
    }

    /// How to say something here, from any task.
    pub fn voice(&self) -> mpsc::Sender<FromDevice> {
        self.says.clone()
    }

    /// What comes next. After [`Event::Ended`] nothing does.
    ///
    /// # Cancel safety
    /// A message that is being said may be cut short; the session is to be dropped then. Otherwise nothing is lost.
    pub async fn next(&mut self) -> Event {
        loop {
            let dead = self.last_frame + self.heartbeat() * 5 / 2;
            let timer = if self.pings { dead.min(self.next_ping) } else { dead };
            // `next` keeps partial messages in the socket, `recv` keeps what was not taken, the timer is state of ours.
            let turn = tokio::select! {
                message = self.socket.next() => self.hear(message),
                Some(answer) = self.said.recv() => self.say(Message::text(answer.encode())).await,
                () = sleep_until(timer) => self.beat().await,
            };
            match turn {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(ended) => return Event::Ended(ended),
            }
        }
    }

    async fn beat(&mut self) -> Result<Option<Event>, Ended> {
        let now = Instant::now();
        if now >= self.last_frame + self.heartbeat() * 5 / 2 {
            return Err(Ended::Silent);
        }
        self.next_ping = now + self.heartbeat();
        self.say(Message::Ping(Vec::new().into())).await
    }

    async fn say(&mut self, message: Message) -> Result<Option<Event>, Ended> {
        match timeout(WRITE_WITHIN, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(None),
            Ok(Err(_)) => Err(Ended::Lost),
            Err(_) => Err(Ended::Silent),
        }
    }

    fn hear(&mut self, message: Option<Result<Message, WsError>>) -> Result<Option<Event>, Ended> {
        self.last_frame = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                Ok(Decoded::Known(ToDevice::Offer(offer))) => Ok(Some(Event::Offer(Box::new(offer)))),
                Ok(Decoded::Known(ToDevice::Cancel(cancel))) => Ok(Some(Event::Cancel(cancel))),
                Ok(Decoded::Known(ToDevice::GoAway(away))) => Ok(Some(Event::GoAway(Duration::from_millis(away.reconnect_in_ms)))),
                Ok(Decoded::Known(ToDevice::Challenge(_) | ToDevice::Welcome(_))) => Ok(None),
                Ok(Decoded::Unknown(kind)) => {
                    debug!(kind, "a message of an unknown type was passed over");
                    Ok(None)
                }
                Err(error) => Err(Ended::Broke(error.to_string())),
            },
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                Err(Ended::Closed { code, reason })
            }
            Some(Ok(Message::Binary(_))) => Err(Ended::Broke("binary on a control channel".to_owned())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Err(error @ (WsError::Capacity(_) | WsError::Utf8(_)))) => Err(Ended::Broke(error.to_string())),
            Some(Err(_)) | None => Err(Ended::Lost),
        }
    }

    /// Closes the channel: with 1000 where the device stops on purpose. Five seconds at most.
    pub async fn close(mut self, reason: CloseReason, words: &str) {
        let text = if words.is_empty() { reason.name().to_owned() } else { format!("{}: {words}", reason.name()) };
        let frame = CloseFrame { code: reason.code().into(), reason: truncated_reason(&text).into() };
        let goodbye = async {
            self.socket.send(Message::Close(Some(frame))).await?;
            while let Some(message) = self.socket.next().await {
                message?;
            }
            Ok::<_, WsError>(())
        };
        // Whatever goes wrong here, the channel is over.
        timeout(CLOSE_TIMEOUT, goodbye).await.ok();
    }
}

async fn expect(socket: &mut WebSocket, what: &'static str) -> Result<ToDevice, ConnectError> {
    let deadline = Instant::now() + WELCOME_TIMEOUT;
    loop {
        let message = timeout_at(deadline, socket.next()).await.map_err(|_| ConnectError::TooLate(what))?;
        match message {
            Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
                Ok(Decoded::Known(message)) => return Ok(message),
                Ok(Decoded::Unknown(_)) => {}
                Err(error) => return Err(ConnectError::Broke(error.to_string())),
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
