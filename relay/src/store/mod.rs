//! The registry: devices, their keys, and the keys that sign callers' tokens, behind one trait, [`Registry`].
//!
//! Does not own: where a device is connected now ([`crate::directory`]), and what a caller may do ([`crate::access`]).
//!
//! [`SqliteRegistry`] keeps it in a file, [`MemoryRegistry`] in memory, for tests with a paused clock. [`LastSeen`] stands in front of
//! either. One contract test (`contract.rs`) runs against both; another backend has to pass it too.

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

/// What a method of [`Registry`] returns.
///
/// # Cancel safety
/// A change whose future is dropped is made whole or not at all.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Devices, their public keys, and the keys that callers' tokens are signed with.
///
/// A change is durable when it is answered: it survives a crash of the process, and of the machine.
pub trait Registry: Send + Sync + Debug {
    /// Reads one device.
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>>;

    /// The first `max` devices behind `after`, in the order of their ids, whose id matches one of the patterns of `filter`. An empty
    /// filter matches nothing. [`Page::read`] makes pages of it.
    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>>;

    /// Adds the device, or replaces its keys. A key that it had before keeps its times.
    ///
    /// Fails with [`StoreError::Conflict`] and changes nothing if one of the keys is another device's.
    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put>;

    /// Removes the device and its keys. Returns whether it existed.
    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool>;

    /// Records when devices were last online and their keys last used: all of it or nothing. A sighting of a device or key that was
    /// removed changes nothing, even if one of the same name was added since. The only change that need not be durable when it is answered. [`LastSeen`] calls this.
    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()>;

    /// Reads every key that callers' tokens may be signed with.
    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>>;

    /// Adds a key that callers' tokens may be signed with, or replaces the one with the same thumbprint.
    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()>;
}

/// What the registry knows of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Its name.
    pub device: DeviceId,
    /// When it was added.
    pub created: Timestamp,
    /// When it was last online.
    pub last_seen: Option<Timestamp>,
    /// Its keys, oldest first.
    pub keys: Vec<KeyRecord>,
}

/// One public key of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its thumbprint.
    pub kid: Thumbprint,
    /// The key. It has one algorithm.
    pub key: PublicKey,
    /// When it was added.
    pub created: Timestamp,
    /// When it last proved its device.
    pub last_used: Option<Timestamp>,
}

/// A key that callers' tokens may be signed with, and its issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerKey {
    /// Its thumbprint, which a token's header names.
    pub kid: Thumbprint,
    /// The `iss` claim of the tokens that it signs.
    pub iss: String,
    /// The operator's short name for that issuer.
    pub issuer: Issuer,
    /// The key. It has one algorithm.
    pub key: PublicKey,
}

impl CallerKey {
    /// A key of the issuer whose tokens claim `iss`, and which is called `issuer` here.
    pub fn new(iss: impl Into<String>, issuer: Issuer, key: PublicKey) -> Self {
        Self { kid: key.thumbprint(), iss: iss.into(), issuer, key }
    }

    /// The algorithm that the key signs with.
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.key.algorithm()
    }
}

/// What [`Registry::put_device`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The device was added.
    Created,
    /// The device existed; its keys were replaced.
    Replaced,
}

/// Why a method of [`Registry`] failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key belongs to one device. The error does not say to which.
    #[error("the key {kid} belongs to another device")]
    Conflict {
        /// The key.
        kid: Thumbprint,
    },
    /// The database failed.
    #[error("the database failed: {doing}")]
    Backend {
        /// What was attempted.
        doing: &'static str,
        /// The database's error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    fn backend<E: Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Backend { doing, source: Box::new(source) }
    }
}
