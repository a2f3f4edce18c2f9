//! What a program that embeds the agent sees of an offer, and how it answers.

use std::pin::Pin;
use std::time::Duration;

use moorline_proto::causes::Causes;
use moorline_proto::control::{CallerInfo, RejectCode};
use moorline_proto::id::{Feature, ServiceName, StreamId};
use moorline_proto::text::Data;
use tokio::net::{TcpStream, UnixStream};
use tracing::warn;

use crate::policy::Policy;
use crate::target::{AnyStream, LocalStream};

/// An offer, as its handler sees it.
#[derive(Clone, Debug)]
pub struct OfferInfo {
    /// Id of the stream.
    pub stream: StreamId,
    /// The service that the caller wants to reach.
    pub service: ServiceName,
    /// Who the caller is, from where, and why it asks.
    pub caller: CallerInfo,
    /// Data of the caller, opaque to the relay.
    pub data: Option<Data>,
    /// Features that the caller would use.
    pub features: Vec<Feature>,
    /// The target should answer within this time.
    pub target_timeout: Duration,
}

/// The answer to an offer.
#[derive(Debug)]
pub enum Decision {
    /// The offer is accepted.
    Accept(Accepted),
    /// The offer is rejected.
    Reject {
        /// The reason.
        code: RejectCode,
        /// A text that the caller sees.
        detail: String,
    },
}

impl Decision {
    /// A rejection. The caller sees the first 256 characters of `detail`.
    pub fn reject(code: RejectCode, detail: impl Into<String>) -> Self {
        Self::Reject { code, detail: detail.into() }
    }
}

/// The local side of an accepted offer: a target that is connected.
#[derive(Debug)]
pub struct Accepted {
    pub(crate) local: LocalStream,
    pub(crate) data: Option<Data>,
    pub(crate) features: Vec<Feature>,
}

impl Accepted {
    /// Accepts with a TCP connection. It is the only kind that can be reset when the stream is cut.
    pub fn tcp(tcp: TcpStream) -> Self {
        Self::local(LocalStream::Tcp(tcp))
    }

    /// Accepts with a Unix socket.
    pub fn unix(unix: UnixStream) -> Self {
        Self::local(LocalStream::Unix(unix))
    }

    /// Accepts with any byte stream.
    pub fn stream(stream: impl AnyStream + 'static) -> Self {
        Self::local(LocalStream::Any(Box::new(stream)))
    }

    /// Accepts with the connection of a [`Target`](crate::target::Target).
    pub fn local(local: LocalStream) -> Self {
        Self { local, data: None, features: Vec::new() }
    }

    /// Sends data to the caller with the answer.
    #[must_use]
    pub fn with_data(mut self, data: Data) -> Self {
        self.data = Some(data);
        self
    }

    /// Names the offered features that this side will use.
    #[must_use]
    pub fn with_features(mut self, features: Vec<Feature>) -> Self {
        self.features = features;
        self
    }
}

/// The future of [`Handler::decide`].
pub type DecisionFuture<'a> = Pin<Box<dyn Future<Output = Decision> + Send + 'a>>;

/// Decides about offers. Implemented by closures `|offer: OfferInfo| async move { … }`.
pub trait Handler: Send + Sync + 'static {
    /// Decides about one offer, and connects to the target before it accepts.
    ///
    /// # Cancel safety
    /// The future is dropped when the offer is cancelled, replaced or expires.
    fn decide(&self, offer: OfferInfo) -> DecisionFuture<'_>;
}

impl<F, D> Handler for F
where
    F: Fn(OfferInfo) -> D + Send + Sync + 'static,
    D: Future<Output = Decision> + Send + 'static,
{
    fn decide(&self, offer: OfferInfo) -> DecisionFuture<'_> {
        Box::pin(self(offer))
    }
}

impl Handler for Policy {
    /// Connects to the target of the service.
    fn decide(&self, offer: OfferInfo) -> DecisionFuture<'_> {
        Box::pin(async move {
            let target = match self.decide(&offer.service) {
                Ok(target) => target,
                Err(code) => return Decision::reject(code, format!("the device exposes no service {:?}", offer.service.as_str())),
            };
            match target.dial(self.connector(), offer.target_timeout).await {
                Ok(local) => Decision::Accept(Accepted::local(local)),
                Err(error) => {
                    warn!(service = %offer.service, %target, error = %Causes(&error), "connecting to the target failed");
                    // Without the cause: the target's address is private to the device.
                    Decision::reject(error.code(), error.to_string())
                }
            }
        })
    }
}
