//! What ends streams and channels from outside, as values that only the right cause can make: an operator's permit, a lost registration, a clock.

use moorline_proto::claims::Action;
use moorline_proto::close::CloseReason;
use moorline_proto::proof::Thumbprint;

use crate::access::permit::AdminPermit;
use crate::access::principal::DevicePrincipal;
use crate::store::DeviceRecord;

/// A device, or one of its keys, lost its registration. Ends channels and streams that stand on it.
#[derive(Clone, Copy, Debug)]
pub struct Revocation(());

impl Revocation {
    /// By an operator who may change the device.
    pub fn by(permit: &AdminPermit) -> Option<Self> {
        (permit.action() == Action::DeviceWrite).then_some(Self(()))
    }

    /// Of a device whose registration no longer holds: its record is gone, or no longer has the key that it proved to have.
    pub fn of(principal: &DevicePrincipal, record: Option<&DeviceRecord>) -> Option<Self> {
        let holds = record.is_some_and(|record| has_key(record, principal.key_id));
        (!holds).then_some(Self(()))
    }
}

fn has_key(record: &DeviceRecord, kid: Thumbprint) -> bool {
    record.keys.iter().any(|key| key.kid == kid)
}

/// Why a stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut(CloseReason);

impl Cut {
    /// An operator ends it: `killed`. Nothing without the permission to.
    pub fn killed(permit: &AdminPermit) -> Option<Self> {
        (permit.action() == Action::StreamEnd).then_some(Self(CloseReason::Killed))
    }

    /// Its device lost its registration: `revoked`.
    pub fn revoked(_by: Revocation) -> Self {
        Self(CloseReason::Revoked)
    }

    /// The close code of it.
    pub fn reason(self) -> CloseReason {
        self.0
    }
}
