//! Opens TCP connections to named hosts: the relay, and the targets of a device's services.
//!
//! All addresses of a name are raced (`race.rs`), so that a dead one costs a quarter of a second. The one that connected is remembered for a few
//! seconds and tried first. It never stands in for the others: if it does not answer, the name is resolved and its other addresses join the race.
//!
//! Names are resolved again regularly, so that a relay can move, but not for each of the many streams that may open in one second.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

pub use crate::error::ConnectError;
use crate::lock::lock;
use crate::race::{in_order, race};
use crate::resolver::Resolver;

/// How long an address is remembered, from the moment that it connected. Shorter than the TTL of any DNS load balancer.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// Names whose address is remembered. Beyond: the one that connected longest ago is forgotten, and tried in the resolver's order next time.
const MAX_REMEMBERED: usize = 64;

/// When a name is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSource {
    /// Before the first attempt: a client that reconnects after a loss must find where the host is now. A remembered address is tried first if
    /// it is still one of the name's.
    Resolve,
    /// Only once the remembered address has failed or not answered for a quarter of a second; at once if there is none.
    CacheFirst,
}

/// Opens TCP connections. Clones share what is remembered, and the bound on calls of the resolver.
#[derive(Clone, Debug, Default)]
pub struct TcpConnector {
    resolver: Resolver,
    /// The oldest first; each name once.
    remembered: Arc<Mutex<Vec<Remembered>>>,
}

/// The address of a name that connected last.
#[derive(Debug)]
struct Remembered {
    host: String,
    address: SocketAddr,
    connected: Instant,
}

impl TcpConnector {
    /// Opens a connection, without Nagle's delay, to the address of `host` that answers first. An IPv6 address is written without brackets.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Dropping the future drops all attempts. A call of the resolver goes on in its thread, and counts until it returns.
    pub async fn connect(&self, host: &str, port: u16, source: AddressSource, deadline: Instant) -> Result<TcpStream, ConnectError> {
        let connect = |address| async move { TcpStream::connect(address).await.map(with_nodelay) };
        if let Ok(address) = host.parse::<IpAddr>() {
            let literal = std::future::ready(Ok(vec![SocketAddr::new(address, port)]));
            return race(None, literal, connect, deadline).await.map(|(_, tcp)| tcp);
        }
        self.connect_with((host, port), source, deadline, self.resolver.resolve(host, port), connect).await
    }

    /// Does as [`TcpConnector::connect`] with another resolver and other connections.
    pub(crate) async fn connect_with<S, C: Future<Output = io::Result<S>>>(
        &self,
        name: (&str, u16),
        source: AddressSource,
        deadline: Instant,
        resolve: impl Future<Output = io::Result<Vec<SocketAddr>>>,
        connect: impl Fn(SocketAddr) -> C,
    ) -> Result<S, ConnectError> {
        let remembered = self.remembered(name);
        let first = remembered.filter(|_| source == AddressSource::CacheFirst);
        let resolve = async { Ok(in_order(resolve.await?, remembered)) };
        let connect = |address| {
            let connecting = connect(address);
            async move { connecting.await.inspect_err(|_| self.forget(name, address)) }
        };
        match race(first, resolve, connect, deadline).await {
            Ok((address, stream)) => {
                // An address that was used without resolving the name keeps its age, so that the name is resolved again in time.
                if first != Some(address) {
                    self.remember(name, address);
                }
                Ok(stream)
            }
            Err(error) => {
                if let ConnectError::TimedOut(attempts) | ConnectError::Failed { attempts, .. } = &error
                    && let Some(unanswered) = remembered.filter(|&address| attempts.include(address))
                {
                    self.forget(name, unanswered);
                }
                Err(error)
            }
        }
    }

    /// The address that a name is tried at first.
    pub(crate) fn remembered(&self, (host, port): (&str, u16)) -> Option<SocketAddr> {
        let remembered = lock(&self.remembered);
        let known = remembered.iter().find(|known| known.is((host, port)) && known.connected.elapsed() < REMEMBERED_FOR)?;
        Some(known.address)
    }

    fn remember(&self, name: (&str, u16), address: SocketAddr) {
        let mut remembered = lock(&self.remembered);
        remembered.retain(|known| !known.is(name) && known.connected.elapsed() < REMEMBERED_FOR);
        if remembered.len() == MAX_REMEMBERED {
            remembered.remove(0);
        }
        remembered.push(Remembered { host: name.0.to_owned(), address, connected: Instant::now() });
    }

    /// Forgets an address that failed, unless another one has connected meanwhile.
    fn forget(&self, name: (&str, u16), failed: SocketAddr) {
        lock(&self.remembered).retain(|known| !(known.is(name) && known.address == failed));
    }
}

impl Remembered {
    fn is(&self, (host, port): (&str, u16)) -> bool {
        self.host == host && self.address.port() == port
    }
}

fn with_nodelay(tcp: TcpStream) -> TcpStream {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY"); // slower, but correct
    }
    tcp
}
