//! What the device takes, by its own rules. Pure.

use std::collections::BTreeMap;

use moorline_proto::control::RejectCode;
use moorline_proto::id::ServiceName;

use crate::target::Target;

/// The services of a configuration and where they lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    targets: BTreeMap<ServiceName, Target>,
}

impl Policy {
    /// Exactly these services are taken.
    pub fn new(targets: BTreeMap<ServiceName, Target>) -> Self {
        Self { targets }
    }

    /// Where the service leads.
    ///
    /// # Errors
    /// [`RejectCode::NotExposed`].
    pub fn decide(&self, service: &ServiceName) -> Result<&Target, RejectCode> {
        self.targets.get(service).ok_or(RejectCode::NotExposed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_named_is_exposed() {
        let target: Target = "127.0.0.1:22".parse().unwrap();
        let policy = Policy::new([("ssh".parse().unwrap(), target.clone())].into());
        assert_eq!(policy.decide(&"ssh".parse().unwrap()), Ok(&target));
        assert_eq!(policy.decide(&"http".parse().unwrap()), Err(RejectCode::NotExposed));
    }
}
