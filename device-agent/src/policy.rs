//! Which services the device offers, by its own configuration.

use std::collections::BTreeMap;

use moorline_proto::control::RejectCode;
use moorline_proto::id::ServiceName;

use crate::target::{Target, TcpConnector};

/// The configured services and their targets. Everything else is rejected.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    targets: BTreeMap<ServiceName, Target>,
    connector: TcpConnector,
}

impl Policy {
    /// A policy that accepts exactly these services.
    pub fn new(targets: BTreeMap<ServiceName, Target>) -> Self {
        Self { targets, connector: TcpConnector::default() }
    }

    /// What connects to the targets.
    pub(crate) fn connector(&self) -> &TcpConnector {
        &self.connector
    }

    /// Returns the target of a service. Pure.
    ///
    /// # Errors
    /// [`RejectCode::NotExposed`] for a service that is not configured.
    pub fn decide(&self, service: &ServiceName) -> Result<&Target, RejectCode> {
        self.targets.get(service).ok_or(RejectCode::NotExposed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configured_services_are_exposed() {
        let target: Target = "127.0.0.1:22".parse().unwrap();
        let policy = Policy::new([("ssh".parse().unwrap(), target.clone())].into());
        assert_eq!(policy.decide(&"ssh".parse().unwrap()), Ok(&target));
        assert_eq!(policy.decide(&"http".parse().unwrap()), Err(RejectCode::NotExposed));
    }
}
