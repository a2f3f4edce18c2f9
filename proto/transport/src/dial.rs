//! Reaching the relay: names to addresses, TCP, TLS, and one HTTP exchange or upgrade, all under one deadline.
//!
//! Nothing is remembered between dials but TLS sessions, and for a few seconds where the relay is (`reach.rs`). Redirects are never
//! followed, since a token must not travel to where a stranger points.
//!
//! Does not own: trying again (each program's own matter), what is said on a WebSocket ([`crate::leg`]).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use moorline_proto::bounds::{CONTROL_MESSAGE_BYTES, LEG_BINARY_BYTES};
use moorline_proto::join::RelayUrl;
use moorline_proto::names::{CONTROL_SUBPROTOCOL, STREAM_SUBPROTOCOL};
use moorline_proto::problem::Problem;
use moorline_proto::secret::Secret;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::connection::Connection;
pub use crate::connection::WebSocket;
pub use crate::exchange::Response;
use crate::exchange::{Ask, exchange, upgrade};
use crate::leg::Leg;
use crate::reach::{Name, Reach};
use crate::trust::client_config;
pub use crate::trust::{TrustError, provider};

/// What a WebSocket to the relay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// A device's control channel.
    Control,
    /// A leg of a stream.
    Stream,
}

impl Subprotocol {
    /// As it stands in `Sec-WebSocket-Protocol`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => CONTROL_SUBPROTOCOL,
            Self::Stream => STREAM_SUBPROTOCOL,
        }
    }

    /// A control channel is idle most of its life and its messages are short; a leg carries bulk in messages of 64 KiB.
    pub(crate) fn config(self) -> WebSocketConfig {
        let (read, write, message) = match self {
            Self::Control => (4 * 1024, 0, CONTROL_MESSAGE_BYTES),
            Self::Stream => (16 * 1024, LEG_BINARY_BYTES, LEG_BINARY_BYTES), // TLS gives 16 KiB at a time
        };
        WebSocketConfig::default()
            .read_buffer_size(read)
            .write_buffer_size(write)
            .max_write_buffer_size(write + 4 * message)
            .max_message_size(Some(message))
            .max_frame_size(Some(message))
    }
}

/// Reaches one relay. Cheap to clone; clones resume one another's TLS sessions.
#[derive(Clone)]
pub struct Dialer {
    url: RelayUrl,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Tls(Arc<ClientConfig>, Arc<Reach>),
    Other(Arc<Connect>),
}

type Connect = dyn Fn(RelayUrl) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> + Send + Sync;

/// Where a dial was when it failed or its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking for the addresses of the host's name.
    Resolving,
    /// Connecting by TCP to this address.
    Connecting(SocketAddr),
    /// The TLS handshake.
    Securing,
    /// Waiting for the answer to the HTTP request.
    Asking,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolving => f.write_str("resolving the relay's name"),
            Self::Connecting(address) => write!(f, "connecting to {address}"),
            Self::Securing => f.write_str("the TLS handshake"),
            Self::Asking => f.write_str("waiting for the relay's answer"),
        }
    }
}

/// The relay's answer, where it is a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The body, if it is a problem of the protocol.
    pub problem: Option<Problem>,
    /// Asking again makes sense after this long.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Some(problem) => write!(f, "{} {}: {}", self.status, problem.code, problem.detail),
            None => write!(f, "HTTP status {}", self.status),
        }
    }
}

/// Why the relay was not reached, or refused.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The deadline passed.
    #[error("no answer in time: the deadline passed while {step}")]
    Deadline {
        /// Where the time went.
        step: Step,
    },
    /// The host's name has no address, or nobody could be asked.
    #[error("the name {host} does not resolve")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No address of the host takes a connection. Tells of the last one.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port, with the address that was tried last.
        host: String,
        /// What the machine says.
        #[source]
        source: io::Error,
    },
    /// This process may open no more connections.
    #[error("no file descriptors are left for this program")]
    NoDescriptors,
    /// The TLS handshake failed: not the relay that is trusted, or no TLS there.
    #[error("no TLS with {host}")]
    Tls {
        /// The host that a certificate was expected for.
        host: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP/1.1.
    #[error("the HTTP exchange with the relay failed")]
    Http(#[source] hyper::Error),
    /// What should be asked is no request: a path or header that cannot be sent.
    #[error("this cannot be asked")]
    Request(#[source] http::Error),
    /// The body of the answer is broken, or larger than is read.
    #[error("the relay's answer is not readable: {0}")]
    Body(String),
    /// The answer was 101, but for something else than was asked for.
    #[error("the relay's upgrade is broken: {0}")]
    Upgrade(&'static str),
    /// The relay refused.
    #[error("refused by the relay: {0}")]
    Refused(Box<Refusal>),
}

impl DialError {
    /// The relay's refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        if let Self::Refused(refusal) = self { Some(refusal) } else { None }
    }
}

impl Dialer {
    /// A dialer of the relay at `url`. With `ca` (DER of a certificate) only that CA is trusted, else the machine's own store.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(url: RelayUrl, ca: Option<&[u8]>) -> Result<Self, TrustError> {
        Ok(Self { url, way: Way::Tls(client_config(ca)?, Arc::default()) })
    }

    /// A dialer that gets its connections from `connect` instead of TCP and TLS: for pipes within the process.
    pub fn over<C, F, S>(url: RelayUrl, connect: C) -> Self
    where
        C: Fn(RelayUrl) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connect = move |url| -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> {
            let connecting = connect(url);
            Box::pin(async move { connecting.await.map(Connection::over) })
        };
        Self { url, way: Way::Other(Arc::new(connect)) }
    }

    /// The same dialer for another address: what [`RelayUrl::resolve`] gave for a leg.
    #[must_use]
    pub fn at(&self, url: RelayUrl) -> Self {
        Self { url, way: self.way.clone() }
    }

    /// Where it dials.
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// Opens a WebSocket at `path`.
    ///
    /// # Errors
    /// [`DialError`]. A refusal's body is read up to 64 KiB.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have taken the request.
    pub async fn upgrade(
        &self,
        path: &str,
        subprotocol: Subprotocol,
        headers: &HeaderMap,
        bearer: Option<&Secret>,
        deadline: Instant,
    ) -> Result<WebSocket, DialError> {
        let ask = Ask { method: Method::GET, path, headers, bearer, body: None };
        let name = if subprotocol == Subprotocol::Control { Name::Resolved } else { Name::Remembered };
        self.within(None, name, deadline, async |connection| upgrade(connection, &self.url, ask, subprotocol).await).await
    }

    /// A connection on which nothing is asked yet, for [`Dialer::leg_on`]: who has something else to wait for saves this time. The relay keeps
    /// it for a minute.
    ///
    /// # Errors
    /// [`DialError`], but never [`DialError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn ahead(&self, deadline: Instant) -> Result<Connection, DialError> {
        self.within(None, Name::Remembered, deadline, async |connection| Ok(connection)).await
    }

    /// Opens a leg as [`Dialer::leg`], on a connection that is there.
    ///
    /// # Errors
    /// As [`Dialer::upgrade`].
    ///
    /// # Cancel safety
    /// As [`Dialer::upgrade`].
    pub async fn leg_on(&self, ahead: Connection, path: &str, bearer: &Secret, deadline: Instant) -> Result<Leg, DialError> {
        let ask = Ask { method: Method::GET, path, headers: &HeaderMap::new(), bearer: Some(bearer), body: None };
        let work = async |connection| upgrade(connection, &self.url, ask, Subprotocol::Stream).await;
        self.within(Some(ahead), Name::Remembered, deadline, work).await.map(Leg::new)
    }

    /// Opens a leg at `path`: what [`Dialer::upgrade`] gives, as a [`Leg`] that waits for `opened`.
    ///
    /// # Errors
    /// As [`Dialer::upgrade`].
    ///
    /// # Cancel safety
    /// As [`Dialer::upgrade`].
    pub async fn leg(&self, path: &str, headers: &HeaderMap, bearer: Option<&Secret>, deadline: Instant) -> Result<Leg, DialError> {
        self.upgrade(path, Subprotocol::Stream, headers, bearer, deadline).await.map(Leg::new)
    }

    /// Asks something of the HTTP API on a connection of its own. `body` is JSON. Any status is an answer: see [`Response::accepted`].
    ///
    /// # Errors
    /// [`DialError`], but never [`DialError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have taken the request.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        bearer: Option<&Secret>,
        body: Option<String>,
        deadline: Instant,
    ) -> Result<Response, DialError> {
        let ask = Ask { method, path, headers, bearer, body };
        self.within(None, Name::Remembered, deadline, async |connection| exchange(connection, &self.url, ask).await).await
    }

    /// Connects, where there is no connection yet, then does `work`, both before the deadline.
    async fn within<T>(
        &self,
        ahead: Option<Connection>,
        name: Name,
        deadline: Instant,
        work: impl AsyncFnOnce(Connection) -> Result<T, DialError>,
    ) -> Result<T, DialError> {
        let mut step = Step::Resolving;
        let all = async {
            let connection = match ahead {
                Some(connection) => connection,
                None => self.connect(name, &mut step, deadline).await?,
            };
            step = Step::Asking;
            work(connection).await
        };
        match timeout_at(deadline, Box::pin(all)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Deadline { step }),
        }
    }

    async fn connect(&self, name: Name, step: &mut Step, deadline: Instant) -> Result<Connection, DialError> {
        match &self.way {
            Way::Tls(config, reach) => {
                let tcp = reach.tcp(&self.url, name, step, deadline).await?;
                *step = Step::Securing;
                let failed = |source| DialError::Tls { host: self.url.host().to_owned(), source };
                let server = ServerName::try_from(self.url.host().to_owned()).map_err(|error| failed(io::Error::other(error)))?;
                TlsConnector::from(Arc::clone(config)).connect(server, tcp).await.map(Connection::tls).map_err(failed)
            }
            Way::Other(connect) => {
                connect(self.url.clone()).await.map_err(|source| DialError::Connect { host: self.url.authority(), source })
            }
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialer({})", self.url)
    }
}
