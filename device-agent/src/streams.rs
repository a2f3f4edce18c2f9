//! The streams of an agent, from offer to end: how many there may be, and which offers can still be cancelled.
//!
//! Owns: the bound of streams, the rule that a newer offer of a stream replaces an older one, and the rule that no stream is opened twice: what
//! its caller sent must not reach the target a second time.
//! Does not own: what happens to a stream ([`crate::offer`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moorline_proto::control::Attempt;
use moorline_proto::id::StreamId;
use moorline_transport::bridge::BridgeEnd;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits::REMEMBERED_STREAMS;

/// The streams of an agent. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Offers whose stream is not open yet. A stream id is in it at most once.
    pending: HashMap<StreamId, Pending>,
    open: usize,
    /// Streams that were opened, and that the relay might offer again because it does not know.
    opened: HashMap<StreamId, Opened>,
    next_serial: u64,
}

#[derive(Debug)]
struct Opened {
    serial: u64,
    is_over: bool,
    /// No attempt comes later.
    deadline: Instant,
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
    /// An earlier attempt of the same stream was opened: the target may have bytes of it.
    Opened,
    /// A later attempt of the same stream is under way: this offer came late, on an old control channel.
    Outdated,
}

/// The place of one stream. Dropping it frees the place.
#[derive(Debug)]
#[must_use = "the stream has its place only while this is held"]
pub(crate) struct StreamGuard {
    streams: Streams,
    stream: StreamId,
    attempt: Attempt,
    serial: u64,
    is_open: bool,
    /// The relay knows that the stream was opened.
    is_known: bool,
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
        if state.opened.get(&stream).is_some_and(|opened| !opened.is_over || Instant::now() < opened.deadline) {
            return Err(NotAdmitted::Opened);
        }
        match state.pending.get(&stream) {
            Some(current) if current.attempt > attempt => return Err(NotAdmitted::Outdated),
            Some(replaced) => replaced.cancel.cancel(),
            None if state.pending.len() + state.open >= max => return Err(NotAdmitted::Full),
            None => {}
        }
        let serial = state.next_serial;
        state.next_serial += 1;
        state.pending.insert(stream, Pending { attempt, serial, cancel });
        Ok(StreamGuard { streams: self.clone(), stream, attempt, serial, is_open: false, is_known: false })
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
    /// Records that the stream is open: from now on it can be neither cancelled nor replaced, and until its deadline it is not opened again.
    /// Returns false if it was replaced before.
    pub(crate) fn opened(&mut self, deadline: Instant) -> bool {
        let mut state = self.streams.state();
        self.is_open = state.remove(self.stream, self.serial);
        if self.is_open {
            state.open += 1;
            state.opened.insert(self.stream, Opened { serial: self.serial, is_over: false, deadline });
        }
        self.is_open
    }

    /// Records how the open stream ended. Where the first attempt ended in order there will be no other.
    pub(crate) fn ended(&mut self, end: &BridgeEnd) {
        self.is_known = matches!(end, BridgeEnd::Finished | BridgeEnd::CutShort) && self.attempt == Attempt::FIRST;
    }
}

impl State {
    fn remove(&mut self, stream: StreamId, serial: u64) -> bool {
        let is_own = self.pending.get(&stream).is_some_and(|pending| pending.serial == serial);
        is_own && self.pending.remove(&stream).is_some()
    }

    /// Remembers a stream that is over until its deadline. Of more than can be remembered the oldest are forgotten.
    fn remember(&mut self, stream: StreamId) {
        if self.opened.len() - self.open > REMEMBERED_STREAMS {
            let now = Instant::now();
            self.opened.retain(|_, opened| !opened.is_over || now < opened.deadline);
        }
        if self.opened.len() - self.open > REMEMBERED_STREAMS {
            let over = self.opened.iter().filter(|(_, opened)| opened.is_over);
            if let Some(oldest) = over.min_by_key(|(_, opened)| opened.serial).map(|(stream, _)| *stream) {
                self.opened.remove(&oldest);
            }
        }
        if let Some(opened) = self.opened.get_mut(&stream) {
            opened.is_over = true;
        }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        if !self.is_open {
            state.remove(self.stream, self.serial);
            return;
        }
        state.open -= 1;
        if self.is_known {
            state.opened.remove(&self.stream);
        } else {
            state.remember(self.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stream(number: u16) -> StreamId {
        format!("{number:032x}").parse().unwrap()
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn admit(streams: &Streams, number: u16) -> Result<(StreamGuard, CancellationToken), NotAdmitted> {
        admit_attempt(streams, number, Attempt::FIRST)
    }

    fn admit_attempt(streams: &Streams, number: u16, attempt: Attempt) -> Result<(StreamGuard, CancellationToken), NotAdmitted> {
        let cancel = CancellationToken::new();
        streams.admit(stream(number), attempt, 2, cancel.clone()).map(|guard| (guard, cancel))
    }

    #[test]
    fn open_and_undecided_streams_count_and_a_dropped_guard_frees_its_slot() {
        let streams = Streams::default();
        let (mut first, _) = admit(&streams, 1).unwrap();
        assert!(first.opened(deadline()));
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
        assert!(!first.opened(deadline()), "it was replaced");
        drop(first);
        assert!(streams.cancel(&stream(1)), "the first guard does not remove the entry of the second");
        assert!(second_cancel.is_cancelled());
        assert!(second.opened(deadline()));
        assert_eq!(admit(&streams, 3).unwrap_err(), NotAdmitted::Full);
    }

    #[test]
    fn an_open_stream_is_not_cancelled() {
        let streams = Streams::default();
        let (mut guard, cancel) = admit(&streams, 1).unwrap();
        assert!(guard.opened(deadline()));
        assert!(!streams.cancel(&stream(1)) && !streams.cancel(&stream(2)));
        assert!(!cancel.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_opened_is_not_opened_again_before_its_deadline_unless_it_ended_in_order() {
        let streams = Streams::default();
        let second = Attempt::FIRST.next();
        let (mut guard, _) = admit(&streams, 1).unwrap();
        assert!(guard.opened(deadline()));
        assert_eq!(admit_attempt(&streams, 1, second).unwrap_err(), NotAdmitted::Opened, "it is open");
        drop(guard);
        assert_eq!(admit_attempt(&streams, 1, second).unwrap_err(), NotAdmitted::Opened, "the relay may not know");
        tokio::time::advance(Duration::from_secs(60)).await;
        let (mut guard, _) = admit_attempt(&streams, 1, second).unwrap();

        assert!(guard.opened(deadline()));
        guard.ended(&BridgeEnd::Finished);
        drop(guard);
        assert_eq!(admit(&streams, 1).unwrap_err(), NotAdmitted::Opened, "the first attempt may come late, on a leg");
        let (mut guard, _) = admit(&streams, 2).unwrap();
        assert!(guard.opened(deadline()));
        guard.ended(&BridgeEnd::Finished);
        drop(guard);
        let state = streams.state();
        assert_eq!((state.open, state.opened.len()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn of_more_streams_than_are_remembered_the_oldest_are_forgotten() {
        let streams = Streams::default();
        let last = u16::try_from(REMEMBERED_STREAMS).unwrap();
        for number in 0..=last {
            let (mut guard, _) = admit(&streams, number).unwrap();
            assert!(guard.opened(deadline()));
        }
        assert_eq!(streams.state().opened.len(), REMEMBERED_STREAMS);
        assert_eq!(admit(&streams, last).unwrap_err(), NotAdmitted::Opened);
        drop(admit(&streams, 0).unwrap());
    }
}
