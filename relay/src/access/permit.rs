//! Leave as a value: whoever acts takes one, and only [`crate::access::policy`] makes one, after the decision.
//!
//! A *grant* is something else: what an operator gave somebody for a time. Leave is for one request.

use std::fmt;
use std::net::IpAddr;

use moorline_proto::claims::Action;
use moorline_proto::id::{CallerId, DeviceId, ServiceName};
use moorline_proto::timestamp::Timestamp;

/// The rule that decided, for the audit: which of the token's `access` rules, counted from zero. Printed `access[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(pub(super) usize);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "access[{}]", self.0)
    }
}

/// Leave to open one stream to one service of one device.
#[derive(Debug)]
#[must_use = "leave that nobody uses was decided on for nothing"]
pub struct StreamPermit {
    pub(super) device: DeviceId,
    pub(super) service: ServiceName,
    pub(super) caller: CallerId,
    pub(super) address: IpAddr,
    pub(super) rule: RuleId,
    pub(super) expires_at: Timestamp,
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

    /// Who was allowed.
    pub fn caller(&self) -> &CallerId {
        &self.caller
    }

    /// The caller's network address, as the decision saw it.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What decided.
    pub fn rule(&self) -> RuleId {
        self.rule
    }

    /// When the caller's token is over.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// Leave to do one thing to one device or its streams; without a device, to what the caller may see of all.
#[derive(Debug)]
#[must_use = "leave that nobody uses was decided on for nothing"]
pub struct AdminPermit {
    pub(super) action: Action,
    pub(super) device: Option<DeviceId>,
    pub(super) caller: CallerId,
    pub(super) rule: RuleId,
    pub(super) expires_at: Timestamp,
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

    /// Who was allowed.
    pub fn caller(&self) -> &CallerId {
        &self.caller
    }

    /// What decided.
    pub fn rule(&self) -> RuleId {
        self.rule
    }

    /// When the caller's token is over.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}
