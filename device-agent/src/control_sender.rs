//! Sends messages on whichever control channel is open now: an answer need not use the channel that its offer came on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moorline_proto::control::FromDevice;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A message that waits this long for its place in the queue is dropped: the relay has a deadline of its own.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The current control channel's queue of outgoing messages. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControlSender(Arc<Mutex<Option<mpsc::Sender<FromDevice>>>>);

impl ControlSender {
    /// Directs messages to a newer control channel.
    pub(crate) fn attach(&self, sender: mpsc::Sender<FromDevice>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    /// Sends a message unless the queue is full.
    pub(crate) fn try_send(&self, message: impl Into<FromDevice>) {
        if let Some(sender) = self.current() {
            sender.try_send(message.into()).ok();
        }
    }

    /// Sends a message. It is dropped if no channel is open, or if the queue stays full for 10 s.
    pub(crate) async fn send(&self, message: impl Into<FromDevice>) {
        if let Some(sender) = self.current() {
            timeout(SEND_TIMEOUT, sender.send(message.into())).await.ok();
        }
    }

    fn current(&self) -> Option<mpsc::Sender<FromDevice>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
