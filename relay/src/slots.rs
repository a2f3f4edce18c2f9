//! Places for connections. A connection is a stranger until what it asks for was allowed; strangers have fewer places, so that
//! they cannot keep honest peers out by holding still.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Limits;

/// All places of one relay.
#[derive(Clone, Debug)]
pub struct Slots {
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// Which places are all taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The relay holds as many connections as it may.
    #[error("every place for a connection is taken")]
    Connections,
    /// As many connections as may be are still strangers.
    #[error("every place for a connection that has not been admitted yet is taken")]
    Strangers,
}

/// One connection's place, given back when it is dropped. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Slot(Arc<Place>);

#[derive(Debug)]
struct Place {
    _connection: OwnedSemaphorePermit,
    stranger: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Slots {
    /// Places as many as the limits say.
    pub fn new(limits: &Limits) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(limits.connections.get())),
            strangers: Arc::new(Semaphore::new(limits.strangers.get())),
        }
    }

    /// A place for a new connection.
    ///
    /// # Errors
    /// [`Full`], which it costs the one who came too late alone.
    pub fn take(&self) -> Result<Slot, Full> {
        let connection = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| Full::Connections)?;
        let stranger = Arc::clone(&self.strangers).try_acquire_owned().map_err(|_| Full::Strangers)?;
        Ok(Slot(Arc::new(Place { _connection: connection, stranger: Mutex::new(Some(stranger)) })))
    }
}

impl Slot {
    /// The connection is no stranger any more: its place among them is free for the next.
    pub fn admitted(&self) {
        drop(self.0.stranger.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Who is at the other end of a connection, and its place.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// The network address.
    pub address: IpAddr,
    /// Its place among strangers.
    pub slot: Slot,
}
