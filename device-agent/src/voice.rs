//! Where answers are said: on the control channel that is up now, whichever one the question came on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moorline_proto::control::FromDevice;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// An answer that cannot be said in this time is dropped: the relay has its deadline.
const SAY_WITHIN: Duration = Duration::from_secs(10);

/// Where answers are said: on the control channel that is up now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Voice(Arc<Mutex<Option<mpsc::Sender<FromDevice>>>>);

impl Voice {
    /// A newer channel is up.
    pub(crate) fn is_now(&self, voice: mpsc::Sender<FromDevice>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(voice);
    }

    /// Says something if there is room for it.
    pub(crate) fn say_now(&self, message: impl Into<FromDevice>) {
        if let Some(voice) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            voice.try_send(message.into()).ok();
        }
    }

    /// Says something. Where no channel is up, nobody waits for it.
    pub(crate) async fn say(&self, message: impl Into<FromDevice>) {
        let voice = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(voice) = voice {
            timeout(SAY_WITHIN, voice.send(message.into())).await.ok();
        }
    }
}
