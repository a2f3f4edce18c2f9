//! When devices were last online: noted in memory at once, written to the registry behind.
//!
//! ```text
//!   device comes or goes ── note() ──▶ sightings ── run(), once a second ──▶ registry
//!                                          │
//!   device(), devices() ◀─ laid over the rows of the registry
//! ```
//!
//! A database that is slow or locked delays nobody: [`LastSeen::note`] never waits. What a crash loses is the last second of these
//! times. Changes of devices and keys are passed on as they come, and are durable when they are answered.

use std::collections::BTreeMap;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use moorline_proto::causes::Causes;
use moorline_proto::claims::Pattern;
use moorline_proto::id::DeviceId;
use moorline_proto::proof::{PublicKey, Thumbprint};
use moorline_proto::timestamp::Timestamp;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::{CallerKey, DeviceRecord, Put, Registry, StoreError, StoreFuture};
use crate::sync::lock;

/// From a note to its writing. Notes of one device within it are written as one.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Devices written in one transaction: it holds the database's write lock, for which registry changes wait.
const BATCH: usize = 500;
/// Keys of one device whose use is remembered until it is written. The least recently used is dropped.
const MAX_KEY_USES: usize = 4;

/// When a device was last online, and when its keys were last used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The device.
    pub device: DeviceId,
    /// When it was last online.
    pub last_seen: Timestamp,
    /// The keys that proved it since the last sighting was written, with the time; the latest is last.
    pub key_uses: Vec<(Thumbprint, Timestamp)>,
}

impl Sighting {
    /// Writes the times into the device's record, unless the device or the key was added later: then it is another one of the same name.
    pub(super) fn apply(&self, record: &mut DeviceRecord) {
        if record.created <= self.last_seen {
            record.last_seen = Some(self.last_seen);
        }
        for (kid, at) in &self.key_uses {
            if let Some(key) = record.keys.iter_mut().find(|key| key.kid == *kid && key.created <= *at) {
                key.last_used = Some(*at);
            }
        }
    }

    fn add(&mut self, kid: Option<Thumbprint>, at: Timestamp) {
        self.last_seen = at;
        if let Some(kid) = kid {
            self.key_uses.retain(|(used, _)| *used != kid);
            if self.key_uses.len() >= MAX_KEY_USES {
                self.key_uses.remove(0);
            }
            self.key_uses.push((kid, at));
        }
    }
}

/// A registry whose answers include sightings that are not written yet.
#[derive(Debug)]
pub struct LastSeen {
    registry: Arc<dyn Registry>,
    capacity: NonZeroUsize,
    unwritten: Mutex<Unwritten>,
    noted: Notify,
}

#[derive(Debug, Default)]
struct Unwritten {
    /// Copied on write, so that a listing takes a snapshot without a copy.
    sightings: Arc<BTreeMap<DeviceId, Sighting>>,
    /// Notes dropped for want of capacity since the last report.
    dropped: u64,
}

impl LastSeen {
    /// Keeps sightings of at most `capacity` devices until `registry` has them.
    pub fn new(registry: Arc<dyn Registry>, capacity: NonZeroUsize) -> Self {
        Self { registry, capacity, unwritten: Mutex::default(), noted: Notify::new() }
    }

    /// Notes that a device is online now, and which of its keys proved it. Does not wait for the registry.
    ///
    /// A new device beyond the capacity is dropped, and counted.
    pub fn note(&self, device: &DeviceId, kid: Option<Thumbprint>, now: Timestamp) {
        let mut unwritten = self.unwritten();
        if unwritten.sightings.len() >= self.capacity.get() && !unwritten.sightings.contains_key(device) {
            unwritten.dropped += 1;
        } else {
            let new = || Sighting { device: device.clone(), last_seen: now, key_uses: Vec::new() };
            Arc::make_mut(&mut unwritten.sightings).entry(device.clone()).or_insert_with(new).add(kid, now);
        }
        self.noted.notify_one();
    }

    /// Writes what is noted, until `stop`; then writes the rest once and ends.
    ///
    /// # Cancel safety
    /// Dropping the future loses what is not written yet, never half a batch.
    pub async fn run(&self, stop: CancellationToken) {
        let mut is_failing = false;
        while stop.run_until_cancelled(self.next_flush()).await.is_some() {
            is_failing = self.flush_and_report(is_failing).await;
        }
        self.flush_and_report(is_failing).await;
    }

    /// Waits until there is something to write, and for more of it.
    async fn next_flush(&self) {
        self.noted.notified().await;
        sleep(FLUSH_INTERVAL).await;
    }

    /// Writes every sighting noted so far, in batches. What fails stays noted.
    ///
    /// # Errors
    /// [`StoreError::Backend`].
    ///
    /// # Cancel safety
    /// May be dropped at any time: batches that were written are written, the others stay noted.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let mut after = Bound::Unbounded;
        loop {
            let sightings = Arc::clone(&self.unwritten().sightings);
            let batch: Vec<Sighting> =
                sightings.range((after, Bound::Unbounded)).take(BATCH).map(|(_, sighting)| sighting.clone()).collect();
            drop(sightings);
            let Some(last) = batch.last() else { return Ok(()) };
            after = Bound::Excluded(last.device.clone());
            self.registry.record_sightings(&batch).await?;
            self.forget(&batch);
        }
    }

    /// Forgets sightings that were written. One that has changed since stays.
    fn forget(&self, written: &[Sighting]) {
        let mut unwritten = self.unwritten();
        let sightings = Arc::make_mut(&mut unwritten.sightings);
        for sighting in written {
            if sightings.get(&sighting.device) == Some(sighting) {
                sightings.remove(&sighting.device);
            }
        }
    }

    /// Flushes, and logs the first failure of several and the success after them. Returns whether it failed.
    async fn flush_and_report(&self, was_failing: bool) -> bool {
        let flushed = self.flush().await;
        let (left, dropped) = {
            let mut unwritten = self.unwritten();
            (unwritten.sightings.len(), mem::take(&mut unwritten.dropped))
        };
        if dropped > 0 {
            warn!(dropped, capacity = self.capacity, "too many devices came before their last-seen times were written; some were dropped");
        }
        match flushed {
            Ok(()) if was_failing => info!("last-seen times are written again"),
            Ok(()) => {}
            Err(error) => {
                self.noted.notify_one(); // try again
                if !was_failing {
                    warn!(devices = left, error = %Causes(&error), "last-seen times could not be written; trying again every second");
                }
                return true;
            }
        }
        false
    }

    /// How many devices have sightings that are not written yet.
    pub fn unwritten_devices(&self) -> usize {
        self.unwritten().sightings.len()
    }

    fn unwritten(&self) -> MutexGuard<'_, Unwritten> {
        lock(&self.unwritten)
    }

    fn forget_device(&self, device: &DeviceId) {
        let mut unwritten = self.unwritten();
        if unwritten.sightings.contains_key(device) {
            Arc::make_mut(&mut unwritten.sightings).remove(device);
        }
    }
}

/// Reads take the sightings first and the rows afterwards: a sighting that is written in between is in both.
impl Registry for LastSeen {
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>> {
        async move {
            let sighting = self.unwritten().sightings.get(device).cloned();
            let mut record = self.registry.device(device).await?;
            if let (Some(record), Some(sighting)) = (&mut record, sighting) {
                sighting.apply(record);
            }
            Ok(record)
        }
        .boxed()
    }

    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>> {
        async move {
            let sightings = Arc::clone(&self.unwritten().sightings);
            let mut records = self.registry.devices(filter, after, max).await?;
            for record in &mut records {
                if let Some(sighting) = sightings.get(&record.device) {
                    sighting.apply(record);
                }
            }
            Ok(records)
        }
        .boxed()
    }

    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put> {
        async move {
            let put = self.registry.put_device(device, keys, now).await?;
            if put == Put::Created {
                self.forget_device(device); // a sighting of a former device of this id
            }
            Ok(put)
        }
        .boxed()
    }

    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool> {
        async move {
            let removed = self.registry.remove_device(device).await?;
            self.forget_device(device);
            Ok(removed)
        }
        .boxed()
    }

    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        self.registry.record_sightings(sightings)
    }

    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>> {
        self.registry.caller_keys()
    }

    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()> {
        self.registry.put_caller_key(key)
    }
}

#[cfg(test)]
#[path = "last_seen_tests.rs"]
mod tests;
