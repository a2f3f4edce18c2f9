//! The directory of a relay that is one node: a map in memory. A device's place in it is a guard.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use moorline_proto::id::{DeviceId, Instance};
use tokio::sync::watch;
use tracing::warn;

use crate::control::handle::{ChannelClosed, DeviceHandle, DisconnectCommand};
use crate::directory::Place;
use crate::ttl_map::TtlMap;

/// A start of an agent that was superseded is remembered for this long.
const FLAPPING: Duration = Duration::from_secs(600);
/// So many of them.
const FLAPPING_MOST: usize = 20_000;

/// Where devices are connected. Clones share it.
#[derive(Clone, Debug)]
pub struct Directory {
    places: Arc<DashMap<DeviceId, DeviceHandle>>,
    awaited: Arc<DashMap<DeviceId, watch::Sender<()>>>,
    superseded: Arc<TtlMap<DeviceId, Instance>>,
}

impl Default for Directory {
    fn default() -> Self {
        let superseded = Arc::new(TtlMap::new(FLAPPING, FLAPPING_MOST));
        Self { places: Arc::default(), awaited: Arc::default(), superseded }
    }
}

/// A device's place among those online; dropping it leaves the place.
#[must_use = "the device is online only while this is held"]
#[derive(Debug)]
pub struct Listed {
    directory: Directory,
    handle: DeviceHandle,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.handle.set_gone(ChannelClosed::Lost);
        // A newer session may hold the place by now; that one stays.
        self.directory.places.remove_if(&self.handle.about().device, |_, placed| placed.is(&self.handle));
    }
}

impl Directory {
    /// Takes the device's place. Whoever had it is superseded at once, without being waited for.
    pub fn list(&self, handle: DeviceHandle) -> Listed {
        let device = handle.about().device.clone();
        let before = self.places.insert(device.clone(), handle.clone());
        if let Some(before) = before {
            self.notice_duplicates(&before, &handle);
            before.part(DisconnectCommand::Superseded { by: handle.about().instance.clone() });
        }
        self.awaited.remove_if(&device, |_, arrivals| arrivals.send(()).is_err());
        Listed { directory: self.clone(), handle }
    }

    /// A, B, A within ten minutes: two machines share one identity.
    fn notice_duplicates(&self, before: &DeviceHandle, now: &DeviceHandle) {
        let (device, instance) = (&now.about().device, &now.about().instance);
        if before.about().instance == *instance {
            return;
        }
        if self.superseded.get(device).is_some_and(|superseded| superseded == *instance) {
            let addresses = [before.about().address, now.about().address];
            warn!(%device, ?addresses, "duplicate_identity: two machines are online in turn with the key of one device");
        }
        self.superseded.put(device.clone(), before.about().instance.clone());
    }

    /// Where the device is.
    pub fn find(&self, device: &DeviceId) -> Place {
        self.places.get(device).map(|handle| handle.clone()).filter(DeviceHandle::is_here).map_or(Place::Nowhere, Place::Here)
    }

    /// Waits until the device is connected. Cancel safe.
    pub async fn arrival(&self, device: &DeviceId) -> DeviceHandle {
        let awaited = Awaited::new(self, device);
        let mut arrivals = awaited.arrivals();
        loop {
            arrivals.mark_unchanged();
            if let Place::Here(handle) = self.find(device) {
                return handle;
            }
            if arrivals.changed().await.is_err() {
                arrivals = awaited.arrivals();
            }
        }
    }

    /// How many devices are connected here.
    pub fn len(&self) -> usize {
        self.places.iter().filter(|handle| handle.is_here()).count()
    }

    /// Whether no device is connected here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Somebody waits for the device; the last one takes the entry away again.
struct Awaited<'a> {
    directory: &'a Directory,
    device: &'a DeviceId,
}

impl<'a> Awaited<'a> {
    fn new(directory: &'a Directory, device: &'a DeviceId) -> Self {
        Self { directory, device }
    }

    fn arrivals(&self) -> watch::Receiver<()> {
        self.directory.awaited.entry(self.device.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        // The receiver was dropped before this guard.
        self.directory.awaited.remove_if(self.device, |_, arrivals| arrivals.is_closed());
    }
}
