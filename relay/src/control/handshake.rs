//! From the 101 to the `welcome`: the relay challenges, the device proves who it is. Each phase consumes the one before.

use std::io;
use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::control::{Challenge, FromDevice, Hello, Nonce, ToDevice, Welcome};
use moorline_proto::frame::{Close, FrameError};
use moorline_proto::message::Decoded;
use tokio::time::{Instant, timeout, timeout_at};

use crate::access::principal::DevicePrincipal;
use crate::access::proof::{Expected, ProofError, verify_proof};
use crate::clock::Clock;
use crate::control::channel::{self, Channel, ChannelEnd, Received};
use crate::limits::MESSAGES_BEFORE_HELLO;
use crate::random;
use crate::store::{DeviceRecord, Registry, StoreError};

/// A connection whose peer has not proved who it is.
#[derive(Debug)]
pub struct Unauthenticated {
    socket: Channel,
}

/// The device proved who it is; it has not received `welcome` yet.
#[must_use = "the device waits until it is admitted or closed"]
#[derive(Debug)]
pub struct Authenticated {
    socket: Channel,
    hello: Hello,
    principal: DevicePrincipal,
}

/// What a proof is checked against.
#[derive(Debug)]
pub struct Authenticator<'a> {
    /// The relay's names, one of which the proof must be made for.
    pub names: &'a [String],
    /// Where devices and their keys are.
    pub registry: &'a dyn Registry,
    /// For the challenge.
    pub clock: &'a Clock,
    /// From the 101 to the `hello`.
    pub hello_timeout: Duration,
}

/// Why a device was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No `hello` in time.
    #[error("no hello came in time")]
    TooLate,
    /// The connection ended.
    #[error("the connection ended before hello")]
    Lost(#[source] Option<io::Error>),
    /// The peer closed the channel.
    #[error("the channel was closed before hello")]
    Closed(Option<Close>),
    /// The peer broke WebSocket.
    #[error(transparent)]
    Frame(FrameError),
    /// The peer broke the protocol before `hello`.
    #[error("{0}")]
    Protocol(String),
    /// The registry has no such device.
    #[error("the device {0} is unknown")]
    Unknown(moorline_proto::id::DeviceId),
    /// The proof is invalid.
    #[error("the proof of {device} does not hold")]
    Proof {
        /// The device that was named.
        device: moorline_proto::id::DeviceId,
        /// Why.
        #[source]
        source: ProofError,
    },
    /// The registry did not answer.
    #[error("the registry did not answer")]
    Registry(#[source] StoreError),
}

impl HandshakeError {
    /// The Close that the device gets. None if the connection is lost, or the fault is the relay's.
    pub fn verdict(&self) -> Option<(CloseReason, String)> {
        match self {
            Self::TooLate => Some((CloseReason::Protocol, "no hello in time".to_owned())),
            Self::Frame(error) => Some((channel::close_reason(*error), error.to_string())),
            Self::Protocol(how) => Some((CloseReason::Protocol, how.clone())),
            // An unauthenticated peer learns nothing about which devices there are.
            Self::Unknown(_) | Self::Proof { .. } => {
                Some((CloseReason::Unauthenticated, "the device is unknown or its proof does not hold".to_owned()))
            }
            Self::Lost(_) | Self::Closed(_) | Self::Registry(_) => None,
        }
    }
}

impl Unauthenticated {
    /// A connection right after its 101.
    pub fn new(socket: Channel) -> Self {
        Self { socket }
    }

    /// Sends `challenge`, reads `hello`, verifies its proof. On an error the connection has been closed with the code for the error.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn authenticate(mut self, authenticator: &Authenticator<'_>) -> Result<Authenticated, HandshakeError> {
        match self.challenge(authenticator).await {
            Ok((hello, principal)) => Ok(Authenticated { socket: self.socket, hello, principal }),
            Err(HandshakeError::Closed(close)) => {
                self.socket.answer_close(close.as_ref()).await;
                Err(HandshakeError::Closed(close))
            }
            Err(error) => {
                if let Some((reason, detail)) = error.verdict() {
                    self.socket.close(reason, &detail).await;
                }
                Err(error)
            }
        }
    }

    async fn challenge(&mut self, authenticator: &Authenticator<'_>) -> Result<(Hello, DevicePrincipal), HandshakeError> {
        let deadline = Instant::now() + authenticator.hello_timeout;
        let nonce = Nonce(random::bytes());
        let challenge = ToDevice::from(Challenge { nonce, time: authenticator.clock.now() });
        let asked = timeout_at(deadline, self.socket.send(|batch| batch.text(&challenge.encode()))).await;
        asked.map_err(|_| HandshakeError::TooLate)?.map_err(|error| HandshakeError::Lost(Some(error)))?;
        let hello = timeout_at(deadline, self.hello()).await.map_err(|_| HandshakeError::TooLate)??;
        let record = known(authenticator.registry, &hello).await?;
        let expected = Expected { nonce, names: authenticator.names, device: &hello.device, instance: &hello.instance };
        match verify_proof(hello.proof.as_str(), &expected, &record.keys) {
            Ok(key_id) => {
                let principal = DevicePrincipal { device: hello.device.clone(), instance: hello.instance.clone(), key_id };
                Ok((hello, principal))
            }
            Err(source) => Err(HandshakeError::Proof { device: hello.device, source }),
        }
    }

    async fn hello(&mut self) -> Result<Hello, HandshakeError> {
        for _ in 0..=MESSAGES_BEFORE_HELLO {
            match self.socket.receive().await {
                Ok(Received::Text(text)) => match FromDevice::decode(&text) {
                    Ok(Decoded::Known(FromDevice::Hello(hello))) => return Ok(hello),
                    Ok(Decoded::Known(_) | Decoded::Unknown(_)) => {}
                    Err(error) => return Err(HandshakeError::Protocol(error.to_string())),
                },
                Ok(Received::Binary) => return Err(HandshakeError::Protocol("binary on a control channel".to_owned())),
                Ok(Received::Close(close)) => return Err(HandshakeError::Closed(close)),
                Ok(Received::Ping | Received::Pong) => {}
                Err(ChannelEnd::Broken(error)) => return Err(HandshakeError::Frame(error)),
                Err(ChannelEnd::Lost) => return Err(HandshakeError::Lost(None)),
            }
        }
        Err(HandshakeError::Protocol("too many messages before hello".to_owned()))
    }
}

async fn known(registry: &dyn Registry, hello: &Hello) -> Result<DeviceRecord, HandshakeError> {
    let record = registry.device(&hello.device).await.map_err(HandshakeError::Registry)?;
    record.ok_or_else(|| HandshakeError::Unknown(hello.device.clone()))
}

impl Authenticated {
    /// The device's `hello`.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Who it proved to be.
    pub fn principal(&self) -> &DevicePrincipal {
        &self.principal
    }

    /// Sends `welcome`: the device is online.
    ///
    /// # Errors
    /// [`HandshakeError::Lost`], or [`HandshakeError::TooLate`] if the device does not take the message within `within`.
    pub async fn admit(mut self, welcome: Welcome, within: Duration) -> Result<Channel, HandshakeError> {
        let sent = timeout(within, self.socket.send(|batch| batch.text(&ToDevice::from(welcome).encode()))).await;
        sent.map_err(|_| HandshakeError::TooLate)?.map_err(|error| HandshakeError::Lost(Some(error)))?;
        self.socket.authenticated();
        Ok(self.socket)
    }
}
