//! The idle legs of one session: device legs that belong to no stream, the one that was used last first.
//!
//! A leg stands in a slot that two share: the task that watches the leg, and this list, from which the next stream takes it.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use moorline_proto::bounds::IDLE_LEGS;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::splice::leg_end::LegEnd;
use crate::splice::{Leg, Watched};
use crate::sync::lock;

/// The idle legs of one session.
#[derive(Debug, Default)]
pub struct IdleLegs {
    /// The one that was used last is the last. A slot without a leg is on its way, or is leaving.
    slots: Mutex<Vec<Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    leg: Mutex<Option<Box<Leg>>>,
    taken: Notify,
}

/// A slot among the idle legs of a session, until this is dropped.
#[must_use = "the slot is there only while this is held"]
#[derive(Debug)]
pub struct IdleSlot<'a> {
    legs: &'a IdleLegs,
    slot: Arc<Slot>,
}

impl IdleLegs {
    /// A slot for a leg that is about to be idle. None where there are [`IDLE_LEGS`] already.
    pub fn reserve(&self) -> Option<IdleSlot<'_>> {
        let slot = Arc::<Slot>::default();
        let mut slots = lock(&self.slots);
        if slots.len() >= IDLE_LEGS as usize {
            return None;
        }
        slots.push(Arc::clone(&slot));
        drop(slots);
        Some(IdleSlot { legs: self, slot })
    }

    /// Takes the leg that was used last, for another stream.
    pub fn take(&self) -> Option<Box<Leg>> {
        let slots = lock(&self.slots);
        slots.iter().rev().find_map(|slot| {
            let leg = lock(&slot.leg).take()?;
            slot.taken.notify_one();
            Some(leg)
        })
    }
}

impl IdleSlot<'_> {
    /// Offers the leg to whoever takes one.
    pub fn put(&self, leg: Box<Leg>) {
        *lock(&self.slot.leg) = Some(leg);
    }

    /// Takes the leg out again, unless it was taken.
    pub fn take(&self) -> Option<Box<Leg>> {
        lock(&self.slot.leg).take()
    }

    /// Waits until the leg was taken. Cancel safe.
    pub async fn taken(&self) {
        self.slot.taken.notified().await;
    }

    /// Waits until the leg ends. Never returns once it was taken. Cancel safe.
    pub async fn ended(&self) -> LegEnd {
        poll_fn(|cx| match lock(&self.slot.leg).as_mut().map(|leg| leg.poll_idle(cx)) {
            Some(Poll::Ready(Watched::Ended(end))) => Poll::Ready(end),
            // An idle device leg has nothing else to say.
            Some(Poll::Ready(Watched::Said(_) | Watched::Early) | Poll::Pending) | None => Poll::Pending,
        })
        .await
    }

    /// When [`IdleSlot::on_tick`] should be called next.
    pub fn next_tick(&self, otherwise: Instant) -> Instant {
        lock(&self.slot.leg).as_ref().map_or(otherwise, |leg| leg.next_tick())
    }

    /// Pings the leg, if that is due. One that is dead is found by [`IdleSlot::ended`].
    pub async fn on_tick(&self) {
        let now = Instant::now();
        poll_fn(|cx| {
            if let Some(leg) = lock(&self.slot.leg).as_mut() {
                // What it finds, it keeps.
                drop(leg.on_tick(false, now, cx));
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for IdleSlot<'_> {
    fn drop(&mut self) {
        lock(&self.legs.slots).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}
