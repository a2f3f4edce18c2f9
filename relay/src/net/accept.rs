//! The accept loop: accepts connections, gives each a permit or resets it, and hands it on. TLS and requests run in each connection's own
//! task, so that no client can slow the loop down.

use std::io;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::lifecycle::Lifecycle;
use crate::limits::{ACCEPT_PAUSE, ACCEPT_RECOVERED_AFTER};
use crate::net::admission::{Admission, Peer};
use crate::net::client_address::TrustedProxies;

/// A time in which accepting fails.
struct Failures {
    since: Instant,
    last: Instant,
    count: u64,
}

/// Accepts until the relay closes, and calls `serve` with each connection that got a permit. `serve` must return at once.
///
/// A connection that gets none is reset at once: the loop does not stall because one address holds its share. It waits only while no
/// address whatever could get a permit, see [`Admission::ready`]. While the operating system refuses to accept, the loop pauses, and logs
/// once when that begins and once when it is over.
pub async fn accept(
    listener: TcpListener,
    trusted_proxies: TrustedProxies,
    admission: Admission,
    serve: impl Fn(TcpStream, Peer),
    lifecycle: Lifecycle,
) {
    let mut failures: Option<Failures> = None;
    loop {
        tokio::select! {
            () = admission.ready() => {}
            () = lifecycle.closing() => return,
        }
        let recovered_at = failures.as_ref().map(|failures| failures.last + ACCEPT_RECOVERED_AFTER);
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sleep_until(recovered_at.unwrap_or_else(Instant::now)), if recovered_at.is_some() => {
                if let Some(failures) = failures.take() {
                    let lasted_ms = u64::try_from(failures.last.duration_since(failures.since).as_millis()).unwrap_or(u64::MAX);
                    info!(lasted_ms, failures = failures.count, "accepting goes on");
                }
                continue;
            }
            () = lifecycle.closing() => return,
        };
        match accepted {
            Ok((tcp, address)) => {
                let address = address.ip().to_canonical();
                match admission.admit(trusted_proxies.prefix_of(address)) {
                    Ok(permit) => serve(tcp, Peer { address, permit }),
                    Err(full) => {
                        debug!(%address, %full, "connection refused");
                        reset(&tcp);
                    }
                }
            }
            // The client closed the connection while it was in the queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => debug!(%error, "connection was gone before it was accepted"),
            Err(error) => {
                let now = Instant::now();
                let failures = failures.get_or_insert_with(|| {
                    warn!(%error, "accepting pauses: raise the limit of file descriptors, or lower limits.connections");
                    Failures { since: now, last: now, count: 0 }
                });
                (failures.last, failures.count) = (now, failures.count + 1);
                tokio::select! {
                    () = sleep(ACCEPT_PAUSE) => {}
                    () = lifecycle.closing() => return,
                }
            }
        }
    }
}

/// Makes the end of a connection a reset: the client learns at once that it was refused, and the relay keeps nothing in TIME_WAIT.
fn reset(tcp: &TcpStream) {
    if let Err(error) = tcp.set_zero_linger() {
        debug!(%error, "connection is closed because it could not be reset");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpSocket;
    use tokio::sync::mpsc;

    use super::*;
    use crate::limits::Limits;

    /// The reset may be there before the connection is.
    async fn dial(from: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(to).await
    }

    #[tokio::test]
    async fn a_flood_of_one_address_is_reset_and_another_address_is_served_at_once() {
        let number = |number: usize| number.try_into().unwrap();
        let limits = Limits { unauthenticated_connections: number(8), unauthenticated_per_address: number(2), ..Limits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (served, mut connections) = mpsc::channel(8);
        let serve = move |tcp, peer: Peer| served.try_send((tcp, peer)).unwrap();
        let lifecycle = Lifecycle::default();
        let accepting = accept(listener, TrustedProxies::default(), Admission::new(&limits), serve, lifecycle.clone());
        let scenario = async {
            let mut flood = Vec::new();
            for _ in 0..50 {
                flood.push(dial([127, 0, 0, 2], address).await);
            }
            let _honest = dial([127, 0, 0, 3], address).await.unwrap();
            let mut held = Vec::new();
            while held.len() < 3 {
                held.push(connections.recv().await.unwrap());
            }
            assert_eq!(held[2].1.address.to_string(), "127.0.0.3");
            for refused in flood.split_off(2) {
                let error = match refused {
                    Ok(mut tcp) => tcp.read(&mut [0]).await.unwrap_err(),
                    Err(error) => error,
                };
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
            lifecycle.close();
        };
        tokio::join!(accepting, scenario);
    }
}
