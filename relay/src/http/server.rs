//! One connection from TCP to its last answer: PROXY protocol header, TLS, HTTP/1.1. Each in its own task, within its own deadlines.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use moorline_tls::ServerStream;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::http::head_watch::{HeadFaults, HeadWatch};
use crate::http::requests::HttpService;
use crate::http::write_timeout::WriteTimeout;
use crate::lifecycle::Lifecycle;
use crate::limits::{FIRST_BYTE_TIMEOUT, HTTP_BUFFER_BYTES, HTTP_HEAD_TIMEOUT, HTTP_PARSED_HEADER_LINES, Times};
use crate::net::admission::{Admission, Peer};
use crate::net::client_address::{ClientAddressSource, TrustedProxies};
use crate::net::connection::{Carrier, Socket};
use crate::net::proxy_header::read_proxy_header;
use crate::tasks::Tasks;

/// Serves the connections of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionServer {
    /// Answers the requests.
    pub service: HttpService,
    /// TLS, where the listener has it.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Load balancers that are trusted to name the client's address.
    pub trusted_proxies: TrustedProxies,
    /// How they name it.
    pub client_address_source: ClientAddressSource,
    /// From TCP accept to TLS established, a PROXY protocol header included.
    pub tls_handshake_timeout: Duration,
    /// How long an answer may make no progress.
    pub http_write_timeout: Duration,
    /// Hands out connection permits.
    pub admission: Admission,
    /// Owner of the connections' tasks.
    pub tasks: Tasks,
    /// When connections are to end.
    pub lifecycle: Lifecycle,
}

impl ConnectionServer {
    /// A server without TLS that trusts no load balancer: for pipes within the process, and to be adapted to each listener.
    pub fn new(service: HttpService, times: &Times, admission: Admission, tasks: Tasks, lifecycle: Lifecycle) -> Self {
        Self {
            service,
            tls: None,
            trusted_proxies: TrustedProxies::default(),
            client_address_source: ClientAddressSource::ForwardedFor,
            tls_handshake_timeout: times.tls_handshake_timeout,
            http_write_timeout: times.http_write_timeout,
            admission,
            tasks,
            lifecycle,
        }
    }

    /// Serves a TCP connection in a task of its own, until it ends, is upgraded, or is evicted.
    pub fn serve_tcp(&self, tcp: TcpStream, peer: Peer) {
        let server = self.clone();
        self.tasks.spawn("connection", until_evicted(peer, move |peer| server.establish(tcp, peer)));
    }

    /// Serves a pipe within the process, as if it had been accepted from `address`. Drops the pipe if there is no permit for it.
    pub fn serve_memory(&self, pipe: DuplexStream, address: IpAddr) {
        let Ok(permit) = self.admission.admit(self.trusted_proxies.prefix_of(address)) else { return };
        let (server, peer, socket) = (self.clone(), Peer { address, permit }, Socket::new(Carrier::Memory(pipe)));
        self.tasks.spawn("connection", until_evicted(peer, move |peer| server.serve(socket, peer)));
    }

    async fn establish(self, mut tcp: TcpStream, mut peer: Peer) {
        let deadline = Instant::now() + self.tls_handshake_timeout;
        if let Err(error) = tcp.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY could not be set"); // slower, not wrong
        }
        if self.client_address_source == ClientAddressSource::ProxyProtocol {
            let header = read_proxy_header(&mut tcp, peer.address, &self.trusted_proxies);
            let proxy = peer.address;
            peer.address = match timeout_at(deadline, header).await {
                Ok(Ok(address)) => address,
                Ok(Err(error)) => return debug!(peer = %proxy, %error, "connection dropped"),
                Err(_) => return debug!(peer = %proxy, "connection dropped: timed out waiting for a PROXY header"),
            };
            if let Err(full) = peer.permit.set_address(self.trusted_proxies.prefix_of(peer.address)) {
                return debug!(address = %peer.address, peer = %proxy, %full, "connection dropped");
            }
        }
        let carrier = match &self.tls {
            None => Carrier::Plain(tcp),
            Some(config) => match timeout_at(deadline, ServerStream::accept(Arc::clone(config), tcp)).await {
                Ok(Ok(tls)) => Carrier::Tls(Box::new(tls)),
                Ok(Err(error)) => return debug!(address = %peer.address, %error, "TLS handshake failed"),
                Err(_) => return debug!(address = %peer.address, "TLS handshake timed out"),
            },
        };
        self.serve(Socket::new(carrier), peer).await;
    }

    /// Answers requests until the connection ends or is upgraded. Once `stop` is cancelled, the current answer is the last one.
    async fn serve(self, mut socket: Socket, peer: Peer) {
        let first = tokio::select! {
            first = timeout(FIRST_BYTE_TIMEOUT, socket.first_byte()) => first,
            () = self.lifecycle.closing() => return,
        };
        if !matches!(first, Ok(Ok(()))) {
            return debug!(address = %peer.address, "connection ended without a request");
        }
        let address = peer.address;
        let trusted_proxies = match self.client_address_source {
            ClientAddressSource::ForwardedFor => self.trusted_proxies,
            ClientAddressSource::ProxyProtocol => TrustedProxies::default(),
        };
        let faults = HeadFaults::default();
        let socket = HeadWatch::new(WriteTimeout::new(socket, self.http_write_timeout), faults.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HTTP_HEAD_TIMEOUT)
            .max_buf_size(HTTP_BUFFER_BYTES)
            .max_headers(HTTP_PARSED_HEADER_LINES)
            .half_close(false)
            .serve_connection(TokioIo::new(socket), self.service.service(peer, trusted_proxies, faults))
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.lifecycle.closing() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%address, error = %moorline_proto::causes::Causes(&error), "connection failed");
        }
    }
}

async fn until_evicted<F: Future<Output = ()>>(peer: Peer, serve: impl FnOnce(Peer) -> F) {
    let permit = peer.permit.clone();
    tokio::select! {
        () = serve(peer) => {}
        () = permit.evicted() => debug!("unauthenticated connection evicted"),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
