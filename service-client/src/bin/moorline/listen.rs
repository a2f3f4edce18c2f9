//! Where `moorline forward` listens: one address, or both of `localhost`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;
use tracing::debug;

use crate::exit::{Exit, Failure};
use crate::pair::ListenAddress;

/// Free ports of one family that are tried until one is free on the other too. That a single one is taken there is rare already.
const PORT_ATTEMPTS: usize = 16;

/// A listener, and the address that it is bound to.
type Bound<L> = (L, SocketAddr);

/// Listens. `localhost` is both 127.0.0.1 and ::1, on the same port: a program that is given the name may try either first. Where there is no
/// IPv6 it is 127.0.0.1 alone. The result has one or two listeners.
///
/// # Errors
/// The address, or one of both, cannot be bound.
pub(crate) async fn listen(local: ListenAddress) -> Result<Vec<Bound<TcpListener>>, Failure> {
    match local {
        ListenAddress::Address(address) => match bind(address).await {
            Ok(bound) => Ok(vec![bound]),
            Err(error) => Err(failure(address, &error, "choose another port")),
        },
        ListenAddress::Localhost(port) => {
            let advice = "choose another port, or name one address (127.0.0.1:PORT:SERVICE)";
            on_localhost(port, bind).await.map_err(|(address, error)| failure(address, &error, advice))
        }
    }
}

async fn bind(address: SocketAddr) -> io::Result<Bound<TcpListener>> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Listens on both families. An error comes with the address that it is about.
async fn on_localhost<L>(
    port: u16,
    bind: impl AsyncFn(SocketAddr) -> io::Result<Bound<L>>,
) -> Result<Vec<Bound<L>>, (SocketAddr, io::Error)> {
    let mut attempt = 1;
    loop {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let first = bind(v4).await.map_err(|error| (v4, error))?;
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, first.1.port()));
        match bind(v6).await {
            Ok(second) => return Ok(vec![first, second]),
            Err(error) if has_no_ipv6(&error) => {
                debug!(%error, "no IPv6 on this machine: localhost is 127.0.0.1 alone");
                return Ok(vec![first]);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(error) => return Err((v6, error)),
        }
    }
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
    use std::cell::Cell;

    use super::*;

    const AFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();

    /// Listens on a machine where port 0 is 1001, 1002 and so on, and where binding ::1 to these ports is this error. Returns the addresses.
    async fn on_machine(port: u16, error: impl Fn(u16) -> Option<io::Error>) -> Result<Vec<SocketAddr>, (SocketAddr, io::Error)> {
        let next = Cell::new(1_001);
        let bind = async |address: SocketAddr| {
            let port = if address.port() == 0 { next.replace(next.get() + 1) } else { address.port() };
            match error(port).filter(|_| address.is_ipv6()) {
                Some(error) => Err(error),
                None => Ok(((), SocketAddr::new(address.ip(), port))),
            }
        };
        on_localhost(port, bind).await.map(|bound| bound.into_iter().map(|(_, address)| address).collect())
    }

    fn both(port: u16) -> [SocketAddr; 2] {
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
    }

    #[tokio::test]
    async fn any_free_port_is_free_on_both_families() {
        let taken = || Some(io::Error::from(io::ErrorKind::AddrInUse));
        assert_eq!(on_machine(0, |_| None).await.unwrap(), both(1_001));
        assert_eq!(on_machine(0, |port| taken().filter(|_| port < 1_004)).await.unwrap(), both(1_004));
        let (address, error) = on_machine(0, |_| taken()).await.unwrap_err();
        assert_eq!((address, error.kind()), (both(1_016)[1], io::ErrorKind::AddrInUse), "after a bounded number of attempts");
        assert_eq!(on_machine(8_080, |_| taken()).await.unwrap_err().0, both(8_080)[1], "a port that was asked for is not exchanged");
    }

    #[tokio::test]
    async fn without_ipv6_localhost_is_ipv4_alone() {
        for port in [0, 8_080] {
            for code in [AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL.raw_os_error()] {
                let addresses = on_machine(port, |_| Some(io::Error::from_raw_os_error(code))).await.unwrap();
                assert_eq!(addresses, both(if port == 0 { 1_001 } else { port })[..1]);
            }
        }
        on_machine(80, |_| Some(io::ErrorKind::PermissionDenied.into())).await.unwrap_err();
    }

    #[tokio::test]
    async fn an_address_is_that_address_alone() {
        let bound = listen(ListenAddress::Address(both(0)[0])).await.unwrap();
        assert_eq!((bound.len(), bound[0].1.ip()), (1, both(0)[0].ip()));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_error_that_names_the_address() {
        let held = std::net::TcpListener::bind(both(0)[0]).unwrap();
        let address = held.local_addr().unwrap();
        let failure = listen(ListenAddress::Localhost(address.port())).await.unwrap_err();
        assert_eq!(failure.what(), format!("cannot listen on {address}"));
        assert!(failure.advice().contains("or name one address"), "{}", failure.advice());
    }
}
