//! The idle legs of one session: how many there are, and when they are closed.
//!
//! Does not own: the legs, each of which is its own task's ([`crate::leg_offer`]), and how many are kept ready ([`crate::warm_legs`]).

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::limits::IDLE_LEG_STABLE_AFTER;

/// The idle legs of one session. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct IdleLegs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: u32,
    counts: watch::Sender<Counts>,
    /// Legs are kept no longer. An offer that has come is still decided.
    closed: CancellationToken,
    /// The session is over: offers that are undecided are dropped too.
    over: CancellationToken,
}

/// Idle legs now, and how idle legs have ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) idle: u32,
    /// A stream was offered on them, or they were kept for a while.
    pub(crate) useful: u64,
    /// They ended for nothing.
    pub(crate) short_lived: u64,
}

/// The place of one idle leg. Dropping it frees the place.
#[derive(Debug)]
#[must_use = "the leg has its place only while this is held"]
pub(crate) struct IdlePlace {
    legs: IdleLegs,
    since: Instant,
    is_useful: bool,
}

impl IdleLegs {
    /// The legs of a new session, at most `max`. It is over when the guard is dropped.
    pub(crate) fn new(max: u32) -> (Self, DropGuard) {
        let over = CancellationToken::new();
        let shared = Shared { max, counts: watch::Sender::default(), closed: over.child_token(), over: over.clone() };
        (Self(Arc::new(shared)), over.drop_guard())
    }

    /// Takes a place for an idle leg. None if there are as many as there may be.
    pub(crate) fn place(&self) -> Option<IdlePlace> {
        let has_room = self.0.counts.send_if_modified(|counts| {
            let has_room = counts.idle < self.0.max;
            counts.idle += u32::from(has_room);
            has_room
        });
        has_room.then(|| IdlePlace { legs: self.clone(), since: Instant::now(), is_useful: false })
    }

    /// How many there may be.
    pub(crate) fn max(&self) -> u32 {
        self.0.max
    }

    /// How many legs are idle, and what became of the others.
    pub(crate) fn counts(&self) -> watch::Receiver<Counts> {
        self.0.counts.subscribe()
    }

    /// Closes all that are idle, and those that will be.
    pub(crate) fn close(&self) {
        self.0.closed.cancel();
    }

    /// Runs `work` for as long as idle legs are kept.
    pub(crate) async fn while_kept<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.closed.run_until_cancelled(work).await
    }

    /// Runs `work` until the session is over.
    pub(crate) async fn while_online<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.over.run_until_cancelled(work).await
    }
}

impl IdlePlace {
    /// A stream was offered on the leg: it is idle no more.
    pub(crate) fn used(mut self) {
        self.is_useful = true;
    }
}

impl Drop for IdlePlace {
    fn drop(&mut self) {
        let is_useful = self.is_useful || self.since.elapsed() >= IDLE_LEG_STABLE_AFTER;
        self.legs.0.counts.send_modify(|counts| {
            counts.idle -= 1;
            if is_useful {
                counts.useful += 1;
            } else {
                counts.short_lived += 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::IDLE_LEGS;

    #[test]
    fn the_sixty_fifth_leg_gets_no_place_until_another_one_is_free() {
        let (legs, _session) = IdleLegs::new(IDLE_LEGS);
        let mut places: Vec<_> = (0..IDLE_LEGS).map(|_| legs.place().unwrap()).collect();
        assert!(legs.place().is_none());
        places.pop().unwrap().used();
        let again = legs.place().unwrap();
        assert!(legs.place().is_none());
        drop((again, places));
        assert_eq!(*legs.counts().borrow(), Counts { idle: 0, useful: 1, short_lived: 64 });
    }
}
