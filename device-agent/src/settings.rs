//! The settings of an agent: the device's identity, its relay, the services that it exposes.

use moorline_proto::control::Service;
use moorline_proto::id::{DeviceId, NameError};
use moorline_proto::join::Join;
use moorline_proto::text::Text;
use tracing::error;

use crate::identity::Identity;
use crate::limits::{IDLE_LEGS, MAX_STREAMS, WARM_LEGS};

/// What an agent needs to know to connect.
#[derive(Debug)]
pub struct Settings {
    /// The relay's address and the CA to trust.
    pub join: Join,
    /// The device's id.
    pub device: DeviceId,
    /// The device's key.
    pub identity: Identity,
    /// The services that the device exposes, as callers see them.
    pub services: Vec<Service>,
    /// Legs may use hosts below this domain besides the relay's own host.
    pub trusted_suffix: Option<String>,
    /// Streams at once, open and undecided. The relay's own limit holds besides: the smaller one counts.
    pub max_streams: u32,
    /// Legs to keep for later streams, at most 64, where the relay knows that. With zero no leg is used again. Taken by the next control channel.
    pub idle_legs: u32,
    /// Idle legs to keep ready, at most `idle_legs`, where the relay knows that: a stream that begins on one opens sooner. Each is a connection. Taken
    /// by the next control channel.
    pub warm_legs: u32,
}

impl Settings {
    /// Settings of a device that exposes no services.
    pub fn new(join: Join, device: DeviceId, identity: Identity) -> Self {
        let (services, trusted_suffix) = (Vec::new(), None);
        Self { join, device, identity, services, trusted_suffix, max_streams: MAX_STREAMS, idle_legs: IDLE_LEGS, warm_legs: WARM_LEGS }
    }

    /// Adds a service with a description for people. An invalid name is logged and left out.
    #[must_use]
    pub fn exposing(mut self, name: &str, description: &str) -> Self {
        match name.parse() {
            Ok(name) => self.services.push(Service { name, description: Some(Text::truncated(description)) }),
            Err(error) => {
                let error: NameError = error;
                error!(%error, "service left out: its name is invalid");
            }
        }
        self
    }
}
