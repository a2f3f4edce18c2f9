//! The one decision: who may do what to which device, from where, when. Pure; every endpoint comes through here.
//!
//! What no rule allows is denied. Who may not see a device hears the same as for one that does not exist.

use std::net::IpAddr;

use moorline_proto::claims::{AccessRule, Action};
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::problem::ProblemCode;
use moorline_proto::timestamp::Timestamp;

use crate::access::permit::{AdminPermit, RuleId, StreamPermit};
use crate::access::token::Caller;

/// What the caller wants to act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct On<'a> {
    /// The device; none where all that the caller may see are meant.
    pub device: Option<&'a DeviceId>,
    /// The service. Where there is one, a rule must name it.
    pub service: Option<&'a ServiceName>,
}

impl<'a> On<'a> {
    /// All devices that the caller may see.
    pub const ALL: Self = On { device: None, service: None };

    /// One device as a whole.
    pub fn device(device: &'a DeviceId) -> Self {
        On { device: Some(device), service: None }
    }

    /// One service of a device.
    pub fn service(device: &'a DeviceId, service: &'a ServiceName) -> Self {
        On { device: Some(device), service: Some(service) }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow {
        /// Because of this rule.
        rule: RuleId,
    },
    /// No: no rule allows it.
    Deny {
        /// Whether the caller may know that the device exists. True where no device was named.
        sees_device: bool,
    },
    /// No: the caller's token is over by now, whatever it allowed.
    Expired,
}

/// Decides. The same question always has the same answer: nothing but the arguments plays a part.
///
/// `_address` is part of the question because tokens and grants may be bound to networks; none of today's rules is.
pub fn decide(caller: &Caller, action: Action, on: On<'_>, _address: IpAddr, now: Timestamp) -> Decision {
    if now >= caller.expires_at {
        return Decision::Expired;
    }
    match caller.access.iter().position(|rule| allows(rule, action, on)) {
        Some(index) => Decision::Allow { rule: RuleId(index) },
        None => Decision::Deny { sees_device: caller.access.iter().any(|rule| names_device(rule, on.device)) },
    }
}

fn allows(rule: &AccessRule, action: Action, on: On<'_>) -> bool {
    rule.actions.contains(&action) && names_device(rule, on.device) && names_service(rule, action, on.service)
}

fn names_device(rule: &AccessRule, device: Option<&DeviceId>) -> bool {
    device.is_none_or(|device| rule.devices.iter().any(|pattern| pattern.matches(device.as_str())))
}

fn names_service(rule: &AccessRule, action: Action, service: Option<&ServiceName>) -> bool {
    match service {
        Some(service) => rule.services.iter().any(|pattern| pattern.matches(service.as_str())),
        // A stream is always to some service: leave to open one without naming it would be leave for every service.
        None => action != Action::StreamOpen,
    }
}

/// Why there is no leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The caller may see the device, but not do this.
    #[error("the token does not allow {action} here; ask the relay's operator for one that does")]
    Forbidden {
        /// What it may not do.
        action: Action,
    },
    /// The caller may not even know whether the device exists.
    #[error("there is no such device, or the token does not reach it")]
    DeviceUnknown,
    /// The token ended while the request was on its way.
    #[error("the token has expired")]
    Expired,
}

impl Denied {
    /// What the caller is told.
    pub fn problem(&self) -> ProblemCode {
        match self {
            Self::Forbidden { .. } => ProblemCode::Forbidden,
            Self::DeviceUnknown => ProblemCode::DeviceUnknown,
            Self::Expired => ProblemCode::TokenExpired,
        }
    }
}

/// Leave to open a stream.
///
/// # Errors
/// [`Denied`].
pub fn open(caller: &Caller, device: &DeviceId, service: &ServiceName, address: IpAddr, now: Timestamp) -> Result<StreamPermit, Denied> {
    let rule = rule(caller, Action::StreamOpen, On::service(device, service), address, now)?;
    Ok(StreamPermit {
        device: device.clone(),
        service: service.clone(),
        caller: caller.id.clone(),
        address,
        rule,
        expires_at: caller.expires_at,
    })
}

/// Leave to act on a device, on its streams, or on all that the caller may see.
///
/// # Errors
/// [`Denied`].
pub fn act(caller: &Caller, action: Action, on: On<'_>, address: IpAddr, now: Timestamp) -> Result<AdminPermit, Denied> {
    let rule = rule(caller, action, on, address, now)?;
    Ok(AdminPermit { action, device: on.device.cloned(), caller: caller.id.clone(), rule, expires_at: caller.expires_at })
}

fn rule(caller: &Caller, action: Action, on: On<'_>, address: IpAddr, now: Timestamp) -> Result<RuleId, Denied> {
    match decide(caller, action, on, address, now) {
        Decision::Allow { rule } => Ok(rule),
        Decision::Deny { sees_device: true } => Err(Denied::Forbidden { action }),
        Decision::Deny { sees_device: false } if on.device.is_none() => Err(Denied::Forbidden { action }),
        Decision::Deny { sees_device: false } => Err(Denied::DeviceUnknown),
        Decision::Expired => Err(Denied::Expired),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use moorline_proto::id::CallerId;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn now() -> Timestamp {
        Timestamp::from_millis(0)
    }

    fn caller(access: &str) -> Caller {
        Caller {
            id: CallerId { issuer: "relay".parse().unwrap(), subject: "alice".parse().unwrap() },
            access: serde_json::from_str(access).unwrap(),
            expires_at: Timestamp::from_millis(1_000),
            token_id: None,
        }
    }

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn service(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn opens(caller: &Caller, on: &str, to: &str) -> Result<RuleId, Denied> {
        open(caller, &device(on), &service(to), HERE, now()).map(|leave| leave.rule())
    }

    const LAMPS: &str = r#"[{"actions":["device.read"],"devices":["*"]},
        {"actions":["stream.open"],"devices":["lamp-*"],"services":["ssh"]}]"#;

    #[test]
    fn the_rule_that_allows_is_named() {
        assert_eq!(opens(&caller(LAMPS), "lamp-1", "ssh"), Ok(RuleId(1)));
        let leave = open(&caller(LAMPS), &device("lamp-1"), &service("ssh"), HERE, now()).unwrap();
        assert_eq!((leave.rule().to_string(), leave.caller().to_string()), ("access[1]".to_owned(), "relay:alice".to_owned()));
        assert_eq!((leave.device().as_str(), leave.service().as_str(), leave.address()), ("lamp-1", "ssh", HERE));
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let forbidden = |action| Err(Denied::Forbidden { action });
        assert_eq!(opens(&caller(LAMPS), "lamp-1", "http"), forbidden(Action::StreamOpen), "another service");
        assert_eq!(opens(&caller(LAMPS), "door-1", "ssh"), forbidden(Action::StreamOpen), "another device");
        for action in [Action::DeviceWrite, Action::StreamEnd, Action::StreamList] {
            let lamp = device("lamp-1");
            assert_eq!(act(&caller(LAMPS), action, On::device(&lamp), HERE, now()).map(|_| ()), Err(Denied::Forbidden { action }));
            assert_eq!(act(&caller("[]"), action, On::ALL, HERE, now()).map(|_| ()), Err(Denied::Forbidden { action }));
        }
    }

    #[test]
    fn who_may_not_see_a_device_hears_that_there_is_none() {
        let narrow = caller(r#"[{"actions":["stream.open"],"devices":["lamp-*"],"services":["*"]}]"#);
        assert_eq!(opens(&narrow, "door-1", "ssh"), Err(Denied::DeviceUnknown));
        assert_eq!(opens(&caller("[]"), "door-1", "ssh"), Err(Denied::DeviceUnknown));
        assert_eq!(Denied::DeviceUnknown.problem(), ProblemCode::DeviceUnknown);
        assert_eq!(Denied::Forbidden { action: Action::StreamOpen }.problem(), ProblemCode::Forbidden);
    }

    #[test]
    fn leave_to_open_streams_always_names_the_service() {
        let without = caller(r#"[{"actions":["stream.open"],"devices":["*"]}]"#);
        assert_eq!(opens(&without, "lamp-1", "ssh"), Err(Denied::Forbidden { action: Action::StreamOpen }));
        let lamp = device("lamp-1");
        let all = caller(r#"[{"actions":["stream.open"],"devices":["*"],"services":["*"]}]"#);
        assert_eq!(decide(&all, Action::StreamOpen, On::device(&lamp), HERE, now()), Decision::Deny { sees_device: true });
    }

    #[test]
    fn a_rule_about_one_service_does_not_end_streams_of_another() {
        let caller = caller(r#"[{"actions":["stream.end"],"devices":["*"],"services":["ssh"]}]"#);
        let (lamp, ssh, http) = (device("lamp-1"), service("ssh"), service("http"));
        assert!(act(&caller, Action::StreamEnd, On::service(&lamp, &ssh), HERE, now()).is_ok());
        assert!(act(&caller, Action::StreamEnd, On::service(&lamp, &http), HERE, now()).is_err());
    }

    #[test]
    fn all_devices_may_be_asked_for_by_who_may_see_some() {
        let caller = caller(r#"[{"actions":["device.read"],"devices":["lamp-*"]}]"#);
        let leave = act(&caller, Action::DeviceRead, On::ALL, HERE, now()).unwrap();
        assert_eq!((leave.action(), leave.device()), (Action::DeviceRead, None));
        assert!(act(&caller, Action::DeviceWrite, On::ALL, HERE, now()).is_err());
    }

    #[test]
    fn a_token_that_is_over_allows_nothing() {
        let caller = caller(LAMPS);
        assert_eq!(decide(&caller, Action::DeviceRead, On::ALL, HERE, caller.expires_at), Decision::Expired);
        let late = open(&caller, &device("lamp-1"), &service("ssh"), HERE, caller.expires_at).map(|_| ());
        assert_eq!(late.map_err(|denied| denied.problem()), Err(ProblemCode::TokenExpired));
    }
}
