//! Where answers are said: on the control channel that is up now, whichever one the question came on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moorline_proto::control::FromDevice;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// An answer that cannot be said in this time is dropped: the relay has its deadline.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Where answers are said: on the control channel that is up now.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControlSender(Arc<Mutex<Option<mpsc::Sender<FromDevice>>>>);

impl ControlSender {
    /// A newer channel is up.
    pub(crate) fn attach(&self, sender: mpsc::Sender<FromDevice>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    /// Says something if there is room for it.
    pub(crate) fn try_send(&self, message: impl Into<FromDevice>) {
        if let Some(sender) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            sender.try_send(message.into()).ok();
        }
    }

    /// Says something. Where no channel is up, nobody waits for it.
    pub(crate) async fn send(&self, message: impl Into<FromDevice>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sender) = sender {
            timeout(SEND_TIMEOUT, sender.send(message.into())).await.ok();
        }
    }
}
