//! One relay: all wiring, and nothing else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpSocket};
use tracing::{info, warn};

use crate::access::token::CallerAuth;
use crate::clock::Clock;
use crate::config::{Config, Listener, Transport};
use crate::directory::Directory;
use crate::http::Edge;
use crate::http::request_form::HttpService;
use crate::http::routes::routes;
use crate::http::server::ConnectionServer;
use crate::net::accept::accept;
use crate::net::admission::Admission;
use crate::net::client_address::{ClientAddressSource, TrustedProxies};
use crate::store::{Registry, StoreError};
use crate::stream::join::Rendezvous;
use crate::stream::registry::Streams;
use crate::stream::{Ground, Openings};
use crate::tasks::Tasks;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: u32 = 4096;
/// Tasks have this long to say goodbye when the relay stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What a relay stands on besides its configuration.
#[derive(Clone, Debug)]
pub struct State {
    /// Devices and callers' keys.
    pub registry: Arc<dyn Registry>,
    /// Certificate and key, for listeners with TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Wall time.
    pub clock: Clock,
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A listener wants TLS and there is no certificate.
    #[error("the listener on {0} wants TLS, and no certificate is configured")]
    NoCertificate(SocketAddr),
    /// The callers' keys could not be read.
    #[error("the registry does not give the callers' keys")]
    Registry(#[source] StoreError),
}

/// A relay that runs.
#[derive(Debug)]
pub struct Relay {
    door: ConnectionServer,
    tasks: Tasks,
    addresses: Vec<SocketAddr>,
    directory: Directory,
    streams: Streams,
}

impl Relay {
    /// Starts a relay: its listeners accept when this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config, state: State) -> Result<Self, StartError> {
        let keys = state.registry.caller_keys().await.map_err(StartError::Registry)?;
        let mut bound = Vec::new();
        for listener in &config.listeners {
            bound.push(bind(listener, &state)?);
        }
        let addresses: Vec<SocketAddr> = bound.iter().map(|listener| listener.address).collect();
        let tasks = Tasks::default();
        let (directory, streams) = (Directory::default(), Streams::new(&config.limits));
        let rendezvous = Rendezvous::new(config.times.closed_stream_retention);
        let ground = Ground {
            node: config.node.clone(),
            times: config.times.clone(),
            clock: state.clock.clone(),
            tasks: tasks.clone(),
            registry: Arc::clone(&state.registry),
            directory: directory.clone(),
            rendezvous: rendezvous.clone(),
            streams: streams.clone(),
        };
        let (admission, times) = (Admission::new(&config.limits), config.times.clone());
        let edge = Edge {
            openings: Openings::new(ground, &config.limits),
            callers: CallerAuth::new(keys, config.names.clone(), state.clock.clone()),
            node: config.node,
            names: config.names,
            ports: if config.ports.is_empty() { addresses.iter().map(SocketAddr::port).collect() } else { config.ports },
            origins: config.origins,
            times: config.times,
            limits: config.limits,
            clock: state.clock,
            tasks: tasks.clone(),
            registry: state.registry,
            directory: directory.clone(),
            rendezvous,
            streams: streams.clone(),
        };
        let door = ConnectionServer::new(HttpService::new(routes(Arc::new(edge))), &times, admission, tasks.clone());
        for listener in bound {
            let proxy_protocol = listener.client_address_source == ClientAddressSource::ProxyProtocol;
            info!(address = %listener.address, tls = listener.tls.is_some(), proxy_protocol, "listening");
            let Bound { tls, trusted_proxies, client_address_source, .. } = listener;
            let door = ConnectionServer { tls, trusted_proxies, client_address_source, ..door.clone() };
            tasks.spawn("accept", move |stop| {
                let (trusted_proxies, admission) = (door.trusted_proxies.clone(), door.admission.clone());
                accept(listener.socket, trusted_proxies, admission, move |tcp, peer| door.serve_tcp(tcp, peer), stop)
            });
        }
        Ok(Self { door, tasks, addresses, directory, streams })
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A way into this relay that is no socket.
    pub fn memory_door(&self) -> MemoryDoor {
        MemoryDoor(self.door.clone())
    }

    /// How many devices are connected here.
    pub fn devices(&self) -> usize {
        self.directory.len()
    }

    /// How many streams there are, opened or on their way.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// How many tasks run, by name.
    pub fn tasks(&self) -> std::collections::BTreeMap<&'static str, usize> {
        self.tasks.running()
    }

    /// Stops: devices are told to come back elsewhere, streams are cut with a code that says why.
    pub async fn stop(self) {
        drop(self.door);
        if let Err(late) = self.tasks.finish(STOP_WITHIN).await {
            warn!(%late, "the relay stopped without waiting any longer");
        }
    }
}

/// A way into a relay over pipes within the process. Clones lead to the same relay.
#[derive(Clone, Debug)]
pub struct MemoryDoor(ConnectionServer);

impl MemoryDoor {
    /// Serves one connection, as if it had been accepted from `address`. Where every place is taken, the pipe is dropped.
    pub fn serve(&self, pipe: DuplexStream, address: IpAddr) {
        self.0.serve_memory(pipe, address);
    }
}

struct Bound {
    address: SocketAddr,
    socket: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    trusted_proxies: TrustedProxies,
    client_address_source: ClientAddressSource,
}

fn bind(listener: &Listener, state: &State) -> Result<Bound, StartError> {
    let failed = |source| StartError::Listen { address: listener.address, source };
    let tls = match listener.transport {
        Transport::Plain => None,
        Transport::Tls => Some(state.tls.clone().ok_or(StartError::NoCertificate(listener.address))?),
    };
    let socket = if listener.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(listener.address).map_err(failed)?;
    let socket = socket.listen(BACKLOG).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Bound {
        address,
        socket,
        tls,
        trusted_proxies: listener.trusted_proxies.clone(),
        client_address_source: listener.client_address_source,
    })
}
