//! Changes to an agent while it runs.

use std::fmt;
use std::sync::Arc;

use crate::agent::Inner;
use crate::settings::Settings;

/// Changes an agent while it runs. Clones belong to the same agent.
#[derive(Clone)]
pub struct AgentHandle(Arc<Inner>);

/// Why settings cannot replace those of a running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    /// The device's id differs.
    #[error("a running agent cannot become another device")]
    Device,
    /// The relay's address or CA differs.
    #[error("a running agent cannot move to another relay")]
    Relay,
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe("AgentHandle", f)
    }
}

impl AgentHandle {
    pub(crate) fn new(agent: Arc<Inner>) -> Self {
        Self(agent)
    }

    /// Replaces the settings. The relay is told the new services at once. The limit of streams and the trusted suffix apply to the next
    /// offer, the key and the number of legs kept ready to the next connection.
    ///
    /// # Errors
    /// [`ReplaceError`]; the old settings stay.
    pub fn replace_settings(&self, settings: Settings) -> Result<(), ReplaceError> {
        let current = Arc::clone(&self.0.settings.borrow());
        if settings.device != current.device {
            return Err(ReplaceError::Device);
        }
        if settings.join != current.join {
            return Err(ReplaceError::Relay);
        }
        self.0.settings.send_replace(Arc::new(settings));
        Ok(())
    }

    /// Retires the agent: it rejects further offers as `busy` and never connects again. Its streams go on. The control channel stays open
    /// for 10 s at most, for the answers to earlier offers and until another agent of the device takes over.
    pub fn retire(&self) {
        self.0.retire.cancel();
    }
}

#[cfg(test)]
impl AgentHandle {
    /// Tasks of offers, streams and legs.
    pub(crate) fn tasks(&self) -> usize {
        self.0.tasks.len()
    }

    /// Rejections of excess offers that were dropped so far.
    pub(crate) fn dropped_rejections(&self) -> usize {
        usize::try_from(self.0.control.dropped()).unwrap_or(usize::MAX)
    }
}
