//! The directory of a relay that is one node: a map in memory. A device's place in it is a guard.

use std::sync::Arc;

use dashmap::DashMap;
use moorline_proto::id::{DeviceId, Instance};
use moorline_proto::secret::Secret;
use tokio::sync::watch;
use tracing::warn;

use crate::access::revocation::Revocation;
use crate::control::handle::{ChannelClosed, DeviceHandle};
use crate::digest::Digest;
use crate::directory::{Location, Unavailable};
use crate::limits::{SUPERSEDED_MAX, SUPERSEDED_RETENTION};
use crate::random;
use crate::ttl_map::TtlMap;

/// Where devices are connected. Clones share it.
#[derive(Clone, Debug)]
pub struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    devices: DashMap<DeviceId, DeviceHandle>,
    awaited: DashMap<DeviceId, watch::Sender<()>>,
    superseded: TtlMap<DeviceId, Instance>,
    /// Whose idle legs a token opens, by its digest.
    warm: DashMap<Digest, DeviceHandle>,
}

impl Default for Directory {
    fn default() -> Self {
        let superseded = TtlMap::new(SUPERSEDED_RETENTION, SUPERSEDED_MAX);
        Self(Arc::new(Inner { devices: DashMap::default(), awaited: DashMap::default(), superseded, warm: DashMap::default() }))
    }
}

/// A device's entry among those online; dropping it removes the entry.
#[must_use = "the device is online only while this is held"]
#[derive(Debug)]
pub struct Listed {
    directory: Directory,
    handle: DeviceHandle,
    warm: Option<Digest>,
}

impl Listed {
    /// A token that opens idle legs of the device while it is listed. Only its digest is kept.
    pub fn warm_token(&mut self) -> Secret {
        let token = random::warm_token();
        let digest = warm_digest(&token);
        self.directory.0.warm.insert(digest, self.handle.clone());
        if let Some(before) = self.warm.replace(digest) {
            self.directory.0.warm.remove(&before);
        }
        token
    }
}

fn warm_digest(token: &Secret) -> Digest {
    Digest::of(&[token.reveal().as_bytes()]) // the digest stays, the text does not
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.handle.set_closed(ChannelClosed::Lost);
        if let Some(digest) = self.warm {
            self.directory.0.warm.remove(&digest);
        }
        // A newer session may be listed by now; that one stays.
        self.directory.0.devices.remove_if(&self.handle.about().principal.device, |_, listed| listed.is(&self.handle));
    }
}

impl Directory {
    /// Lists a device's channel. The one that was listed before is superseded at once, without being waited for.
    pub fn list(&self, handle: DeviceHandle) -> Listed {
        let principal = &handle.about().principal;
        let before = self.0.devices.insert(principal.device.clone(), handle.clone());
        if let Some(before) = before {
            self.notice_duplicates(&before, &handle);
            before.supersede(&principal.instance);
        }
        let awaited = self.0.awaited.remove(&principal.device);
        if let Some((_, arrivals)) = awaited {
            arrivals.send_replace(());
        }
        Listed { directory: self.clone(), handle, warm: None }
    }

    /// A, B, A within ten minutes: two machines share one identity.
    fn notice_duplicates(&self, before: &DeviceHandle, now: &DeviceHandle) {
        let (was, is) = (&before.about().principal, &now.about().principal);
        if was.instance == is.instance {
            return;
        }
        if self.0.superseded.get(&is.device).is_some_and(|superseded| superseded == is.instance) {
            let addresses = [before.about().address, now.about().address];
            warn!(device = %is.device, ?addresses, "duplicate_identity: two machines are online in turn with the key of one device");
        }
        self.0.superseded.put(is.device.clone(), was.instance.clone());
    }

    /// Where the device is, asked once for each stream.
    ///
    /// # Errors
    /// [`Unavailable`], never from this directory.
    pub async fn locate(&self, device: &DeviceId) -> Result<Location, Unavailable> {
        Ok(self.find(device))
    }

    /// Whether the device is connected to this node, and how to reach it.
    pub fn find(&self, device: &DeviceId) -> Location {
        let listed = self.0.devices.get(device).map(|handle| handle.clone());
        listed.filter(DeviceHandle::is_open).map_or(Location::Offline, Location::Here)
    }

    /// The device whose idle legs a token opens, if its channel is open.
    pub fn find_warm(&self, token: &Secret) -> Option<DeviceHandle> {
        self.0.warm.get(&warm_digest(token)).map(|handle| handle.clone()).filter(DeviceHandle::is_open)
    }

    /// Waits until the device is connected. Cancel safe.
    pub async fn arrival(&self, device: &DeviceId) -> DeviceHandle {
        let awaited = Awaited { directory: self, device };
        loop {
            let mut arrivals = awaited.arrivals();
            arrivals.mark_unchanged();
            if let Location::Here(handle) = self.find(device) {
                return handle;
            }
            // An error means that the device arrived: its entry was taken away.
            drop(arrivals.changed().await);
        }
    }

    /// Ends the device's channel, if it stands on a registration that was revoked.
    pub fn revoke(&self, device: &DeviceId, revocation: Revocation, is_revoked: impl FnOnce(&DeviceHandle) -> bool) {
        if let Location::Here(handle) = self.find(device)
            && is_revoked(&handle)
        {
            handle.revoke(revocation);
        }
    }

    /// Every device that is connected to this node.
    pub fn connected(&self) -> Vec<DeviceHandle> {
        self.0.devices.iter().map(|handle| handle.clone()).filter(DeviceHandle::is_open).collect()
    }

    /// Makes every session look at what has changed for it, one that is not open any more too.
    pub fn wake(&self) {
        self.0.devices.iter().for_each(|handle| handle.wake());
    }

    /// How many devices are connected to this node.
    pub fn len(&self) -> usize {
        self.0.devices.iter().filter(|handle| handle.is_open()).count()
    }

    /// Whether no device is connected to this node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Somebody waits for the device; the last one takes the entry away again.
struct Awaited<'a> {
    directory: &'a Directory,
    device: &'a DeviceId,
}

impl Awaited<'_> {
    fn arrivals(&self) -> watch::Receiver<()> {
        self.directory.0.awaited.entry(self.device.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        // The receiver was dropped before this guard.
        self.directory.0.awaited.remove_if(self.device, |_, arrivals| arrivals.is_closed());
    }
}
