//! What an agent is told about itself: who the device is, where its relay is, what it exposes.

use moorline_proto::control::Service;
use moorline_proto::id::{DeviceId, NameError};
use moorline_proto::join::Join;
use moorline_proto::text::Text;
use tracing::error;

use crate::identity::Identity;

/// Who the device is and where its relay is.
#[derive(Debug)]
pub struct Settings {
    /// The relay, and whom to trust there.
    pub join: Join,
    /// The device's name.
    pub device: DeviceId,
    /// Its key.
    pub identity: Identity,
    /// What it exposes, as callers see it.
    pub services: Vec<Service>,
    /// Besides the host that is dialled, legs may lead to hosts below this domain.
    pub trusted_suffix: Option<String>,
}

impl Settings {
    /// A device that exposes nothing yet.
    pub fn new(join: Join, device: DeviceId, identity: Identity) -> Self {
        Self { join, device, identity, services: Vec::new(), trusted_suffix: None }
    }

    /// Exposes a service by a name that is a good one, with words for people. A name that is none is left out and logged.
    #[must_use]
    pub fn exposing(mut self, name: &str, description: &str) -> Self {
        match name.parse() {
            Ok(name) => self.services.push(Service { name, description: Some(Text::truncated(description)) }),
            Err(error) => {
                let error: NameError = error;
                error!(%error, "a service is not exposed");
            }
        }
        self
    }
}
