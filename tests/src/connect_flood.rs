//! A flood of plain TCP connections from one address, at a steady rate, that never send a byte. Bounded in number; it ends when it is dropped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::unauthenticated_peer::connect_from;

/// A running flood. Dropping it closes its connections.
#[derive(Debug)]
pub struct ConnectFlood {
    dialled: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _flooding: JoinSet<()>,
}

/// Counts one connection for as long as it is open.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConnectFlood {
    /// Dials `to` from the local address `from`, `per_second` times a second and `connections` times in all. Each connection is held until the
    /// remote end closes it.
    pub fn start(from: IpAddr, to: SocketAddr, per_second: u32, connections: usize) -> Self {
        let (dialled, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (count, held) = (Arc::clone(&dialled), Arc::clone(&open));
        let mut flooding = JoinSet::new();
        flooding.spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / per_second); // real time: the rate of the flood
            let mut peers = JoinSet::new();
            for _ in 0..connections {
                ticks.tick().await;
                let (count, held) = (Arc::clone(&count), Arc::clone(&held));
                peers.spawn(async move {
                    let connected = connect_from(from, to).await;
                    count.fetch_add(1, Ordering::Relaxed);
                    let Ok(mut tcp) = connected else { return };
                    held.fetch_add(1, Ordering::Relaxed);
                    let _open = Open(held);
                    // Only the end of the connection is expected.
                    tcp.read_to_end(&mut Vec::new()).await.ok();
                });
                while peers.try_join_next().is_some() {}
            }
            peers.join_all().await;
        });
        Self { dialled, open, _flooding: flooding }
    }

    /// Connections that were dialled so far, whether or not they were accepted.
    pub fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}
