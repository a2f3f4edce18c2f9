//! How many streams there may be: of the relay, of each device, of each caller. Each slot is a guard, so that what ends gives it back at once.

use std::hash::Hash;
use std::sync::Arc;

use dashmap::DashMap;
use moorline_proto::bounds::IDLE_LEGS;
use moorline_proto::id::{CallerId, DeviceId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Limits;

/// The slots of one relay. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots {
    relay: Arc<Semaphore>,
    relay_waiting: Arc<Semaphore>,
    devices: Counts<DeviceId>,
    callers: Counts<CallerId>,
    callers_undecided: Counts<CallerId>,
    callers_waiting: Counts<CallerId>,
    callers_idle: Counts<CallerId>,
    limits: Arc<Limits>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// `limits.streams`.
    #[error("the relay has as many streams as it may")]
    Relay,
    /// `limits.waiting_callers`.
    #[error("the relay has as many requests that wait for a device as it may")]
    Waiting,
    /// `limits.streams_per_device`.
    #[error("the device has as many streams as the relay lets a device have")]
    Device,
    /// `limits.streams_per_caller`.
    #[error("the caller has as many streams as the relay lets a caller have")]
    Caller,
    /// `limits.undecided_per_caller`.
    #[error("the caller has asked for as many streams at once as the relay lets a caller ask for")]
    CallerUndecided,
    /// `limits.waiting_per_caller`.
    #[error("the caller waits for as many devices as the relay lets a caller wait for")]
    CallerWaiting,
}

/// A stream's slot at the relay and at its caller, until the stream ends.
#[derive(Debug)]
pub(super) struct StreamSlot {
    _relay: OwnedSemaphorePermit,
    _caller: Slot<CallerId>,
}

/// A stream's slot among those of its caller that are not opened yet.
#[derive(Debug)]
pub(super) struct UndecidedSlot(#[expect(dead_code, reason = "held for its drop")] Slot<CallerId>);

/// A slot among those who wait for a device.
#[derive(Debug)]
pub(super) struct WaitingSlot {
    _relay: OwnedSemaphorePermit,
    _caller: Slot<CallerId>,
}

/// A slot among the legs of a caller that belong to no stream.
#[derive(Debug)]
pub(super) struct IdleLegSlot(#[expect(dead_code, reason = "held for its drop")] Slot<CallerId>);

/// One of a device's slots for streams, open and undecided.
#[derive(Debug)]
pub(super) struct DeviceSlot(#[expect(dead_code, reason = "held for its drop")] Slot<DeviceId>);

impl Slots {
    /// As many as the limits say.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            relay: Arc::new(Semaphore::new(limits.streams.get())),
            relay_waiting: Arc::new(Semaphore::new(limits.waiting_callers.get())),
            devices: Counts::default(),
            callers: Counts::default(),
            callers_undecided: Counts::default(),
            callers_waiting: Counts::default(),
            callers_idle: Counts::default(),
            limits: Arc::new(limits.clone()),
        }
    }

    /// For a new stream of the caller.
    pub(super) fn stream(&self, caller: &CallerId) -> Result<(StreamSlot, UndecidedSlot), Exhausted> {
        let undecided = self.callers_undecided.take(caller, self.limits.undecided_per_caller.get()).ok_or(Exhausted::CallerUndecided)?;
        let of_caller = self.callers.take(caller, self.limits.streams_per_caller.get()).ok_or(Exhausted::Caller)?;
        let relay = Arc::clone(&self.relay).try_acquire_owned().map_err(|_| Exhausted::Relay)?;
        Ok((StreamSlot { _relay: relay, _caller: of_caller }, UndecidedSlot(undecided)))
    }

    /// For a stream whose device is offline.
    pub(super) fn waiting(&self, caller: &CallerId) -> Result<WaitingSlot, Exhausted> {
        let of_caller = self.callers_waiting.take(caller, self.limits.waiting_per_caller.get()).ok_or(Exhausted::CallerWaiting)?;
        let relay = Arc::clone(&self.relay_waiting).try_acquire_owned().map_err(|_| Exhausted::Waiting)?;
        Ok(WaitingSlot { _relay: relay, _caller: of_caller })
    }

    /// For a leg of the caller that belongs to no stream. None where it has [`IDLE_LEGS`] of them.
    pub(super) fn idle_leg(&self, caller: &CallerId) -> Option<IdleLegSlot> {
        self.callers_idle.take(caller, IDLE_LEGS).map(IdleLegSlot)
    }

    /// For a stream whose device is asked.
    pub(super) fn device(&self, device: &DeviceId) -> Result<DeviceSlot, Exhausted> {
        self.devices.take(device, self.limits.streams_per_device.get()).map(DeviceSlot).ok_or(Exhausted::Device)
    }

    /// How many streams the device has, open and undecided.
    pub(super) fn of_device(&self, device: &DeviceId) -> u32 {
        self.devices.of(device)
    }
}

/// Counts by key; a key whose count is zero takes no memory.
#[derive(Debug)]
struct Counts<K: Eq + Hash>(Arc<DashMap<K, u32>>);

impl<K: Eq + Hash> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One of the key's count; dropping it gives it back.
#[must_use = "the slot is taken only while this is held"]
#[derive(Debug)]
struct Slot<K: Eq + Hash> {
    counts: Counts<K>,
    key: K,
}

impl<K: Clone + Eq + Hash> Counts<K> {
    fn take(&self, key: &K, max: u32) -> Option<Slot<K>> {
        let mut count = self.0.entry(key.clone()).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Slot { counts: self.clone(), key: key.clone() })
    }

    fn of(&self, key: &K) -> u32 {
        self.0.get(key).map_or(0, |count| *count)
    }
}

impl<K: Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        if let Some(mut count) = self.counts.0.get_mut(&self.key) {
            *count = count.saturating_sub(1);
        }
        self.counts.0.remove_if(&self.key, |_, count| *count == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(subject: &str) -> CallerId {
        CallerId { issuer: "relay".parse().unwrap(), subject: subject.parse().unwrap() }
    }

    fn slots() -> Slots {
        Slots::new(&Limits {
            streams: 4.try_into().unwrap(),
            streams_per_device: 2.try_into().unwrap(),
            streams_per_caller: 3.try_into().unwrap(),
            undecided_per_caller: 2.try_into().unwrap(),
            waiting_callers: 2.try_into().unwrap(),
            waiting_per_caller: 1.try_into().unwrap(),
            ..Limits::default()
        })
    }

    #[test]
    fn each_limit_is_named_and_what_ends_gives_its_slot_back() {
        let (slots, alice, bob) = (slots(), caller("alice"), caller("bob"));
        let (first, undecided) = slots.stream(&alice).unwrap();
        let (_second, _undecided) = slots.stream(&alice).unwrap();
        assert_eq!(slots.stream(&alice).unwrap_err(), Exhausted::CallerUndecided);
        drop(undecided);
        let (_third, opened) = slots.stream(&alice).unwrap();
        drop(opened);
        assert_eq!(slots.stream(&alice).unwrap_err(), Exhausted::Caller);
        let (_fourth, _undecided) = slots.stream(&bob).unwrap();
        assert_eq!(slots.stream(&bob).unwrap_err(), Exhausted::Relay);
        drop(first);
        assert!(slots.stream(&bob).is_ok(), "the failed attempts hold no slots");
    }

    #[test]
    fn one_caller_cannot_occupy_every_waiting_slot() {
        let (slots, alice, bob) = (slots(), caller("alice"), caller("bob"));
        let _first = slots.waiting(&alice).unwrap();
        assert_eq!(slots.waiting(&alice).unwrap_err(), Exhausted::CallerWaiting);
        let second = slots.waiting(&bob).unwrap();
        assert_eq!(slots.waiting(&caller("carol")).unwrap_err(), Exhausted::Waiting);
        drop(second);
        assert!(slots.waiting(&caller("carol")).is_ok());
    }

    #[test]
    fn a_device_without_streams_uses_no_memory() {
        let (slots, lamp) = (slots(), "lamp-1".parse().unwrap());
        let both = (slots.device(&lamp).unwrap(), slots.device(&lamp).unwrap());
        assert_eq!((slots.of_device(&lamp), slots.device(&lamp).unwrap_err()), (2, Exhausted::Device));
        drop(both);
        assert_eq!((slots.of_device(&lamp), slots.devices.0.len()), (0, 0));
    }
}
