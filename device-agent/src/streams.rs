//! The streams of an agent, from offer to end: how many there may be, and which offers can still be cancelled.
//!
//! Owns: the bound of streams, and the rule that a newer offer of a stream replaces an older one.
//! Does not own: what happens to a stream ([`crate::offer`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moorline_proto::control::Attempt;
use moorline_proto::id::StreamId;
use tokio_util::sync::CancellationToken;

/// The streams of an agent. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Offers whose stream is not open yet. A stream id is in it at most once.
    pending: HashMap<StreamId, Pending>,
    open: usize,
    next_serial: u64,
}

#[derive(Debug)]
struct Pending {
    attempt: Attempt,
    /// Names the entry: the guard of a replaced offer must not remove its successor, even if a faulty relay repeats an attempt.
    serial: u64,
    cancel: CancellationToken,
}

/// Why an offer gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// There are as many streams as there may be.
    Full,
    /// A later attempt of the same stream is under way: this offer came late, on an old control channel.
    Outdated,
}

/// The place of one stream. Dropping it frees the place.
#[derive(Debug)]
#[must_use = "the stream has its place only while this is held"]
pub(crate) struct StreamGuard {
    streams: Streams,
    stream: StreamId,
    serial: u64,
    is_open: bool,
}

impl Streams {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for an offer. `cancel` is cancelled when the offer is cancelled, or replaced by another offer of the same stream.
    ///
    /// # Errors
    /// [`NotAdmitted`]. An offer that replaces another one inherits its place, even if there are more than `max` streams.
    pub(crate) fn admit(
        &self,
        stream: StreamId,
        attempt: Attempt,
        max: usize,
        cancel: CancellationToken,
    ) -> Result<StreamGuard, NotAdmitted> {
        let mut state = self.state();
        match state.pending.get(&stream) {
            Some(current) if current.attempt > attempt => return Err(NotAdmitted::Outdated),
            Some(replaced) => replaced.cancel.cancel(),
            None if state.pending.len() + state.open >= max => return Err(NotAdmitted::Full),
            None => {}
        }
        let serial = state.next_serial;
        state.next_serial += 1;
        state.pending.insert(stream, Pending { attempt, serial, cancel });
        Ok(StreamGuard { streams: self.clone(), stream, serial, is_open: false })
    }

    /// Cancels the offer of a stream. Returns false if there is none, or if its stream is open.
    pub(crate) fn cancel(&self, stream: &StreamId) -> bool {
        let state = self.state();
        let pending = state.pending.get(stream);
        if let Some(pending) = pending {
            pending.cancel.cancel();
        }
        pending.is_some()
    }
}

impl StreamGuard {
    /// Records that the stream is open: from now on it can be neither cancelled nor replaced. Returns false if it was replaced before.
    pub(crate) fn opened(&mut self) -> bool {
        let mut state = self.streams.state();
        self.is_open = state.remove(self.stream, self.serial);
        state.open += usize::from(self.is_open);
        self.is_open
    }
}

impl State {
    fn remove(&mut self, stream: StreamId, serial: u64) -> bool {
        let is_own = self.pending.get(&stream).is_some_and(|pending| pending.serial == serial);
        is_own && self.pending.remove(&stream).is_some()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        if self.is_open {
            state.open -= 1;
        } else {
            state.remove(self.stream, self.serial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(number: u8) -> StreamId {
        format!("{number:032x}").parse().unwrap()
    }

    fn admit(streams: &Streams, number: u8) -> Result<(StreamGuard, CancellationToken), NotAdmitted> {
        admit_attempt(streams, number, Attempt::FIRST)
    }

    fn admit_attempt(streams: &Streams, number: u8, attempt: Attempt) -> Result<(StreamGuard, CancellationToken), NotAdmitted> {
        let cancel = CancellationToken::new();
        streams.admit(stream(number), attempt, 2, cancel.clone()).map(|guard| (guard, cancel))
    }

    #[test]
    fn open_and_undecided_streams_count_and_a_dropped_guard_frees_its_slot() {
        let streams = Streams::default();
        let (mut first, _) = admit(&streams, 1).unwrap();
        assert!(first.opened());
        let (second, _) = admit(&streams, 2).unwrap();
        assert_eq!(admit(&streams, 3).unwrap_err(), NotAdmitted::Full);
        drop(second);
        let (third, _) = admit(&streams, 3).unwrap();
        assert_eq!(admit(&streams, 4).unwrap_err(), NotAdmitted::Full);
        drop(first);
        let fourth = admit(&streams, 4).unwrap();
        drop((third, fourth));
        let state = streams.state();
        assert_eq!((state.pending.len(), state.open), (0, 0));
    }

    #[test]
    fn a_second_offer_of_a_stream_replaces_the_first_and_inherits_its_place() {
        let streams = Streams::default();
        let (mut first, first_cancel) = admit(&streams, 1).unwrap();
        let _other = admit(&streams, 2).unwrap();
        let (mut second, second_cancel) = admit_attempt(&streams, 1, Attempt::FIRST.next()).unwrap();
        assert_eq!(admit(&streams, 1).unwrap_err(), NotAdmitted::Outdated);
        assert!(first_cancel.is_cancelled() && !second_cancel.is_cancelled());
        assert!(!first.opened(), "it was replaced");
        drop(first);
        assert!(streams.cancel(&stream(1)), "the first guard does not remove the entry of the second");
        assert!(second_cancel.is_cancelled());
        assert!(second.opened());
        assert_eq!(admit(&streams, 3).unwrap_err(), NotAdmitted::Full);
    }

    #[test]
    fn an_open_stream_is_not_cancelled() {
        let streams = Streams::default();
        let (mut guard, cancel) = admit(&streams, 1).unwrap();
        assert!(guard.opened());
        assert!(!streams.cancel(&stream(1)) && !streams.cancel(&stream(2)));
        assert!(!cancel.is_cancelled());
    }
}
