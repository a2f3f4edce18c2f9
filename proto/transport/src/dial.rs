//! From an address to an answer: DNS → TCP → TLS → HTTP/1.1, under one deadline. Every dial resolves the name again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use moorline_proto::join::RelayUrl;
use moorline_proto::problem::Problem;
use moorline_proto::secret::Secret;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::connection::Connection;

/// A WebSocket to a relay.
pub type WebSocket = WebSocketStream<Connection>;

/// Bytes of an answer's body.
const BODY_BYTES: usize = 1 << 20;
/// One address of several may take this long to answer, so that a dead one does not use up the deadline.
const ADDRESS_WITHIN: Duration = Duration::from_secs(10);
/// A silent TCP connection is asked for life after this long, and this often.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Where connections come from when not from the network.
type Pipes = Arc<dyn Fn() -> io::Result<Connection> + Send + Sync>;

/// Dials one relay. Cheap to clone; clones share TLS sessions, which are resumed.
#[derive(Clone)]
pub struct Dialer {
    url: RelayUrl,
    tls: Arc<ClientConfig>,
    pipes: Option<Pipes>,
    agent: HeaderValue,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialer({})", self.url)
    }
}

/// Why there can be no TLS to a relay.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The CA certificate is none.
    #[error("the CA certificate cannot be used")]
    Ca(#[source] rustls::Error),
    /// The machine trusts nobody.
    #[error("no CA certificate was given, and this machine has no certificates of its own to trust")]
    NoRoots,
    /// The TLS library refused its own defaults.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// Why there is no connection, or no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name of the relay does not resolve.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// None of the relay's addresses takes a connection; this is what the last one said.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host is no name that a certificate could be for.
    #[error("{host} is no name for TLS")]
    Name {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: InvalidDnsNameError,
    },
    /// No TLS came about, often since the certificate is not the relay's.
    #[error("no TLS with {host}")]
    Tls {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended in the middle of the request.
    #[error("the connection to {host} ended within the request")]
    Http {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// What was asked for cannot be written as a request.
    #[error("the request cannot be written")]
    Request(#[from] http::Error),
    /// The relay answered with another status than was asked for.
    #[error("the relay answered {status}{}", .problem.as_ref().map(|problem| format!(": {} ({})", problem.detail, problem.code)).unwrap_or_default())]
    Refused {
        /// The status.
        status: u16,
        /// The body, if it is a problem.
        problem: Option<Box<Problem>>,
        /// What Retry-After says.
        retry_after: Option<Duration>,
    },
    /// Whoever answered does not speak the protocol.
    #[error("{host} does not answer as a relay does: {how}")]
    NoRelay {
        /// The host.
        host: String,
        /// What is wrong.
        how: &'static str,
    },
    /// The deadline passed.
    #[error("{host} did not answer in time")]
    TimedOut {
        /// The host.
        host: String,
    },
}

/// What makes a request a WebSocket's.
#[derive(Clone, Debug)]
pub struct Upgrade<'a> {
    /// Path on the relay.
    pub path: &'a str,
    /// The one subprotocol that is offered.
    pub subprotocol: &'static str,
    /// Goes into `Authorization`.
    pub bearer: Option<&'a Secret>,
    /// Further headers.
    pub headers: HeaderMap,
    /// Buffers and bounds.
    pub config: WebSocketConfig,
}

impl Dialer {
    /// Dials `url`. With `ca`, DER of a certificate, only that authority is trusted; without, those that the machine trusts.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(url: RelayUrl, ca: Option<&[u8]>) -> Result<Self, TrustError> {
        let mut roots = rustls::RootCertStore::empty();
        match ca {
            Some(der) => roots.add(CertificateDer::from(der.to_vec())).map_err(TrustError::Ca)?,
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(TrustError::NoRoots);
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(TrustError::Tls)?;
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let agent = HeaderValue::from_static(concat!("moorline/", env!("CARGO_PKG_VERSION")));
        Ok(Self { url, tls: Arc::new(tls), pipes: None, agent })
    }

    /// Takes connections from `pipes` instead of the network.
    #[must_use]
    pub fn over(mut self, pipes: impl Fn() -> io::Result<Connection> + Send + Sync + 'static) -> Self {
        self.pipes = Some(Arc::new(pipes));
        self
    }

    /// The same dialling to another address, as the relay handed it out.
    #[must_use]
    pub fn at(&self, url: RelayUrl) -> Self {
        Self { url, ..self.clone() }
    }

    /// Where it dials.
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// A WebSocket to the relay.
    ///
    /// # Errors
    /// [`DialError`]; [`DialError::Refused`] with the relay's own words. A redirect is a refusal: nobody follows one with a token.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn upgrade(&self, upgrade: Upgrade<'_>, deadline: Instant) -> Result<WebSocket, DialError> {
        self.in_time(deadline, self.upgrade_unbounded(upgrade)).await
    }

    /// An ordinary request with its whole answer, whatever its status.
    ///
    /// # Errors
    /// [`DialError`], but never `Refused`.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection; the relay may have done as it was asked.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        bearer: Option<&Secret>,
        body: Option<Bytes>,
        deadline: Instant,
    ) -> Result<Response<Bytes>, DialError> {
        let exchange = async {
            let mut request = self.head(method, path, headers, bearer)?;
            if body.is_some() {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            let request = request.map(|()| Full::new(body.unwrap_or_default()));
            let (mut sender, connection) = self.http().await?;
            let mut connection = std::pin::pin!(connection);
            let answer = async {
                let (head, body) = sender.send_request(request).await.map_err(|source| self.broken(source))?.into_parts();
                Ok(Response::from_parts(head, whole(body).await.ok_or_else(|| self.no_relay("an answer that is too large or not whole"))?))
            };
            let mut answer = std::pin::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                ended = &mut connection => match ended {
                    // The connection can end with the answer, which is there by then.
                    Ok(()) => answer.await,
                    Err(source) => Err(self.broken(source)),
                },
            }
        };
        self.in_time(deadline, exchange).await
    }

    async fn in_time<T>(&self, deadline: Instant, work: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
        let timed_out = |_| DialError::TimedOut { host: self.url.host().to_owned() };
        timeout_at(deadline, Box::pin(work)).await.map_err(timed_out)?
    }

    async fn upgrade_unbounded(&self, upgrade: Upgrade<'_>) -> Result<WebSocket, DialError> {
        let key = generate_key();
        let mut request = self.head(Method::GET, upgrade.path, upgrade.headers, upgrade.bearer)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).map_err(http::Error::from)?);
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(upgrade.subprotocol));
        let (mut sender, connection) = self.http().await?;
        let mut connection = std::pin::pin!(connection.with_upgrades());
        let exchange = async {
            let mut answer = sender.send_request(request.map(|()| Full::default())).await.map_err(|source| self.broken(source))?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(answer).await);
            }
            self.check(&answer, &key, upgrade.subprotocol)?;
            hyper::upgrade::on(&mut answer).await.map_err(|source| self.broken(source))
        };
        let mut exchange = std::pin::pin!(exchange);
        // The connection's future ends when it hands the connection over, so it is driven only until then.
        let upgraded = tokio::select! {
            upgraded = &mut exchange => upgraded,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(source) => Err(self.broken(source)),
            },
        }?;
        let parts = upgraded.downcast::<TokioIo<Connection>>().map_err(|_| self.no_relay("a connection that cannot be taken over"))?;
        let read_ahead = parts.read_buf.to_vec();
        Ok(WebSocketStream::from_partially_read(parts.io.into_inner(), read_ahead, Role::Client, Some(upgrade.config)).await)
    }

    fn head(&self, method: Method, path: &str, headers: HeaderMap, bearer: Option<&Secret>) -> Result<Request<()>, http::Error> {
        let mut request = Request::builder().method(method).uri(path).body(())?;
        *request.headers_mut() = headers;
        let all = request.headers_mut();
        all.insert(HOST, HeaderValue::from_str(&self.url.authority())?);
        all.insert(USER_AGENT, self.agent.clone());
        if let Some(bearer) = bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.reveal()))?; // to the relay that it is for
            value.set_sensitive(true);
            all.insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    fn check(&self, answer: &Response<Incoming>, key: &str, subprotocol: &str) -> Result<(), DialError> {
        let is = |name, wanted: &str| answer.headers().get(name).is_some_and(|value: &HeaderValue| value.as_bytes() == wanted.as_bytes());
        if !is(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) {
            return Err(self.no_relay("Sec-WebSocket-Accept is wrong"));
        }
        if is(SEC_WEBSOCKET_PROTOCOL, subprotocol) { Ok(()) } else { Err(self.no_relay("it speaks another subprotocol")) }
    }

    async fn http(&self) -> Result<(http1::SendRequest<Full<Bytes>>, http1::Connection<TokioIo<Connection>, Full<Bytes>>), DialError> {
        let connection = match &self.pipes {
            Some(pipes) => pipes().map_err(|source| DialError::Connect { address: self.url.authority(), source })?,
            None => self.secure(self.connect().await?).await?,
        };
        http1::handshake(TokioIo::new(connection)).await.map_err(|source| self.broken(source))
    }

    async fn connect(&self) -> Result<TcpStream, DialError> {
        let host = self.url.host();
        let resolve = |source| DialError::Resolve { host: host.to_owned(), source };
        let addresses: Vec<SocketAddr> = lookup_host((host, self.url.port())).await.map_err(resolve)?.collect();
        let mut last = DialError::Resolve { host: host.to_owned(), source: io::ErrorKind::NotFound.into() };
        for address in addresses {
            let connected = timeout(ADDRESS_WITHIN, TcpStream::connect(address)).await;
            let source = match connected {
                Ok(Ok(tcp)) => return Ok(prepared(tcp)),
                Ok(Err(source)) => source,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            last = DialError::Connect { address: address.to_string(), source };
        }
        Err(last)
    }

    async fn secure(&self, tcp: TcpStream) -> Result<Connection, DialError> {
        let host = self.url.host().to_owned();
        let name = match ServerName::try_from(host.clone()) {
            Ok(name) => name,
            Err(source) => return Err(DialError::Name { host, source }),
        };
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await;
        tls.map(|tls| Connection::Tls(Box::new(tls))).map_err(|source| DialError::Tls { host, source })
    }

    fn broken(&self, source: hyper::Error) -> DialError {
        DialError::Http { host: self.url.host().to_owned(), source }
    }

    fn no_relay(&self, how: &'static str) -> DialError {
        DialError::NoRelay { host: self.url.host().to_owned(), how }
    }
}

fn prepared(tcp: TcpStream) -> TcpStream {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let set = tcp.set_nodelay(true).and_then(|()| socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "TCP options were refused");
    }
    tcp
}

async fn whole(body: Incoming) -> Option<Bytes> {
    Limited::new(body, BODY_BYTES).collect().await.ok().map(http_body_util::Collected::to_bytes)
}

async fn refusal(answer: Response<Incoming>) -> DialError {
    let status = answer.status().as_u16();
    let retry_after = retry_after(answer.headers());
    let problem = whole(answer.into_body()).await.and_then(|body| serde_json::from_slice(&body).ok());
    DialError::Refused { status, problem, retry_after }
}

/// Retry-After in seconds; a date is not understood.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// An answer that is no success, as the error that it is.
///
/// # Errors
/// [`DialError::Refused`] for every status outside 200 to 299.
pub fn successful(answer: Response<Bytes>) -> Result<Response<Bytes>, DialError> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    Err(DialError::Refused {
        status: answer.status().as_u16(),
        problem: serde_json::from_slice(answer.body()).ok(),
        retry_after: retry_after(answer.headers()),
    })
}
