//! A permit is a value: whatever opens a stream or changes something takes one, and only [`crate::access::policy`] makes one, after the decision.
//!
//! A *grant* is something else: what an operator gave somebody for a time. A permit is for one request.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use moorline_proto::claims::Action;
use moorline_proto::id::{CallerId, DeviceId, ServiceName};
use moorline_proto::proof::Thumbprint;
use moorline_proto::timestamp::Timestamp;

use crate::access::principal::Caller;

/// The rule that decided, for the record: an index into the token's `access`. Printed `access[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(pub(super) usize);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "access[{}]", self.0)
    }
}

/// What a permit stands on: who was allowed, by which token and rule, from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// Who was allowed.
    pub caller: CallerId,
    /// The token's `jti`.
    pub token_id: Option<Arc<str>>,
    /// The key that signed the token.
    pub key_id: Thumbprint,
    /// What allowed it; nothing where it was denied.
    pub rule: Option<RuleId>,
    /// The caller's network address, as the decision saw it.
    pub address: IpAddr,
    /// When the token ends.
    pub expires_at: Timestamp,
}

impl Basis {
    pub(super) fn new(caller: &Caller, rule: RuleId, address: IpAddr) -> Self {
        Self { rule: Some(rule), ..Self::denied(caller, address) }
    }

    /// Of a request that no rule allows, for its record.
    pub fn denied(caller: &Caller, address: IpAddr) -> Self {
        Self {
            caller: caller.id.clone(),
            token_id: caller.token_id.clone(),
            key_id: caller.key_id,
            rule: None,
            address,
            expires_at: caller.expires_at,
        }
    }
}

/// Permission to open one stream to one service of one device.
#[derive(Debug)]
#[must_use = "a permit that nobody uses was decided on for nothing"]
pub struct StreamPermit {
    pub(super) device: DeviceId,
    pub(super) service: ServiceName,
    pub(super) basis: Basis,
}

impl StreamPermit {
    /// The device that may be asked.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The service that may be asked for.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// What the permit stands on.
    pub fn basis(&self) -> &Basis {
        &self.basis
    }
}

/// Permission to do one thing to one device or its streams; without a device, to see what the caller may see of all.
#[derive(Debug)]
#[must_use = "a permit that nobody uses was decided on for nothing"]
pub struct AdminPermit {
    pub(super) action: Action,
    pub(super) device: Option<DeviceId>,
    pub(super) basis: Basis,
}

impl AdminPermit {
    /// What may be done.
    pub fn action(&self) -> Action {
        self.action
    }

    /// To which device; to all that the caller may see, where there is none.
    pub fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref()
    }

    /// What the permit stands on.
    pub fn basis(&self) -> &Basis {
        &self.basis
    }
}
