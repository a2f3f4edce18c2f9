//! Places for connections. A connection is a stranger until what it asks for was allowed. Unauthenticated have fewer places, and one that has
//! held still for a while gives way to the next, who waits for that: so those who say nothing cannot keep honest peers out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::limits::Limits;
use crate::sync::lock;

/// A stranger that is not admitted after this long gives way where places are short. An honest one needs a few round trips; in a storm
/// of honest ones, those who came first are left to finish.
const EVICTABLE_AFTER: Duration = Duration::from_secs(2);

/// All places of one relay.
#[derive(Clone, Debug)]
pub struct Admission {
    connections: Arc<Semaphore>,
    unauthenticated: Arc<Mutex<Unauthenticated>>,
    left: Arc<Notify>,
}

/// Those who were not admitted yet, the oldest first.
#[derive(Debug)]
struct Unauthenticated {
    capacity: usize,
    next: u64,
    connections: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// Which places are all taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The relay holds as many connections as it may.
    #[error("every place for a connection is taken")]
    Connections,
    /// As many connections as may be are unauthenticated, and none of them has held still for long.
    #[error("every place for a connection that has not been admitted yet is taken")]
    Unauthenticated,
}

/// One connection's place, given back when it is dropped. Clones are the same place.
#[derive(Clone, Debug)]
pub struct ConnectionPermit(Arc<Permit>);

#[derive(Debug)]
struct Permit {
    _connection: OwnedSemaphorePermit,
    unauthenticated: Arc<Mutex<Unauthenticated>>,
    left: Arc<Notify>,
    number: u64,
    evicted: CancellationToken,
}

impl Admission {
    /// Places as many as the limits say.
    pub fn new(limits: &Limits) -> Self {
        let unauthenticated = Unauthenticated { capacity: limits.unauthenticated_connections.get(), next: 0, connections: BTreeMap::new() };
        Self {
            connections: Arc::new(Semaphore::new(limits.connections.get())),
            unauthenticated: Arc::new(Mutex::new(unauthenticated)),
            left: Arc::default(),
        }
    }

    /// Waits until a stranger would find a place. Whoever comes meanwhile stands in the kernel's line, where it costs nothing and keeps its
    /// turn: to be turned away, and to come again at once, would be a lottery that a crowd wins. Cancel safe.
    pub async fn ready(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            let Some(until) = lock(&self.unauthenticated).full_until() else { return };
            tokio::select! {
                () = left => {}
                () = sleep_until(until) => return,
            }
        }
    }

    /// A place for a new connection, if need be that of the oldest stranger.
    ///
    /// # Errors
    /// [`Full`], which it costs the one who came too late alone.
    pub fn admit(&self) -> Result<ConnectionPermit, Full> {
        let connection = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| Full::Connections)?;
        let evicted = CancellationToken::new();
        let number = lock(&self.unauthenticated).enter(Instant::now(), evicted.clone())?;
        let (unauthenticated, left) = (Arc::clone(&self.unauthenticated), Arc::clone(&self.left));
        Ok(ConnectionPermit(Arc::new(Permit { _connection: connection, unauthenticated, left, number, evicted })))
    }
}

impl Unauthenticated {
    /// When the oldest gives way, if every place is taken.
    fn full_until(&self) -> Option<Instant> {
        let oldest = self.connections.first_key_value().filter(|_| self.connections.len() >= self.capacity);
        oldest.map(|(_, (since, _))| *since + EVICTABLE_AFTER)
    }

    fn enter(&mut self, now: Instant, evicted: CancellationToken) -> Result<u64, Full> {
        if self.connections.len() >= self.capacity {
            let oldest = self.connections.first_entry().filter(|oldest| now.duration_since(oldest.get().0) >= EVICTABLE_AFTER);
            oldest.ok_or(Full::Unauthenticated)?.remove().1.cancel();
        }
        let number = self.next;
        self.next += 1;
        self.connections.insert(number, (now, evicted));
        Ok(number)
    }
}

impl ConnectionPermit {
    /// The connection is no stranger any more: it does not give way, and its place among them is free for the next.
    pub fn authenticated(&self) {
        self.0.release();
    }

    /// Whether the connection was not admitted yet.
    pub fn is_unauthenticated(&self) -> bool {
        lock(&self.0.unauthenticated).connections.contains_key(&self.0.number)
    }

    /// Waits until the connection has to give way to another. Never, once it was admitted in time. Cancel safe.
    pub async fn evicted(&self) {
        self.0.evicted.cancelled().await;
    }
}

impl Permit {
    fn release(&self) {
        if lock(&self.unauthenticated).connections.remove(&self.number).is_some() {
            self.left.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}

/// Who is at the other end of a connection, and its place.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The network address.
    pub address: IpAddr,
    /// Its place among unauthenticated.
    pub permit: ConnectionPermit,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        let two = 2.try_into().unwrap();
        Admission::new(&Limits { unauthenticated_connections: two, connections: 3.try_into().unwrap(), ..Limits::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_stranger_evicted_once_it_has_held_still() {
        let admission = admission();
        let (first, _second) = (admission.admit().unwrap(), admission.admit().unwrap());
        assert_eq!(admission.admit().unwrap_err(), Full::Unauthenticated, "those who came first are left to finish");
        tokio::time::advance(EVICTABLE_AFTER).await;
        let third = admission.admit().unwrap();
        first.evicted().await;
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_once_one_leaves_or_the_oldest_may_be_sent_away() {
        let admission = admission();
        let begun = Instant::now();
        admission.ready().await;
        let (first, _second) = (admission.admit().unwrap(), admission.admit().unwrap());
        admission.ready().await;
        assert_eq!(begun.elapsed(), EVICTABLE_AFTER);
        let (third, fourth) = (admission.admit().unwrap(), admission.admit());
        assert_eq!(fourth.unwrap_err(), Full::Connections);
        drop(first);
        let begun = Instant::now();
        let left = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(third);
        };
        tokio::join!(admission.ready(), left);
        assert!(begun.elapsed() < EVICTABLE_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_admitted_stays_and_makes_room_for_a_stranger() {
        let admission = admission();
        let (first, _second) = (admission.admit().unwrap(), admission.admit().unwrap());
        first.authenticated();
        let _third = admission.admit().unwrap();
        tokio::time::advance(EVICTABLE_AFTER).await;
        assert_eq!(admission.admit().unwrap_err(), Full::Connections);
        drop(first);
        let _fourth = admission.admit().unwrap();
    }
}
