//! From a host's name to a TCP connection: its addresses in the resolver's order, and before them the one that was good a moment ago.
//!
//! Names are resolved again and again, so that a relay may move; but not for every stream, of which there may be many in a second.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use moorline_proto::join::RelayUrl;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::descriptors;
use crate::error::{DialError, Step};

/// An address that does not answer keeps the later ones waiting no longer than its share of the time, but has at least this.
const ADDRESS_AT_LEAST: Duration = Duration::from_secs(2);
/// What a name resolved to is believed this long: less than any balancer by DNS asks for.
const GOOD_FOR: Duration = Duration::from_secs(10);

/// Whether a name must be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Yes: who comes back after a loss must find where the relay is now.
    Resolved,
    /// Not where it was a moment ago, and the address still takes connections.
    Remembered,
}

/// Reaches hosts, and remembers the last one's address.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<Option<Good>>);

#[derive(Clone, Debug)]
struct Good {
    host: String,
    address: SocketAddr,
    resolved: Instant,
}

impl Reach {
    /// A TCP connection to the host of `url`.
    ///
    /// # Errors
    /// [`DialError::Resolve`], [`DialError::Connect`] of the last address, [`DialError::NoDescriptors`].
    pub(crate) async fn tcp(&self, url: &RelayUrl, name: Name, step: &mut Step, deadline: Instant) -> Result<TcpStream, DialError> {
        if name == Name::Remembered
            && let Some(address) = self.good(url)
        {
            *step = Step::Connecting(address);
            match connect(address, deadline.min(Instant::now() + ADDRESS_AT_LEAST)).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => tracing::debug!(%address, %error, "the relay is not where it was: its name is resolved again"),
            }
            *step = Step::Resolving;
        }
        self.resolved(url, step, deadline).await
    }

    /// Tries every address of the name in the resolver's order.
    async fn resolved(&self, url: &RelayUrl, step: &mut Step, deadline: Instant) -> Result<TcpStream, DialError> {
        let unresolved = |source| match descriptors::is_shortage_of_resolver(&source) {
            true => DialError::NoDescriptors,
            false => DialError::Resolve { host: url.host().to_owned(), source },
        };
        let resolved = Instant::now();
        let addresses: Vec<SocketAddr> = lookup_host((url.host(), url.port())).await.map_err(unresolved)?.collect();
        let mut failed = unresolved(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        for (tried, &address) in addresses.iter().enumerate() {
            *step = Step::Connecting(address);
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = (deadline.saturating_duration_since(Instant::now()) / left).max(ADDRESS_AT_LEAST);
            let source = match connect(address, Instant::now() + share).await {
                Ok(tcp) => {
                    self.remember(Good { host: url.host().to_owned(), address, resolved });
                    return Ok(tcp);
                }
                Err(error) if descriptors::is_shortage(&error) => return Err(DialError::NoDescriptors),
                Err(error) => error,
            };
            tracing::debug!(%address, error = %source, "an address of the relay does not take the connection");
            failed = DialError::Connect { host: format!("{} at {address}", url.authority()), source };
        }
        Err(failed)
    }

    fn good(&self, url: &RelayUrl) -> Option<SocketAddr> {
        let good = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let fits = good.host == url.host() && good.address.port() == url.port() && good.resolved.elapsed() < GOOD_FOR;
        fits.then_some(good.address)
    }

    fn remember(&self, good: Good) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(good);
    }
}

async fn connect(address: SocketAddr, by: Instant) -> io::Result<TcpStream> {
    match timeout_at(by, TcpStream::connect(address)).await {
        Ok(connected) => connected.map(ready_for_use),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn ready_for_use(tcp: TcpStream) -> TcpStream {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "a socket option is not taken"); // slower, not wrong
    }
    tcp
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn reached(reach: &Reach, url: &RelayUrl, name: Name) -> (Result<TcpStream, DialError>, bool) {
        let mut step = Step::Resolving;
        let before = reach.good(url);
        let tcp = reach.tcp(url, name, &mut step, Instant::now() + Duration::from_secs(5)).await;
        (tcp, before.is_some())
    }

    fn at_port(port: u16) -> RelayUrl {
        format!("https://localhost:{port}").parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_is_remembered_for_its_host_and_port_and_for_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (reach, url) = (Reach::default(), at_port(listener.local_addr().unwrap().port()));
        assert!(reached(&reach, &url, Name::Remembered).await.0.is_ok());
        assert_eq!(reach.good(&url), Some(listener.local_addr().unwrap()));
        assert_eq!(reach.good(&at_port(1)), None);
        reach.0.lock().unwrap().as_mut().unwrap().resolved -= GOOD_FOR;
        assert_eq!(reach.good(&url), None);
    }

    #[tokio::test]
    async fn a_relay_that_has_moved_is_found_by_its_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (reach, url) = (Reach::default(), at_port(listener.local_addr().unwrap().port()));
        let nobody: SocketAddr = format!("127.0.0.2:{}", url.port()).parse().unwrap();
        reach.remember(Good { host: "localhost".to_owned(), address: nobody, resolved: Instant::now() });
        let (tcp, remembered) = reached(&reach, &url, Name::Remembered).await;
        assert!(remembered && tcp.is_ok());
        assert_eq!(reach.good(&url), Some(listener.local_addr().unwrap()), "and that is where it is next time");
    }
}
