//! Opens TCP connections to the relay's host: first to the address that worked a moment ago, then to its addresses in the resolver's order.
//!
//! Names are resolved again regularly, so that a relay can move, but not for each of the many streams that may open in one second.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use moorline_proto::join::RelayUrl;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::descriptors;
use crate::error::{DialError, Step};
use crate::lock::lock;

/// The least time that each address gets; beyond that, each gets an equal share of the time that is left.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a resolved address is used without resolving the name again. Shorter than the TTL of any DNS load balancer.
const CACHE_TTL: Duration = Duration::from_secs(10);

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressSource {
    /// Resolve the name: a client that reconnects after a loss must find where the relay is now.
    Resolve,
    /// Use the cached address, and resolve the name only if that fails.
    CacheFirst,
}

/// Connects to hosts and caches the last good address.
#[derive(Debug, Default)]
pub(crate) struct TcpConnector(Mutex<Option<CachedAddress>>);

#[derive(Clone, Debug)]
struct CachedAddress {
    host: String,
    address: SocketAddr,
    resolved: Instant,
}

impl TcpConnector {
    /// Opens a TCP connection to the host of `url`.
    ///
    /// # Errors
    /// [`DialError::Resolve`], [`DialError::Connect`] for the last address tried, [`DialError::NoDescriptors`].
    pub(crate) async fn connect(
        &self,
        url: &RelayUrl,
        source: AddressSource,
        step: &mut Step,
        deadline: Instant,
    ) -> Result<TcpStream, DialError> {
        if source == AddressSource::CacheFirst
            && let Some(address) = self.cached(url)
        {
            *step = Step::Connect(address);
            match connect(address, deadline.min(Instant::now() + MIN_CONNECT_TIMEOUT)).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => tracing::debug!(%address, %error, "cached relay address failed, resolving the name again"),
            }
            *step = Step::Resolve;
        }
        self.resolve_and_connect(url, step, deadline).await
    }

    /// Tries each address of the name in the resolver's order.
    async fn resolve_and_connect(&self, url: &RelayUrl, step: &mut Step, deadline: Instant) -> Result<TcpStream, DialError> {
        let resolve_error = |source| match descriptors::is_shortage_of_resolver(&source) {
            true => DialError::NoDescriptors,
            false => DialError::Resolve { host: url.host().to_owned(), source },
        };
        let resolved = Instant::now();
        let addresses: Vec<SocketAddr> = lookup_host((url.host(), url.port())).await.map_err(resolve_error)?.collect();
        let mut failed = resolve_error(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
        for (tried, &address) in addresses.iter().enumerate() {
            *step = Step::Connect(address);
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = (deadline.saturating_duration_since(Instant::now()) / left).max(MIN_CONNECT_TIMEOUT);
            let source = match connect(address, Instant::now() + share).await {
                Ok(tcp) => {
                    self.cache(CachedAddress { host: url.host().to_owned(), address, resolved });
                    return Ok(tcp);
                }
                Err(error) if descriptors::is_shortage(&error) => return Err(DialError::NoDescriptors),
                Err(error) => error,
            };
            tracing::debug!(%address, error = %source, "connecting to a relay address failed");
            failed = DialError::Connect { host: format!("{} at {address}", url.authority()), source };
        }
        Err(failed)
    }

    fn cached(&self, url: &RelayUrl) -> Option<SocketAddr> {
        let cached = lock(&self.0).clone()?;
        let fits = cached.host == url.host() && cached.address.port() == url.port() && cached.resolved.elapsed() < CACHE_TTL;
        fits.then_some(cached.address)
    }

    fn cache(&self, good: CachedAddress) {
        *lock(&self.0) = Some(good);
    }
}

async fn connect(address: SocketAddr, by: Instant) -> io::Result<TcpStream> {
    match timeout_at(by, TcpStream::connect(address)).await {
        Ok(connected) => connected.map(with_nodelay),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn with_nodelay(tcp: TcpStream) -> TcpStream {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY"); // slower, but correct
    }
    tcp
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn connect_with(connector: &TcpConnector, url: &RelayUrl, source: AddressSource) -> (Result<TcpStream, DialError>, bool) {
        let mut step = Step::Resolve;
        let before = connector.cached(url);
        let tcp = connector.connect(url, source, &mut step, Instant::now() + Duration::from_secs(5)).await;
        (tcp, before.is_some())
    }

    fn at_port(port: u16) -> RelayUrl {
        format!("https://localhost:{port}").parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_is_remembered_for_its_host_and_port_and_for_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connector, url) = (TcpConnector::default(), at_port(listener.local_addr().unwrap().port()));
        assert!(connect_with(&connector, &url, AddressSource::CacheFirst).await.0.is_ok());
        assert_eq!(connector.cached(&url), Some(listener.local_addr().unwrap()));
        assert_eq!(connector.cached(&at_port(1)), None);
        connector.0.lock().unwrap().as_mut().unwrap().resolved -= CACHE_TTL;
        assert_eq!(connector.cached(&url), None);
    }

    #[tokio::test]
    async fn a_relay_that_has_moved_is_found_by_its_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connector, url) = (TcpConnector::default(), at_port(listener.local_addr().unwrap().port()));
        let nobody: SocketAddr = format!("127.0.0.2:{}", url.port()).parse().unwrap();
        connector.cache(CachedAddress { host: "localhost".to_owned(), address: nobody, resolved: Instant::now() });
        let (tcp, remembered) = connect_with(&connector, &url, AddressSource::CacheFirst).await;
        assert!(remembered && tcp.is_ok());
        assert_eq!(connector.cached(&url), Some(listener.local_addr().unwrap()), "and the next dial begins with it");
    }
}
