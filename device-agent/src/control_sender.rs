//! Sends messages on whichever control channel is open now: an answer need not use the channel that its offer came on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moorline_proto::control::{FromDevice, Reject};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::limits::{DROPPED_LOG_INTERVAL, OUTGOING_QUEUE_RESERVED, SEND_TIMEOUT};

/// The current control channel's queue of outgoing messages. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControlSender(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    sender: Option<mpsc::Sender<FromDevice>>,
    dropped: u64,
    drops_logged_at: Option<Instant>,
}

impl ControlSender {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Directs messages to a newer control channel.
    pub(crate) fn attach(&self, sender: mpsc::Sender<FromDevice>) {
        self.state().sender = Some(sender);
    }

    /// Sends a message. It is dropped if no channel is open, or if the queue stays full for 10 s.
    pub(crate) async fn send(&self, message: impl Into<FromDevice>) {
        let sender = self.state().sender.clone();
        if let Some(sender) = sender {
            timeout(SEND_TIMEOUT, sender.send(message.into())).await.ok();
        }
    }

    /// Sends a message unless the queue is full or no channel is open.
    pub(crate) fn try_send(&self, message: impl Into<FromDevice>) {
        if let Some(sender) = &self.state().sender {
            sender.try_send(message.into()).ok();
        }
    }

    /// Rejects an excess offer if the queue has a place to spare, without waiting: the task that gets the offers also empties the queue.
    /// Otherwise drops the rejection and counts it; the relay then waits until the offer's deadline.
    pub(crate) fn try_reject(&self, reject: Reject) {
        let mut state = self.state();
        let sender = state.sender.as_ref().filter(|sender| sender.capacity() > OUTGOING_QUEUE_RESERVED);
        if sender.is_some_and(|sender| sender.try_send(reject.into()).is_ok()) {
            return;
        }
        state.dropped = state.dropped.saturating_add(1);
        let now = Instant::now();
        if state.drops_logged_at.is_none_or(|logged_at| now.saturating_duration_since(logged_at) >= DROPPED_LOG_INTERVAL) {
            state.drops_logged_at = Some(now);
            warn!(dropped = state.dropped, "the relay offers more streams than the device takes: rejections were dropped");
        }
    }

    /// Rejections that were dropped so far.
    #[cfg(test)]
    pub(crate) fn dropped(&self) -> u64 {
        self.state().dropped
    }
}
