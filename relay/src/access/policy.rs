//! The one decision: who may do what to which device, from where, when. Pure; every request of a caller goes through it.
//!
//! What no rule allows is denied. A caller that may not see a device gets the same answer as for one that does not exist.

use std::net::IpAddr;

use moorline_proto::claims::{AccessRule, Action};
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::problem::ProblemCode;
use moorline_proto::timestamp::Timestamp;

use crate::access::permit::{AdminPermit, Basis, RuleId, StreamPermit};
use crate::access::principal::Caller;

/// What the caller wants to act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The device. `None`: all that the caller may see.
    pub device: Option<&'a DeviceId>,
    /// The service. If there is one, a rule must name it.
    pub service: Option<&'a ServiceName>,
}

impl<'a> Resource<'a> {
    /// All devices that the caller may see.
    pub const ALL: Self = Resource { device: None, service: None };

    /// One device as a whole.
    pub fn device(device: &'a DeviceId) -> Self {
        Resource { device: Some(device), service: None }
    }

    /// One service of a device.
    pub fn service(device: &'a DeviceId, service: &'a ServiceName) -> Self {
        Resource { device: Some(device), service: Some(service) }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow {
        /// The rule that allows it.
        rule: RuleId,
    },
    /// No rule allows it.
    Deny {
        /// Whether the caller may know that the device exists. True if no device was named.
        sees_device: bool,
    },
    /// The token has expired.
    Expired,
}

/// Decides. Nothing but the arguments counts.
///
/// `_address` is an argument because grants may be bound to networks; none of today's rules is.
pub fn decide(caller: &Caller, action: Action, resource: Resource<'_>, _address: IpAddr, now: Timestamp) -> Decision {
    if now >= caller.expires_at {
        return Decision::Expired;
    }
    match caller.access.iter().position(|rule| allows(rule, action, resource)) {
        Some(index) => Decision::Allow { rule: RuleId(index) },
        None => Decision::Deny { sees_device: caller.access.iter().any(|rule| names_device(rule, resource.device)) },
    }
}

fn allows(rule: &AccessRule, action: Action, resource: Resource<'_>) -> bool {
    rule.actions.contains(&action) && names_device(rule, resource.device) && names_service(rule, action, resource.service)
}

fn names_device(rule: &AccessRule, device: Option<&DeviceId>) -> bool {
    device.is_none_or(|device| rule.devices.iter().any(|pattern| pattern.matches(device.as_str())))
}

fn names_service(rule: &AccessRule, action: Action, service: Option<&ServiceName>) -> bool {
    match service {
        Some(service) => rule.services.iter().any(|pattern| pattern.matches(service.as_str())),
        // A stream always has a service: permission that names none would be permission for all of them.
        None => action != Action::StreamOpen,
    }
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The caller may see the device, but not do this.
    #[error("the token does not allow {action} here; ask the relay's operator for one that does")]
    Forbidden {
        /// What it may not do.
        action: Action,
    },
    /// The caller may not know whether the device exists.
    #[error("there is no such device, or the token does not reach it")]
    DeviceUnknown,
    /// The token expired meanwhile.
    #[error("the token has expired")]
    Expired,
}

impl Denied {
    /// The problem code of the answer.
    pub fn problem(&self) -> ProblemCode {
        match self {
            Self::Forbidden { .. } => ProblemCode::Forbidden,
            Self::DeviceUnknown => ProblemCode::DeviceUnknown,
            Self::Expired => ProblemCode::TokenExpired,
        }
    }
}

/// What a decision gives: made here alone.
pub trait Permit: Sized {
    /// Decides whether the caller may act on the resource.
    ///
    /// # Errors
    /// [`Denied`].
    fn decide(caller: &Caller, action: Action, resource: Resource<'_>, address: IpAddr, now: Timestamp) -> Result<Self, Denied>;
}

impl Permit for StreamPermit {
    fn decide(caller: &Caller, action: Action, resource: Resource<'_>, address: IpAddr, now: Timestamp) -> Result<Self, Denied> {
        let rule = rule(caller, action, resource, address, now)?;
        match (action, resource.device, resource.service) {
            (Action::StreamOpen, Some(device), Some(service)) => {
                Ok(Self { device: device.clone(), service: service.clone(), basis: Basis::new(caller, rule, address) })
            }
            _ => Err(Denied::Forbidden { action }),
        }
    }
}

impl Permit for AdminPermit {
    fn decide(caller: &Caller, action: Action, resource: Resource<'_>, address: IpAddr, now: Timestamp) -> Result<Self, Denied> {
        let rule = rule(caller, action, resource, address, now)?;
        Ok(Self { action, device: resource.device.cloned(), basis: Basis::new(caller, rule, address) })
    }
}

fn rule(caller: &Caller, action: Action, resource: Resource<'_>, address: IpAddr, now: Timestamp) -> Result<RuleId, Denied> {
    match decide(caller, action, resource, address, now) {
        Decision::Allow { rule } => Ok(rule),
        Decision::Deny { sees_device: true } => Err(Denied::Forbidden { action }),
        Decision::Deny { sees_device: false } if resource.device.is_none() => Err(Denied::Forbidden { action }),
        Decision::Deny { sees_device: false } => Err(Denied::DeviceUnknown),
        Decision::Expired => Err(Denied::Expired),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use moorline_proto::id::CallerId;
    use moorline_proto::proof::PublicKey;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const KEY: PublicKey = PublicKey::Ed25519([7; 32]);

    fn now() -> Timestamp {
        Timestamp::from_millis(0)
    }

    fn caller(access: &str) -> Caller {
        Caller {
            id: CallerId { issuer: "relay".parse().unwrap(), subject: "alice".parse().unwrap() },
            token_id: Some("7".into()),
            key_id: KEY.thumbprint(),
            access: serde_json::from_str::<Vec<AccessRule>>(access).unwrap().into(),
            expires_at: Timestamp::from_millis(1_000),
        }
    }

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn service(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn stream(caller: &Caller, on: &str, to: &str, at: Timestamp) -> Result<StreamPermit, Denied> {
        StreamPermit::decide(caller, Action::StreamOpen, Resource::service(&device(on), &service(to)), HERE, at)
    }

    fn admin(caller: &Caller, action: Action, resource: Resource<'_>) -> Result<AdminPermit, Denied> {
        AdminPermit::decide(caller, action, resource, HERE, now())
    }

    fn opens(caller: &Caller, on: &str, to: &str) -> Result<RuleId, Denied> {
        stream(caller, on, to, now()).map(|permit| permit.basis().rule.unwrap())
    }

    const LAMPS: &str = r#"[{"actions":["device.read"],"devices":["*"]},
        {"actions":["stream.open"],"devices":["lamp-*"],"services":["ssh"]}]"#;

    #[test]
    fn the_rule_that_allows_is_named() {
        assert_eq!(opens(&caller(LAMPS), "lamp-1", "ssh"), Ok(RuleId(1)));
        let permit = stream(&caller(LAMPS), "lamp-1", "ssh", now()).unwrap();
        let basis = permit.basis();
        assert_eq!((basis.rule.unwrap().to_string(), basis.caller.to_string()), ("access[1]".to_owned(), "relay:alice".to_owned()));
        assert_eq!((permit.device().as_str(), permit.service().as_str(), basis.address), ("lamp-1", "ssh", HERE));
        assert_eq!((basis.token_id.as_deref(), basis.key_id), (Some("7"), KEY.thumbprint()));
    }

    #[test]
    fn requests_that_no_rule_allows_are_denied() {
        let forbidden = |action| Err(Denied::Forbidden { action });
        assert_eq!(opens(&caller(LAMPS), "lamp-1", "http"), forbidden(Action::StreamOpen), "another service");
        assert_eq!(opens(&caller(LAMPS), "door-1", "ssh"), forbidden(Action::StreamOpen), "another device");
        for action in [Action::DeviceWrite, Action::StreamEnd, Action::StreamList] {
            let lamp = device("lamp-1");
            assert_eq!(admin(&caller(LAMPS), action, Resource::device(&lamp)).map(|_| ()), Err(Denied::Forbidden { action }));
            assert_eq!(admin(&caller("[]"), action, Resource::ALL).map(|_| ()), Err(Denied::Forbidden { action }));
        }
    }

    #[test]
    fn a_device_that_the_caller_may_not_see_is_reported_as_unknown() {
        let narrow = caller(r#"[{"actions":["stream.open"],"devices":["lamp-*"],"services":["*"]}]"#);
        assert_eq!(opens(&narrow, "door-1", "ssh"), Err(Denied::DeviceUnknown));
        assert_eq!(opens(&caller("[]"), "door-1", "ssh"), Err(Denied::DeviceUnknown));
        assert_eq!(Denied::DeviceUnknown.problem(), ProblemCode::DeviceUnknown);
        assert_eq!(Denied::Forbidden { action: Action::StreamOpen }.problem(), ProblemCode::Forbidden);
    }

    #[test]
    fn permission_to_open_streams_always_names_the_service() {
        let without = caller(r#"[{"actions":["stream.open"],"devices":["*"]}]"#);
        assert_eq!(opens(&without, "lamp-1", "ssh"), Err(Denied::Forbidden { action: Action::StreamOpen }));
        let lamp = device("lamp-1");
        let all = caller(r#"[{"actions":["stream.open"],"devices":["*"],"services":["*"]}]"#);
        assert_eq!(decide(&all, Action::StreamOpen, Resource::device(&lamp), HERE, now()), Decision::Deny { sees_device: true });
    }

    #[test]
    fn a_rule_about_one_service_does_not_end_streams_of_another() {
        let caller = caller(r#"[{"actions":["stream.end"],"devices":["*"],"services":["ssh"]}]"#);
        let (lamp, ssh, http) = (device("lamp-1"), service("ssh"), service("http"));
        assert!(admin(&caller, Action::StreamEnd, Resource::service(&lamp, &ssh)).is_ok());
        assert!(admin(&caller, Action::StreamEnd, Resource::service(&lamp, &http)).is_err());
    }

    #[test]
    fn all_devices_may_be_listed_by_callers_that_may_see_some() {
        let caller = caller(r#"[{"actions":["device.read"],"devices":["lamp-*"]}]"#);
        let permit = admin(&caller, Action::DeviceRead, Resource::ALL).unwrap();
        assert_eq!((permit.action(), permit.device()), (Action::DeviceRead, None));
        assert!(admin(&caller, Action::DeviceWrite, Resource::ALL).is_err());
    }

    #[test]
    fn an_expired_token_allows_nothing() {
        let caller = caller(LAMPS);
        assert_eq!(decide(&caller, Action::DeviceRead, Resource::ALL, HERE, caller.expires_at), Decision::Expired);
        let late = stream(&caller, "lamp-1", "ssh", caller.expires_at).map(|_| ());
        assert_eq!(late.map_err(|denied| denied.problem()), Err(ProblemCode::TokenExpired));
    }
}
