//! Where `moorline forward` listens: one address, or both of `localhost`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;
use tracing::debug;

use crate::exit::{Exit, Failure};
use crate::pair::ListenAddress;

/// Free ports of one family that are tried until one is free on the other too. That a single one is taken there is rare already.
const PORT_ATTEMPTS: usize = 16;

/// The listeners of one address of the command line, with the addresses that they are bound to.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Listening {
    /// Listens. `localhost` is both 127.0.0.1 and ::1, on the same port: a program that is given the name may try either first. Where there is
    /// no IPv6 it is 127.0.0.1 alone.
    ///
    /// # Errors
    /// The address, or one of both, cannot be bound.
    pub(crate) async fn on(local: ListenAddress) -> Result<Self, Failure> {
        let (port, advice) = match local {
            ListenAddress::Address(address) => {
                return Self::of(vec![bind(address).await.map_err(|error| failure(address, &error, "choose another port"))?]);
            }
            ListenAddress::Localhost(port) => (port, "choose another port, or name one address (127.0.0.1:PORT:SERVICE)"),
        };
        let mut attempt = 1;
        loop {
            let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let first = bind(v4).await.map_err(|error| failure(v4, &error, advice))?;
            let port_of_both = first.local_addr().map_err(|error| failure(v4, &error, advice))?.port();
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port_of_both));
            match bind(v6).await {
                Ok(second) => return Self::of(vec![first, second]),
                Err(error) if has_no_ipv6(&error) => {
                    debug!(%error, "no IPv6 on this machine: localhost is 127.0.0.1 alone");
                    return Self::of(vec![first]);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
                Err(error) => return Err(failure(v6, &error, advice)),
            }
        }
    }

    fn of(listeners: Vec<TcpListener>) -> Result<Self, Failure> {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>();
        let addresses = addresses.map_err(|error| Failure::new(Exit::Failed, "cannot listen").caused_by(&error))?;
        Ok(Self { listeners, addresses })
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Whether binding ::1 failed because there is no such address: the kernel has no IPv6 (EAFNOSUPPORT, which `io::ErrorKind` has no variant for
/// and systems number differently), or it is switched off for the loopback interface.
fn has_no_ipv6(error: &io::Error) -> bool {
    let no_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_family)
}

fn failure(address: SocketAddr, error: &io::Error, advice_if_taken: &str) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("cannot listen on {address}")).caused_by(error);
    match error.kind() {
        io::ErrorKind::AddrInUse => failure.next(format!("{advice_if_taken}, or 0 for any free one")),
        io::ErrorKind::PermissionDenied => failure.next("choose a port from 1024 up"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCALHOST: ListenAddress = ListenAddress::Localhost(0);

    fn has_ipv6() -> bool {
        std::net::TcpListener::bind("[::1]:0").is_ok()
    }

    #[tokio::test]
    async fn localhost_is_both_families_on_one_port() {
        let listening = Listening::on(LOCALHOST).await.unwrap();
        let port = listening.addresses[0].port();
        let both = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        assert_eq!(listening.addresses, both[..if has_ipv6() { 2 } else { 1 }]);
    }

    #[tokio::test]
    async fn an_address_is_that_address_alone() {
        for address in ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse::<SocketAddr>().unwrap()) {
            if address.is_ipv4() || has_ipv6() {
                let listening = Listening::on(ListenAddress::Address(address)).await.unwrap();
                assert_eq!((listening.listeners.len(), listening.addresses[0].ip()), (1, address.ip()));
            }
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_on_one_family_is_an_error_that_names_it() {
        for holder in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(held) = std::net::TcpListener::bind(holder) else { continue }; // no IPv6 on this machine
            let address = held.local_addr().unwrap();
            let failure = Listening::on(ListenAddress::Localhost(address.port())).await.unwrap_err();
            assert_eq!(failure.what(), format!("cannot listen on {address}"));
            assert!(failure.advice().contains("or name one address"), "{}", failure.advice());
        }
    }
}
