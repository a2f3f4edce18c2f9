//! Dials the relay: name resolution, TCP, TLS, and one HTTP exchange or upgrade, all within one deadline.
//!
//! The only state kept between dials is TLS sessions and, for a few seconds, the relay's address ([`crate::tcp`]). Redirects are never followed:
//! a token must not travel to a host that somebody else names.
//!
//! Does not own: retries (each program has its own rules), the messages on a WebSocket ([`crate::leg`]).

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use moorline_proto::join::RelayUrl;
use moorline_proto::names::{LEG_HEADER, REUSE};
use moorline_proto::secret::Secret;
use moorline_tls::ClientStream;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::connection::Connection;
pub use crate::connection::WebSocket;
pub use crate::error::{Attempts, DialError, Refusal, Step};
pub use crate::exchange::Response;
use crate::exchange::{RequestParts, Subprotocol, Upgraded, control_config, exchange, upgrade};
use crate::leg::Leg;
use crate::socket::Socket;
use crate::tcp::{AddressSource, ConnectError, TcpConnector};
pub use crate::tls_fault::TlsFault;
use crate::trust::client_config;
pub use crate::trust::{TrustError, provider};

/// Dials one relay. Cheap to clone; clones share TLS sessions.
#[derive(Clone)]
pub struct Dialer {
    url: RelayUrl,
    connector: Connector,
    /// Whether legs ask to be used again.
    reuse: bool,
}

#[derive(Clone)]
enum Connector {
    Tls(Arc<ClientConfig>, TcpConnector),
    Custom(Arc<ConnectFn>),
}

type ConnectFn = dyn Fn(RelayUrl) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> + Send + Sync;

impl Dialer {
    /// A dialer for the relay at `url`. With `ca` (a DER certificate) only that CA is trusted, otherwise the machine's trust store.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(url: RelayUrl, ca: Option<&[u8]>) -> Result<Self, TrustError> {
        Ok(Self { url, connector: Connector::Tls(client_config(ca)?, TcpConnector::default()), reuse: false })
    }

    /// A dialer whose connections come from `connect` instead of TCP and TLS, for example in-process pipes.
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
        Self { url, connector: Connector::Custom(Arc::new(connect)), reuse: false }
    }

    /// The same dialer for another address, such as one that [`RelayUrl::resolve`] returned for a leg.
    #[must_use]
    pub fn at(&self, url: RelayUrl) -> Self {
        Self { url, ..self.clone() }
    }

    /// The same dialer, whose legs ask the relay to be used again: where it grants that, they end with [`crate::leg::IdleLeg`].
    #[must_use]
    pub fn with_reuse(&self) -> Self {
        Self { reuse: true, ..self.clone() }
    }

    /// The relay's address.
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// Opens a control channel's WebSocket at `path`.
    ///
    /// # Errors
    /// [`DialError`]. At most 64 KiB of a refusal's body are read.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have received the request.
    pub async fn control(&self, path: &str, deadline: Instant) -> Result<WebSocket, DialError> {
        let parts = RequestParts { method: Method::GET, path, headers: &HeaderMap::new(), bearer: None, body: None };
        let work = async |connection| upgrade(connection, &self.url, parts, Subprotocol::Control).await;
        let Upgraded { connection, ahead, .. } = self.within(None, AddressSource::Resolve, deadline, work).await?;
        Ok(WebSocketStream::from_partially_read(connection, ahead.into(), Role::Client, Some(control_config())).await)
    }

    /// Opens a connection without sending a request on it, for [`Dialer::leg_on`]: a caller that still waits for something else saves the
    /// time of the handshakes. The relay keeps such a connection for one minute. Flush a connection that is not used at once: the end of the
    /// TLS handshake may still be buffered.
    ///
    /// # Errors
    /// [`DialError`], never [`DialError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn preconnect(&self, deadline: Instant) -> Result<Connection, DialError> {
        self.within(None, AddressSource::CacheFirst, deadline, async |connection| Ok(connection)).await
    }

    /// Opens a leg at `path`, which then waits for `opened`; or for `idle`, where the path is one for legs that are opened idle.
    ///
    /// # Errors
    /// [`DialError`]. At most 64 KiB of a refusal's body are read.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have received the request.
    pub async fn leg(&self, path: &str, headers: &HeaderMap, bearer: Option<&Secret>, deadline: Instant) -> Result<Leg, DialError> {
        self.leg_with(None, path, headers, bearer, deadline).await
    }

    /// Like [`Dialer::leg`], on a connection from [`Dialer::preconnect`].
    ///
    /// # Errors
    /// As [`Dialer::leg`].
    ///
    /// # Cancel safety
    /// As [`Dialer::leg`].
    pub async fn leg_on(&self, connection: Connection, path: &str, bearer: &Secret, deadline: Instant) -> Result<Leg, DialError> {
        self.leg_with(Some(connection), path, &HeaderMap::new(), Some(bearer), deadline).await
    }

    async fn leg_with(
        &self,
        connection: Option<Connection>,
        path: &str,
        headers: &HeaderMap,
        bearer: Option<&Secret>,
        deadline: Instant,
    ) -> Result<Leg, DialError> {
        let mut headers = Cow::Borrowed(headers);
        if self.reuse {
            headers.to_mut().insert(HeaderName::from_static(LEG_HEADER), HeaderValue::from_static(REUSE));
        }
        let parts = RequestParts { method: Method::GET, path, headers: &headers, bearer, body: None };
        let work = async |connection| upgrade(connection, &self.url, parts, Subprotocol::Stream).await;
        let Upgraded { connection, ahead, grants_reuse } = self.within(connection, AddressSource::CacheFirst, deadline, work).await?;
        Ok(if self.reuse && grants_reuse { Leg::reusable(connection, ahead) } else { Leg::new(connection, ahead) })
    }

    /// Sends one request of the HTTP API on a connection of its own. `body` is JSON. Every status is `Ok`: see [`Response::accepted`].
    ///
    /// # Errors
    /// [`DialError`], never [`DialError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have received the request.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        bearer: Option<&Secret>,
        body: Option<String>,
        deadline: Instant,
    ) -> Result<Response, DialError> {
        let parts = RequestParts { method, path, headers, bearer, body };
        self.within(None, AddressSource::CacheFirst, deadline, async |connection| exchange(connection, &self.url, parts).await).await
    }

    /// Connects unless there is a connection, then runs `work`, all before the deadline.
    async fn within<T>(
        &self,
        connection: Option<Connection>,
        source: AddressSource,
        deadline: Instant,
        work: impl AsyncFnOnce(Connection) -> Result<T, DialError>,
    ) -> Result<T, DialError> {
        // Boxed: dialling is large and short.
        let all = Box::pin(async {
            let connection = match connection {
                Some(connection) => connection,
                None => self.connect(source, deadline).await?,
            };
            before(deadline, Step::Request, work(connection)).await
        });
        all.await
    }

    async fn connect(&self, source: AddressSource, deadline: Instant) -> Result<Connection, DialError> {
        match &self.connector {
            Connector::Tls(config, tcp) => {
                let connected = tcp.connect(self.url.host(), self.url.port(), source, deadline).await;
                let tcp = connected.map_err(|error| self.connect_error(error))?;
                let failed = |source| DialError::Tls { host: self.url.host().to_owned(), source };
                let server = ServerName::try_from(self.url.host().to_owned()).map_err(|error| failed(io::Error::other(error)))?;
                let handshake = ClientStream::connect(Arc::clone(config), server, Socket::new(tcp));
                let handshake = async { handshake.await.map(Connection::tls).map_err(failed) };
                before(deadline, Step::TlsHandshake, handshake).await
            }
            Connector::Custom(connect) => {
                let failed = |source| DialError::Connect { host: self.url.authority(), source };
                before(deadline, Step::Resolve, async { connect(self.url.clone()).await.map_err(failed) }).await
            }
        }
    }

    fn connect_error(&self, error: ConnectError) -> DialError {
        match error {
            ConnectError::Resolve(source) => DialError::Resolve { host: self.url.host().to_owned(), source },
            ConnectError::Failed { attempts, source } => {
                DialError::Connect { host: format!("{} at {attempts}", self.url.authority()), source }
            }
            ConnectError::TimedOut(attempts) => DialError::Deadline { step: Step::of(&attempts) },
            ConnectError::NoDescriptors => DialError::NoDescriptors,
        }
    }
}

/// Runs a step of a dial until the deadline.
async fn before<T>(deadline: Instant, step: Step, work: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
    timeout_at(deadline, work).await.unwrap_or(Err(DialError::Deadline { step }))
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialer({})", self.url)
    }
}
