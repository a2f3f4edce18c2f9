//! One relay: all wiring, and nothing else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::token::TokenVerifier;
use crate::clock::Clock;
use crate::config::{Config, Listener, Transport};
use crate::core::{Core, Revision};
use crate::device_changes;
use crate::directory::Directory;
use crate::http::requests::HttpService;
use crate::http::routes::routes;
use crate::http::server::ConnectionServer;
use crate::lifecycle::Lifecycle;
use crate::limits::{FLUSH_TIMEOUT, LISTEN_BACKLOG, STOP_TIMEOUT};
use crate::net::accept::accept;
use crate::net::admission::Admission;
use crate::net::client_address::{ClientAddressSource, TrustedProxies};
use crate::store::{LastSeen, Registry, StoreError};
use crate::stream::Streams;
use crate::tasks::Tasks;

/// The tasks that run as long as the relay.
const ACCEPT: &str = "accept";
const RECHECK: &str = "recheck";
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
    core: Arc<Core>,
    /// Stopped after everything else, because the others hand work to it.
    background: Tasks,
    /// Tells what is written behind to write the rest and end.
    flush: CancellationToken,
    addresses: Vec<SocketAddr>,
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
        let (tasks, background, lifecycle) = (Tasks::default(), Tasks::default(), Lifecycle::default());
        let last_seen = Arc::new(LastSeen::new(state.registry, config.limits.connections));
        let registry = Arc::clone(&last_seen) as Arc<dyn Registry>;
        let writer = Arc::clone(&last_seen);
        let flush = CancellationToken::new();
        let stop_writing = flush.clone();
        background.spawn("last seen", async move { writer.run(stop_writing).await });
        let (directory, streams) = (Directory::default(), Streams::new(&config.limits, &config.times));
        let admission = Admission::new(&config.limits);
        let core = Arc::new(Core {
            tokens: TokenVerifier::new(keys, config.names.clone(), state.clock.clone()),
            node: config.node,
            names: config.names,
            ports: if config.ports.is_empty() { addresses.iter().map(SocketAddr::port).collect() } else { config.ports },
            origins: config.origins,
            times: config.times,
            limits: config.limits,
            streams_outlive_tokens: config.streams_outlive_tokens,
            clock: state.clock,
            tasks: tasks.clone(),
            lifecycle,
            registry,
            last_seen,
            revision: Revision::default(),
            directory,
            streams,
        });
        let rechecked = Arc::clone(&core);
        tasks.spawn(RECHECK, device_changes::recheck(rechecked));
        let door = ConnectionServer::new(HttpService::new(routes(&core)), &core.times, admission, tasks.clone(), core.lifecycle.clone());
        for listener in bound {
            let proxy_protocol = listener.client_address_source == ClientAddressSource::ProxyProtocol;
            info!(address = %listener.address, tls = listener.tls.is_some(), proxy_protocol, "listening");
            let Bound { tls, trusted_proxies, client_address_source, .. } = listener;
            let door = ConnectionServer { tls, trusted_proxies, client_address_source, ..door.clone() };
            let lifecycle = core.lifecycle.clone();
            tasks.spawn(ACCEPT, async move {
                let (trusted_proxies, admission) = (door.trusted_proxies.clone(), door.admission.clone());
                accept(listener.socket, trusted_proxies, admission, move |tcp, peer| door.serve_tcp(tcp, peer), lifecycle).await;
            });
        }
        Ok(Self { door, core, background, flush, addresses })
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
        self.core.directory.len()
    }

    /// How many streams there are, opened or on their way. Those that have ended, and of which a side has not taken all yet, do not count.
    pub fn streams(&self) -> usize {
        self.core.streams.with_slot()
    }

    /// How many tasks run for peers, by name: those that run as long as the relay are left out.
    pub fn tasks(&self) -> std::collections::BTreeMap<&'static str, usize> {
        let mut running = self.core.tasks.running();
        running.retain(|name, _| ![ACCEPT, RECHECK].contains(name));
        running
    }

    /// Drains: devices get `go_away`, new streams are refused, open ones may finish until `grace` is over. Returns then, or once no
    /// stream is left.
    ///
    /// # Cancel safety
    /// The relay continues to drain.
    pub async fn drain(&self, grace: Duration) {
        let until = Instant::now() + grace;
        self.core.drain(until);
        tokio::select! {
            () = self.core.streams.ended() => {}
            () = sleep_until(until) => {}
        }
    }

    /// Stops: devices get `go_away`, and streams are cut with the code for the reason.
    pub async fn stop(self) {
        drop(self.door);
        self.core.drain(Instant::now());
        self.core.close();
        if let Err(late) = self.core.tasks.clone().finish(STOP_TIMEOUT).await {
            warn!(%late, "the relay stopped without waiting any longer");
        }
        self.flush.cancel();
        if let Err(late) = self.background.finish(FLUSH_TIMEOUT).await {
            warn!(%late, "the relay stopped before everything was written");
        }
    }
}

/// A way into a relay over pipes within the process. Clones lead to the same relay.
#[derive(Clone, Debug)]
pub struct MemoryDoor(ConnectionServer);

impl MemoryDoor {
    /// Serves one connection, as if it had been accepted from `address`. Where no more connections may be, the pipe is dropped.
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
    let socket = socket.listen(LISTEN_BACKLOG).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Bound {
        address,
        socket,
        tls,
        trusted_proxies: listener.trusted_proxies.clone(),
        client_address_source: listener.client_address_source,
    })
}
