//! Idempotency keys: the same key of the same caller for the same device and service names the same stream, within its deadline.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use moorline_proto::api::OpenStream;
use moorline_proto::id::{CallerId, DeviceId, ServiceName};

use crate::stream::Begun;
use crate::stream::refusal::Refused;
use crate::ttl_map::TtlMap;

/// Keys of streams that were opened and are over, at most.
const SPENT: usize = 20_000;

/// A key as it is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Whose.
    pub caller: CallerId,
    /// For which device.
    pub device: DeviceId,
    /// For which of its services.
    pub service: ServiceName,
    /// As the caller sent it.
    pub text: String,
}

/// All keys. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    live: Arc<DashMap<Key, Known>>,
    spent: Arc<TtlMap<Key, OpenStream>>,
}

#[derive(Clone, Debug)]
struct Known {
    asked: OpenStream,
    begun: Begun,
    opened: bool,
}

/// A key's stream lives as long as this is held; afterwards a key whose stream was opened is spent, and any other is forgotten.
#[must_use = "the key is known only while this is held"]
#[derive(Debug)]
pub(crate) struct Held {
    keys: Keys,
    key: Key,
}

impl Keys {
    /// Keys of opened streams are remembered for `keep` after their end.
    pub(crate) fn new(keep: Duration) -> Self {
        Self { live: Arc::default(), spent: Arc::new(TtlMap::new(keep, SPENT)) }
    }

    /// The stream of the key, or what `begin` makes, if the key is new: it then [holds](Keys::hold) the key. Of two requests at the same
    /// moment one begins.
    ///
    /// # Errors
    /// [`Refused::Conflict`], [`Refused::Used`], or what `begin` gives; it must not hold the key then.
    pub(crate) fn find_or(
        &self,
        key: Key,
        asked: &OpenStream,
        begin: impl FnOnce(Key) -> Result<Begun, Refused>,
    ) -> Result<(Begun, bool), Refused> {
        if let Some(before) = self.spent.get(&key) {
            return Err(if before == *asked { Refused::Used } else { Refused::Conflict });
        }
        match self.live.entry(key.clone()) {
            Entry::Occupied(known) if known.get().asked != *asked => Err(Refused::Conflict),
            Entry::Occupied(known) if known.get().opened => Err(Refused::Used),
            Entry::Occupied(known) => Ok((known.get().begun.clone(), true)),
            Entry::Vacant(vacant) => {
                let begun = begin(key)?;
                vacant.insert(Known { asked: asked.clone(), begun: begun.clone(), opened: false });
                Ok((begun, false))
            }
        }
    }
}

impl Keys {
    /// The key's stream has begun and lives as long as this is held.
    pub(crate) fn hold(&self, key: Key) -> Held {
        Held { keys: self.clone(), key }
    }
}

impl Held {
    /// The stream was opened: asking again is too late.
    pub(crate) fn opened(&self) {
        if let Some(mut known) = self.keys.live.get_mut(&self.key) {
            known.opened = true;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((key, known)) = self.keys.live.remove(&self.key)
            && known.opened
        {
            self.keys.spent.put(key, known.asked);
        }
    }
}
