//! The registry in memory, for tests with a paused clock: a database has threads of its own, which such a clock does not wait for.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::ready;
use moorline_proto::claims::Pattern;
use moorline_proto::id::DeviceId;
use moorline_proto::proof::{PublicKey, Thumbprint};
use moorline_proto::timestamp::Timestamp;

use crate::store::{CallerKey, DeviceRecord, KeyRecord, Put, Registry, Sighting, StoreError, StoreFuture};
use crate::sync::lock;

/// A registry that keeps nothing beyond its own life.
#[derive(Debug, Default)]
pub struct MemoryRegistry(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    devices: BTreeMap<DeviceId, DeviceRecord>,
    owners: BTreeMap<Thumbprint, DeviceId>,
    caller_keys: BTreeMap<Thumbprint, CallerKey>,
}

impl MemoryRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.0)
    }
}

impl Tables {
    fn put(&mut self, device: &DeviceId, keys: &[PublicKey], now: Timestamp) -> Result<Put, StoreError> {
        let is_taken = |kid: &Thumbprint| self.owners.get(kid).is_some_and(|owner| owner != device);
        if let Some(kid) = keys.iter().map(PublicKey::thumbprint).find(is_taken) {
            return Err(StoreError::Conflict { kid });
        }
        let put = if self.devices.contains_key(device) { Put::Replaced } else { Put::Created };
        let new = || DeviceRecord { device: device.clone(), created: now, last_seen: None, keys: Vec::new() };
        let record = self.devices.entry(device.clone()).or_insert_with(new);
        for gone in record.keys.extract_if(.., |had| !keys.contains(&had.key)) {
            self.owners.remove(&gone.kid);
        }
        for key in keys {
            let kid = key.thumbprint();
            self.owners.insert(kid, device.clone());
            if record.keys.iter().all(|had| had.kid != kid) {
                record.keys.push(KeyRecord { kid, key: key.clone(), created: now, last_used: None });
            }
        }
        record.keys.sort_by_key(|key| (key.created, key.kid.to_string()));
        Ok(put)
    }

    fn remove(&mut self, device: &DeviceId) -> bool {
        let removed = self.devices.remove(device);
        for key in removed.iter().flat_map(|record| &record.keys) {
            self.owners.remove(&key.kid);
        }
        removed.is_some()
    }
}

impl Registry for MemoryRegistry {
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>> {
        ready(Ok(self.tables().devices.get(device).cloned())).boxed()
    }

    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>> {
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let tables = self.tables();
        let rows = tables.devices.range::<DeviceId, _>(range).map(|(_, record)| record);
        let matches = |record: &&DeviceRecord| filter.iter().any(|pattern| pattern.matches(record.device.as_str()));
        ready(Ok(rows.filter(matches).take(max).cloned().collect())).boxed()
    }

    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put> {
        ready(self.tables().put(device, keys, now)).boxed()
    }

    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool> {
        ready(Ok(self.tables().remove(device))).boxed()
    }

    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        let mut tables = self.tables();
        for sighting in sightings {
            if let Some(record) = tables.devices.get_mut(&sighting.device) {
                sighting.apply(record);
            }
        }
        ready(Ok(())).boxed()
    }

    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>> {
        ready(Ok(self.tables().caller_keys.values().cloned().collect())).boxed()
    }

    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()> {
        self.tables().caller_keys.insert(key.kid, key.clone());
        ready(Ok(())).boxed()
    }
}
