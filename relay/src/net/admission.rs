//! Connection permits: how many connections there may be, how many of them unauthenticated, and how many of one caller.
//!
//! A connection is unauthenticated until something that it asked for was authenticated. Few connections may be, each address has a share of
//! them (`unauthenticated`), and one that does nothing is evicted when another needs its place. Near the limit of all connections idle legs are
//! evicted (`idle`).

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::limits::{IDLE_LEG_RESERVE, Limits};
use crate::net::client_address::AddressPrefix;
use crate::net::idle::IdleConnections;
use crate::net::unauthenticated::Unauthenticated;
use crate::sync::lock;

pub use crate::net::idle::IdleConnection;
pub use crate::net::unauthenticated::Full;

/// Hands out the connection permits of one relay. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connections: Arc<Semaphore>,
    /// While fewer are left than this, each new connection evicts an idle leg.
    reserve: usize,
    idle: IdleConnections,
    unauthenticated: Mutex<Unauthenticated>,
    /// Notified whenever an unauthenticated connection ends or authenticates.
    left: Notify,
    per_caller: usize,
    /// Connections of each caller that has some.
    callers: Mutex<HashMap<CallerDigest, usize>>,
}

/// The caller holds `connections_per_caller` connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller has {0} connections already")]
pub struct TooManyCallerConnections(usize);

/// A caller, as a digest of its name: of fixed size, whatever the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerDigest([u8; 16]);

impl CallerDigest {
    /// The digest of a caller's full name, issuer and subject.
    pub fn of(name: &impl fmt::Display) -> Self {
        let sha256 = Sha256::digest(name.to_string());
        let mut half = [0; 16];
        half.copy_from_slice(&sha256[..16]);
        Self(half)
    }
}

/// The right to one connection, returned when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct ConnectionPermit(Arc<Permit>);

#[derive(Debug)]
struct Permit {
    _connection: OwnedSemaphorePermit,
    shared: Arc<Shared>,
    id: u64,
    /// Cancelled when it is evicted; nothing once it has authenticated.
    evicted: Mutex<Option<CancellationToken>>,
    /// The caller that the connection counts for.
    caller: Mutex<Option<CallerDigest>>,
}

impl Admission {
    /// With the bounds of `limits`.
    pub fn new(limits: &Limits) -> Self {
        let (capacity, per_address) = (limits.unauthenticated_connections.get(), limits.unauthenticated_per_address.get());
        Self(Arc::new(Shared {
            connections: Arc::new(Semaphore::new(limits.connections.get().min(Semaphore::MAX_PERMITS))),
            reserve: (limits.connections.get() / IDLE_LEG_RESERVE).max(1),
            idle: IdleConnections::default(),
            unauthenticated: Mutex::new(Unauthenticated::new(capacity, per_address)),
            left: Notify::new(),
            per_caller: limits.connections_per_caller.get(),
            callers: Mutex::default(),
        }))
    }

    /// Waits while no new connection could get a permit, whatever its address: at most until the oldest unauthenticated one may be evicted.
    ///
    /// Connections that come meanwhile wait in the kernel's queue, in order. Closing them instead would make a lottery of it, which those
    /// who retry most often win.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ready(&self) {
        loop {
            let mut left = std::pin::pin!(self.0.left.notified());
            left.as_mut().enable();
            let Some(until) = lock(&self.0.unauthenticated).full_until() else { return };
            tokio::select! {
                () = left => {}
                () = sleep_until(until) => return,
            }
        }
    }

    /// A permit for a new connection from `address`, if need be in place of an unauthenticated one. `None`: a trusted proxy, which is not
    /// limited, and whose client's address is not known yet.
    ///
    /// # Errors
    /// [`Full`]: close the connection.
    pub fn admit(&self, address: Option<AddressPrefix>) -> Result<ConnectionPermit, Full> {
        if self.0.connections.available_permits() <= self.0.reserve {
            self.0.idle.evict();
        }
        let connection = Arc::clone(&self.0.connections).try_acquire_owned().map_err(|_| Full::Connections)?;
        let evicted = CancellationToken::new();
        let id = lock(&self.0.unauthenticated).insert(address, Instant::now(), evicted.clone())?;
        let (shared, caller, evicted) = (Arc::clone(&self.0), Mutex::new(None), Mutex::new(Some(evicted)));
        Ok(ConnectionPermit(Arc::new(Permit { _connection: connection, shared, id, evicted, caller })))
    }
}

impl ConnectionPermit {
    /// Counts an unauthenticated connection for its true address, which a trusted proxy has named. Does nothing once it is authenticated.
    ///
    /// # Errors
    /// [`Full::Address`]: close the connection.
    pub fn set_address(&self, address: Option<AddressPrefix>) -> Result<(), Full> {
        lock(&self.0.shared.unauthenticated).assign(self.0.id, address, Instant::now())
    }

    /// The peer has authenticated: it cannot be evicted any more, and its place among the unauthenticated is free.
    pub fn authenticated(&self) {
        self.0.leave_unauthenticated();
    }

    /// As [`ConnectionPermit::authenticated`], for a caller: counts the connection for that caller from now on. A connection of a proxy may
    /// carry requests of several callers in turn; it counts for the last one.
    ///
    /// # Errors
    /// [`TooManyCallerConnections`]: refuse the request and close the connection, which stays as it was.
    pub fn authenticated_as(&self, caller: CallerDigest) -> Result<(), TooManyCallerConnections> {
        let shared = &self.0.shared;
        let mut current = lock(&self.0.caller);
        if *current != Some(caller) {
            let mut callers = lock(&shared.callers);
            let count = callers.get(&caller).copied().unwrap_or_default();
            if count >= shared.per_caller {
                return Err(TooManyCallerConnections(count));
            }
            callers.insert(caller, count + 1);
            if let Some(before) = current.replace(caller) {
                uncount(&mut callers, before);
            }
        }
        drop(current);
        self.0.leave_unauthenticated();
        Ok(())
    }

    /// Whether the connection has not authenticated.
    pub fn is_unauthenticated(&self) -> bool {
        lock(&self.0.shared.unauthenticated).contains(self.0.id)
    }

    /// Counts the connection among those of idle legs, until what it returns is dropped.
    pub fn idle(&self) -> IdleConnection {
        self.0.shared.idle.insert()
    }

    /// Waits until the connection is evicted in favour of another: close it then. Never returns once it has authenticated.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn evicted(&self) {
        let evicted = lock(&self.0.evicted).clone();
        match evicted {
            Some(evicted) => evicted.cancelled().await,
            None => pending().await,
        }
    }
}

fn uncount(callers: &mut HashMap<CallerDigest, usize>, caller: CallerDigest) {
    if let Some(count) = callers.get_mut(&caller) {
        *count -= 1;
        if *count == 0 {
            callers.remove(&caller);
        }
    }
}

impl Permit {
    fn leave_unauthenticated(&self) {
        if lock(&self.shared.unauthenticated).remove(self.id) {
            *lock(&self.evicted) = None;
            self.shared.left.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave_unauthenticated();
        if let Some(caller) = lock(&self.caller).take() {
            uncount(&mut lock(&self.shared.callers), caller);
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its network address, IPv4 in its own form; the true one behind a trusted proxy.
    pub address: IpAddr,
    /// The connection's permit.
    pub permit: ConnectionPermit,
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
