//! Idempotency keys: the same key of the same caller for the same device and service names the same stream, as long as that is not opened.
//!
//! A key is reserved before the first lookup, and no lock is held meanwhile: a repeated key waits for the outcome of the first
//! request. After the stream, digests of key and request are remembered, nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use moorline_proto::api::OpenStream;
use moorline_proto::id::{CallerId, DeviceId};
use tokio::sync::watch;

use crate::digest::Digest;
use crate::stream::handle::StreamHandle;
use crate::stream::recent::RecentMap;
use crate::stream::refusal::Refusal;

/// All keys. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    live: Arc<DashMap<Digest, Live>>,
    spent: Arc<RecentMap<Digest, Digest>>,
}

/// A key whose stream is set up, on its way, or open.
#[derive(Debug)]
struct Live {
    request: Digest,
    stream: watch::Receiver<Option<StreamHandle>>,
}

/// A key and the request that came with it, as digests.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyedRequest {
    key: Digest,
    request: Digest,
}

impl KeyedRequest {
    /// The request of a caller for a device, with the key's text.
    pub(super) fn new(text: &str, caller: &CallerId, device: &DeviceId, open: &OpenStream) -> Self {
        let caller = caller.to_string();
        let parts = [caller.as_bytes(), device.as_str().as_bytes(), open.service.as_str().as_bytes(), text.as_bytes()];
        let request = serde_json::to_vec(open).unwrap_or_default();
        Self { key: Digest::of(&parts), request: Digest::of(&[&request]) }
    }
}

/// What a key names.
#[derive(Debug)]
pub(super) enum Named {
    /// Nothing yet: the stream is to be set up.
    New(Reservation),
    /// The stream of an earlier request.
    Earlier(StreamHandle),
}

/// A key that is taken until this is dropped. A key whose stream was opened, or may have been as far as its target knows, is spent then, and any
/// other is free again.
#[must_use = "the key is taken only while this is held"]
#[derive(Debug)]
pub(super) struct Reservation {
    keys: Keys,
    keyed: KeyedRequest,
    stream: watch::Sender<Option<StreamHandle>>,
    is_spent: AtomicBool,
}

impl Keys {
    /// Keys of opened streams are remembered for `keep` after their end, `max` of them at most.
    pub(super) fn new(keep: Duration, max: usize) -> Self {
        Self { live: Arc::default(), spent: Arc::new(RecentMap::new(keep, max)) }
    }

    /// Reserves the key, or finds what it names: of several requests at the same moment one begins, and the others wait for what comes of it.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] where the key came with another request, [`Refusal::Used`] where its stream was opened.
    ///
    /// # Cancel safety
    /// Nothing is reserved before it returns.
    pub(super) async fn reserve(&self, keyed: KeyedRequest) -> Result<Named, Refusal> {
        loop {
            if let Some(request) = self.spent.get(&keyed.key) {
                return Err(if request == keyed.request { Refusal::Used } else { Refusal::Conflict });
            }
            let mut earlier = match self.find_or_take(keyed)? {
                // It may have been spent, and given back, since it was looked up.
                Ok(reservation) if self.spent.get(&keyed.key).is_none() => return Ok(Named::New(reservation)),
                Ok(_) => continue,
                Err(earlier) => earlier,
            };
            // Where the first request failed before there was a stream, its reservation is gone, and the key is free again.
            if let Ok(found) = earlier.wait_for(Option::is_some).await
                && let Some(handle) = &*found
            {
                return if handle.status().was_opened() { Err(Refusal::Used) } else { Ok(Named::Earlier(handle.clone())) };
            }
        }
    }

    /// The reservation of a key that is free; where it is taken, what comes of that.
    fn find_or_take(&self, keyed: KeyedRequest) -> Result<Result<Reservation, watch::Receiver<Option<StreamHandle>>>, Refusal> {
        match self.live.entry(keyed.key) {
            Entry::Occupied(live) if live.get().request != keyed.request => Err(Refusal::Conflict),
            Entry::Occupied(live) => Ok(Err(live.get().stream.clone())),
            Entry::Vacant(vacant) => {
                let (sender, stream) = watch::channel(None);
                vacant.insert(Live { request: keyed.request, stream });
                Ok(Ok(Reservation { keys: self.clone(), keyed, stream: sender, is_spent: AtomicBool::new(false) }))
            }
        }
    }
}

impl Reservation {
    /// The stream is set up: a request that repeats the key gets it.
    pub(super) fn names(&self, stream: &StreamHandle) {
        self.stream.send_replace(Some(stream.clone()));
    }

    /// The stream was opened, or bytes of the caller may have reached its target: repeating the key is too late.
    pub(super) fn spend(&self) {
        self.is_spent.store(true, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Remembered before it is forgotten: between the two it is known twice, and never unknown.
        if *self.is_spent.get_mut() {
            self.keys.spent.put(self.keyed.key, self.keyed.request);
        }
        self.keys.live.remove(&self.keyed.key);
    }
}
