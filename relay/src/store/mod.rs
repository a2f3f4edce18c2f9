//! What is known of devices and of who signs callers' tokens, behind one seam: [`Registry`].
//!
//! Where a device is connected now is not here (that is the directory's), nor what a caller may do ([`crate::access`]).
//!
//! [`SqliteRegistry`] keeps it in a file; [`MemoryRegistry`] in memory, for worlds whose clock stands still. One contract test
//! (`contract.rs`) runs against both, and a third backend has to pass it too.

use std::error::Error;
use std::fmt::Debug;

use futures_util::future::BoxFuture;
use moorline_proto::claims::Pattern;
use moorline_proto::id::{DeviceId, Issuer};
use moorline_proto::proof::{KeyAlgorithm, PublicKey, Thumbprint};
use moorline_proto::timestamp::Timestamp;

#[cfg(test)]
mod contract;
pub mod last_seen;
mod memory;
mod page;
mod sqlite;

pub use last_seen::{LastSeen, Sighting};
pub use memory::MemoryRegistry;
pub use page::{Cursor, InvalidCursor, Page};
pub use sqlite::SqliteRegistry;

/// The answer to a question to the registry. Dropping it may or may not undo a change that was asked for; never half of one.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Devices, their public keys, and the keys that callers' tokens are signed with.
///
/// A change is durable when it is answered: it survives a crash of the process, and of the machine.
pub trait Registry: Send + Sync + Debug {
    /// One device.
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>>;

    /// The first `max` devices behind `after`, in the order of their ids, whose id matches one of the patterns of `filter`. An empty
    /// filter matches nothing. [`Page::read`] makes pages of it.
    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>>;

    /// Makes the device what it shall be: adds it, or replaces its keys. A key that it had before keeps its times.
    ///
    /// Answers [`StoreError::Conflict`] if one of the keys is another device's, and changes nothing then.
    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put>;

    /// Removes the device and its keys. Answers whether there was one.
    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool>;

    /// Records when devices were last online and their keys last used: all of it or nothing. A sighting of a device or key that was
    /// removed changes nothing. The only change that need not be durable when it is answered. [`LastSeen`] calls this.
    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()>;

    /// Every key that callers' tokens may be signed with.
    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>>;

    /// Adds such a key, or replaces the one of the same thumbprint.
    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()>;
}

/// What the registry knows of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Its name.
    pub device: DeviceId,
    /// When it was added.
    pub created: Timestamp,
    /// When it was last noted to be online.
    pub last_seen: Option<Timestamp>,
    /// Its keys, oldest first.
    pub keys: Vec<KeyRecord>,
}

/// One public key of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its thumbprint.
    pub kid: Thumbprint,
    /// The key, which has one algorithm.
    pub key: PublicKey,
    /// When it was added.
    pub created: Timestamp,
    /// When a proof of it was last good.
    pub last_used: Option<Timestamp>,
}

/// A key that callers' tokens may be signed with, and whose word that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerKey {
    /// Its thumbprint, which a token's header names.
    pub kid: Thumbprint,
    /// The `iss` claim of the tokens that it signs.
    pub iss: String,
    /// The operator's short name for that issuer.
    pub issuer: Issuer,
    /// The key, which has one algorithm.
    pub key: PublicKey,
}

impl CallerKey {
    /// A key of the issuer that calls itself `iss` in tokens and is called `issuer` here.
    pub fn new(iss: impl Into<String>, issuer: Issuer, key: PublicKey) -> Self {
        Self { kid: key.thumbprint(), iss: iss.into(), issuer, key }
    }

    /// The one algorithm that the key signs with.
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.key.algorithm()
    }
}

/// What [`Registry::put_device`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The device is new.
    Created,
    /// The device was there; its keys are now those that were given.
    Replaced,
}

/// Why the registry did not answer, or did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// One key, one device. Which other device it is, is not said.
    #[error("the key {kid} belongs to another device already")]
    Conflict {
        /// The key.
        kid: Thumbprint,
    },
    /// The database failed.
    #[error("the database failed: {doing}")]
    Backend {
        /// What was being done.
        doing: &'static str,
        /// Its own words.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    fn backend<E: Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Backend { doing, source: Box::new(source) }
    }
}
