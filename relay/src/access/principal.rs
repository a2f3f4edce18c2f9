//! Who somebody proved to be, and by what: the token or the key that a stream or a channel stands on.

use std::net::IpAddr;
use std::sync::Arc;

use moorline_proto::claims::{AccessRule, Action, Pattern};
use moorline_proto::id::{CallerId, DeviceId, Instance};
use moorline_proto::proof::Thumbprint;
use moorline_proto::timestamp::Timestamp;

/// A caller whose token was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Issuer and subject.
    pub id: CallerId,
    /// The token's `jti`, if it has one.
    pub token_id: Option<Arc<str>>,
    /// The key that signed the token.
    pub key_id: Thumbprint,
    /// What the token allows; nothing else is allowed.
    pub access: Arc<[AccessRule]>,
    /// Until when the relay takes the token: its `exp` and the leeway.
    pub expires_at: Timestamp,
}

impl Caller {
    /// The devices on which the token allows an action.
    pub fn devices_for(&self, action: Action) -> Vec<Pattern> {
        let rules = self.access.iter().filter(|rule| rule.actions.contains(&action));
        rules.flat_map(|rule| rule.devices.iter().cloned()).collect()
    }
}

/// A caller that may ask again, without another request: who, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskingCaller {
    /// Who.
    pub caller: Caller,
    /// Its network address.
    pub address: IpAddr,
}

/// A device that proved to have one of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePrincipal {
    /// The device.
    pub device: DeviceId,
    /// Which start of its agent this is.
    pub instance: Instance,
    /// The key of the proof.
    pub key_id: Thumbprint,
}
