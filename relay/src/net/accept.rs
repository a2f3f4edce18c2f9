//! The accept loop accepts, and nothing else: TLS and requests run in each connection's own task. And serving one connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::ClientAddressSource;
use crate::http::request_form::HttpService;
use crate::net::admission::{Admission, ConnectionPermit, Peer};
use crate::net::client_address::TrustedProxies;
use crate::net::connection::{Carrier, Socket};
use crate::net::proxy_header::read_proxy_header;
use crate::net::tls_stream::TlsStream;
use crate::tasks::Tasks;

/// After a failed accept: out of descriptors, spinning would make it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Accepting goes on, and the log says so, once it has not failed for this long: under a crowd, one in ten tries may succeed.
const CALM: Duration = Duration::from_secs(1);
/// From TLS established to the first byte of a request: a leg may be connected early, while its target is dialled.
const FIRST_BYTE_WITHIN: Duration = Duration::from_secs(60);
/// The head of a request from its first byte; also how long a connection may idle between requests.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a request's head that hyper takes; ours ([`crate::http::request_form`]) are fewer, so that ours is the refusal that is seen.
const HEAD_BYTES: usize = 64 * 1024;
/// Lines of a request's head that hyper takes.
const HEAD_LINES: usize = 128;

/// Everything that serves a connection: cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionServer {
    /// What answers requests.
    pub service: HttpService,
    /// TLS where this listener has it.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Load balancers that are believed about whom they bring.
    pub trusted_proxies: TrustedProxies,
    /// How they say whom they bring.
    pub client_address_source: ClientAddressSource,
    /// From TCP accept to TLS established.
    pub tls_handshake_timeout: Duration,
    /// Places for connections.
    pub admission: Admission,
    /// Owner of the connections' tasks.
    pub tasks: Tasks,
}

/// Accepts until the relay stops. While every place for strangers is taken, those who come wait, for as long as the oldest may stay: nothing
/// else that a client does can slow it. Where the machine does, it pauses, and the log says so once when that begins and once when it is
/// over.
pub async fn accept(listener: TcpListener, server: ConnectionServer, stop: CancellationToken) {
    let mut failures: Option<AcceptFailures> = None;
    loop {
        tokio::select! {
            () = server.admission.ready() => {}
            () = stop.cancelled() => return,
        }
        let calm = failures.as_ref().map(|failures| failures.last + CALM);
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sleep_until(calm.unwrap_or_else(Instant::now)), if calm.is_some() => {
                if let Some(failures) = failures.take() {
                    let lasted_ms = u64::try_from(failures.last.duration_since(failures.since).as_millis()).unwrap_or(u64::MAX);
                    info!(lasted_ms, failures = failures.failures, "accepting goes on");
                }
                continue;
            }
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((tcp, peer)) => server.accepted(tcp, peer),
            // It was gone before its turn came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => debug!(%error, "a connection was not accepted"),
            Err(error) => {
                let now = Instant::now();
                let failures = failures.get_or_insert_with(|| {
                    warn!(%error, "accepting pauses: raise the limit of file descriptors, or lower limits.connections");
                    AcceptFailures { since: now, last: now, failures: 0 }
                });
                (failures.last, failures.failures) = (now, failures.failures + 1);
                tokio::select! {
                    () = sleep(ACCEPT_PAUSE) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

/// A time in which accepting fails.
struct AcceptFailures {
    since: Instant,
    last: Instant,
    failures: u64,
}

impl ConnectionServer {
    fn accepted(&self, tcp: TcpStream, peer: SocketAddr) {
        match self.admission.admit() {
            Ok(permit) => {
                let (server, peer) = (self.clone(), Peer { address: peer.ip().to_canonical(), permit });
                self.tasks.spawn("connection", move |stop| server.handle(tcp, peer, stop));
            }
            Err(full) => debug!(%peer, %full, "a connection was turned away"),
        }
    }

    async fn handle(self, tcp: TcpStream, peer: Peer, stop: CancellationToken) {
        let permit = peer.permit.clone();
        until_evicted(&permit, self.establish(tcp, peer, stop)).await;
    }

    /// As a connection that needs no TLS any more.
    pub(crate) async fn handle_established(self, socket: Socket, peer: Peer, stop: CancellationToken) {
        let permit = peer.permit.clone();
        until_evicted(&permit, self.serve(socket, peer, stop)).await;
    }

    async fn establish(self, mut tcp: TcpStream, mut peer: Peer, stop: CancellationToken) {
        let by = Instant::now() + self.tls_handshake_timeout;
        if let Err(error) = tcp.set_nodelay(true) {
            debug!(%error, "TCP does without NODELAY"); // slower, not wrong
        }
        if self.client_address_source == ClientAddressSource::ProxyProtocol {
            match timeout_at(by, read_proxy_header(&mut tcp, peer.address, &self.trusted_proxies)).await {
                Ok(Ok(address)) => peer.address = address,
                Ok(Err(error)) => return debug!(peer = %peer.address, %error, "a connection was dropped"),
                Err(_) => return debug!(peer = %peer.address, "a connection was dropped: no PROXY header came in time"),
            }
        }
        let carrier = match &self.tls {
            None => Carrier::Plain(tcp),
            Some(config) => match timeout_at(by, TlsStream::accept(Arc::clone(config), tcp)).await {
                Ok(Ok(tls)) => Carrier::Tls(Box::new(tls)),
                Ok(Err(error)) => return debug!(address = %peer.address, %error, "no TLS came about"),
                Err(_) => return debug!(address = %peer.address, "no TLS came about in time"),
            },
        };
        self.serve(Socket::new(carrier), peer, stop).await;
    }

    /// Answers the requests of one connection until it ends or was upgraded.
    async fn serve(self, mut socket: Socket, peer: Peer, stop: CancellationToken) {
        let first = tokio::select! {
            first = timeout(FIRST_BYTE_WITHIN, socket.first_byte()) => first,
            () = stop.cancelled() => return,
        };
        if !matches!(first, Ok(Ok(()))) {
            return debug!(address = %peer.address, "a connection ended without a request");
        }
        let address = peer.address;
        let forwarders = match self.client_address_source {
            ClientAddressSource::ForwardedFor => self.trusted_proxies,
            ClientAddressSource::ProxyProtocol => TrustedProxies::default(),
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEAD_LINES)
            .half_close(false)
            .serve_connection(TokioIo::new(socket), self.service.service(peer, forwarders))
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%address, %error, "a connection ended with an error");
        }
    }
}

async fn until_evicted(permit: &ConnectionPermit, served: impl Future<Output = ()>) {
    tokio::select! {
        () = served => {}
        () = permit.evicted() => debug!("a stranger gave way"),
    }
}
