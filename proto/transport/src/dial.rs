//! Reaching the relay: names to addresses, TCP, TLS, and one HTTP exchange or upgrade, all under one deadline.
//!
//! Nothing is remembered between dials but TLS sessions, and for a few seconds where the relay is (`tcp.rs`). Redirects are never
//! followed, since a token must not travel to where a stranger points.
//!
//! Does not own: trying again (each program's own matter), what is said on a WebSocket ([`crate::leg`]).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, Method};
use moorline_proto::join::RelayUrl;
use moorline_proto::secret::Secret;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::buffered_tcp::BufferedTcp;
use crate::connection::Connection;
pub use crate::connection::WebSocket;
pub use crate::error::{DialError, Refusal, Step};
pub use crate::exchange::Response;
use crate::exchange::{RequestParts, Subprotocol, control_config, exchange, upgrade};
use crate::leg::Leg;
use crate::tcp::{AddressSource, TcpConnector};
use crate::trust::client_config;
pub use crate::trust::{TrustError, provider};

/// Reaches one relay. Cheap to clone; clones resume one another's TLS sessions.
#[derive(Clone)]
pub struct Dialer {
    url: RelayUrl,
    connector: Connector,
}

#[derive(Clone)]
enum Connector {
    Tls(Arc<ClientConfig>, Arc<TcpConnector>),
    Custom(Arc<ConnectFn>),
}

type ConnectFn = dyn Fn(RelayUrl) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> + Send + Sync;

impl Dialer {
    /// A dialer of the relay at `url`. With `ca` (DER of a certificate) only that CA is trusted, else the machine's own store.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(url: RelayUrl, ca: Option<&[u8]>) -> Result<Self, TrustError> {
        Ok(Self { url, connector: Connector::Tls(client_config(ca)?, Arc::default()) })
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
        Self { url, connector: Connector::Custom(Arc::new(connect)) }
    }

    /// The same dialer for another address: what [`RelayUrl::resolve`] gave for a leg.
    #[must_use]
    pub fn at(&self, url: RelayUrl) -> Self {
        Self { url, connector: self.connector.clone() }
    }

    /// Where it dials.
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// Opens a control channel's WebSocket at `path`.
    ///
    /// # Errors
    /// [`DialError`]. A refusal's body is read up to 64 KiB.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have taken the request.
    pub async fn control(&self, path: &str, deadline: Instant) -> Result<WebSocket, DialError> {
        let parts = RequestParts { method: Method::GET, path, headers: &HeaderMap::new(), bearer: None, body: None };
        let work = async |connection| upgrade(connection, &self.url, parts, Subprotocol::Control).await;
        let (connection, ahead) = self.within(None, AddressSource::Resolve, deadline, work).await?;
        Ok(WebSocketStream::from_partially_read(connection, ahead.into(), Role::Client, Some(control_config())).await)
    }

    /// A connection on which nothing is asked yet, for [`Dialer::leg_on`]: who has something else to wait for saves this time. The relay keeps
    /// it for a minute, but first it must be told that TLS is done: flush a connection that is not used at once.
    ///
    /// # Errors
    /// [`DialError`], but never [`DialError::Refused`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn preconnect(&self, deadline: Instant) -> Result<Connection, DialError> {
        self.within(None, AddressSource::CacheFirst, deadline, async |connection| Ok(connection)).await
    }

    /// Opens a leg at `path`, which then waits for `opened`.
    ///
    /// # Errors
    /// [`DialError`]. A refusal's body is read up to 64 KiB.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have taken the request.
    pub async fn leg(&self, path: &str, headers: &HeaderMap, bearer: Option<&Secret>, deadline: Instant) -> Result<Leg, DialError> {
        self.leg_with(None, path, headers, bearer, deadline).await
    }

    /// Opens a leg as [`Dialer::leg`], on a connection that is there.
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
        let parts = RequestParts { method: Method::GET, path, headers, bearer, body: None };
        let work = async |connection| upgrade(connection, &self.url, parts, Subprotocol::Stream).await;
        self.within(connection, AddressSource::CacheFirst, deadline, work).await.map(|(connection, ahead)| Leg::new(connection, ahead))
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
        let parts = RequestParts { method, path, headers, bearer, body };
        self.within(None, AddressSource::CacheFirst, deadline, async |connection| exchange(connection, &self.url, parts).await).await
    }

    /// Connects, where there is no connection yet, then does `work`, both before the deadline.
    async fn within<T>(
        &self,
        connection: Option<Connection>,
        source: AddressSource,
        deadline: Instant,
        work: impl AsyncFnOnce(Connection) -> Result<T, DialError>,
    ) -> Result<T, DialError> {
        let mut step = Step::Resolve;
        let all = async {
            let connection = match connection {
                Some(connection) => connection,
                None => self.connect(source, &mut step, deadline).await?,
            };
            step = Step::Request;
            work(connection).await
        };
        match timeout_at(deadline, Box::pin(all)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Deadline { step }),
        }
    }

    async fn connect(&self, source: AddressSource, step: &mut Step, deadline: Instant) -> Result<Connection, DialError> {
        match &self.connector {
            Connector::Tls(config, tcp) => {
                let socket = tcp.connect(&self.url, source, step, deadline).await?;
                *step = Step::TlsHandshake;
                let failed = |source| DialError::Tls { host: self.url.host().to_owned(), source };
                let server = ServerName::try_from(self.url.host().to_owned()).map_err(|error| failed(io::Error::other(error)))?;
                TlsConnector::from(Arc::clone(config))
                    .connect(server, BufferedTcp::holding(socket))
                    .await
                    .map(Connection::tls)
                    .map_err(failed)
            }
            Connector::Custom(connect) => {
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
