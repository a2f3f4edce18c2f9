//! A registry in memory that can hold back one answer after it was read, so that something can change between the read and the decision.

use std::sync::{Arc, Mutex};

use moorline_proto::claims::Pattern;
use moorline_proto::id::DeviceId;
use moorline_proto::proof::PublicKey;
use moorline_proto::timestamp::Timestamp;
use moorline_relay::store::{CallerKey, DeviceRecord, MemoryRegistry, Put, Registry, Sighting, StoreFuture};
use tokio::sync::oneshot;

/// The registry of a world, with its one held answer.
#[derive(Debug)]
pub struct HeldRegistry {
    inner: Arc<MemoryRegistry>,
    next: Mutex<Option<Hold>>,
}

#[derive(Debug)]
struct Hold {
    read: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

/// An answer that is held back until [`HeldAnswer::release`].
#[derive(Debug)]
pub struct HeldAnswer {
    read: oneshot::Receiver<()>,
    release: oneshot::Sender<()>,
}

impl HeldRegistry {
    /// Wraps the registry of a world.
    pub fn new(inner: Arc<MemoryRegistry>) -> Self {
        Self { inner, next: Mutex::default() }
    }

    /// Holds back the answer to the next lookup of a device.
    pub fn hold_next(&self) -> HeldAnswer {
        let ((read, is_read), (release, released)) = (oneshot::channel(), oneshot::channel());
        *self.next.lock().expect("the lock is not poisoned") = Some(Hold { read, released });
        HeldAnswer { read: is_read, release }
    }
}

impl HeldAnswer {
    /// Waits until the registry was read.
    pub async fn is_read(&mut self) {
        (&mut self.read).await.expect("the registry is called");
    }

    /// Returns the answer as it was when it was read.
    pub fn release(self) {
        self.release.send(()).expect("the requester waits for the answer");
    }
}

impl Registry for HeldRegistry {
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>> {
        let hold = self.next.lock().expect("the lock is not poisoned").take();
        Box::pin(async move {
            let answer = self.inner.device(device).await;
            if let Some(Hold { read, released }) = hold {
                read.send(()).ok();
                released.await.ok();
            }
            answer
        })
    }

    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>> {
        self.inner.devices(filter, after, max)
    }

    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put> {
        self.inner.put_device(device, keys, now)
    }

    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool> {
        self.inner.remove_device(device)
    }

    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        self.inner.record_sightings(sightings)
    }

    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>> {
        self.inner.caller_keys()
    }

    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()> {
        self.inner.put_caller_key(key)
    }
}
