//! What is wrong with a relay's TLS, where that says what to do about it.

use std::io;

use moorline_proto::timestamp::Timestamp;
use rustls::{CertificateError, Error, InvalidMessage};

/// What is wrong with a relay's TLS. Times are whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate begins later than this machine's clock: the clock is behind.
    NotYetValid {
        /// This machine's clock.
        clock: Timestamp,
        /// When the certificate begins.
        not_before: Timestamp,
    },
    /// The certificate has ended by this machine's clock, which may be ahead.
    Expired {
        /// This machine's clock.
        clock: Timestamp,
        /// When the certificate ended.
        not_after: Timestamp,
    },
    /// The certificate was issued by nobody who is trusted.
    UnknownIssuer,
    /// The certificate is for other names.
    OtherName,
    /// The peer does not speak TLS.
    NoTls,
}

impl TlsFault {
    /// What to do next.
    pub fn advice(&self) -> String {
        match self {
            Self::NotYetValid { clock, not_before } => {
                format!("set this machine's clock: it says {clock}, and the relay's certificate begins at {not_before}")
            }
            Self::Expired { clock, not_after } => format!(
                "set this machine's clock if it is not {clock}; otherwise the relay's certificate has ended at {not_after}, and its operator has to renew it"
            ),
            Self::UnknownIssuer => {
                "use the join string that `moorline-relay join` prints now; if it is the same, another server answers in the relay's place"
                    .to_owned()
            }
            Self::OtherName => "use a join string with one of the certificate's names: `moorline-relay join` prints one".to_owned(),
            Self::NoTls => "check the port in the join string: what answers there does not speak TLS".to_owned(),
        }
    }

    /// The fault in an error of a TLS handshake, if it is one of these.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(fault) => Self::of_certificate(fault),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(Self::NoTls),
            _ => None,
        }
    }

    fn of_certificate(fault: &CertificateError) -> Option<Self> {
        let seconds = |time: u64| Timestamp::from_millis(time.saturating_mul(1_000));
        match fault {
            CertificateError::NotValidYetContext { time, not_before } => {
                Some(Self::NotYetValid { clock: seconds(time.as_secs()), not_before: seconds(not_before.as_secs()) })
            }
            CertificateError::ExpiredContext { time, not_after } => {
                Some(Self::Expired { clock: seconds(time.as_secs()), not_after: seconds(not_after.as_secs()) })
            }
            // Another relay's own CA has the same subject, but not the same key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(Self::UnknownIssuer),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Some(Self::OtherName),
            _ => None,
        }
    }
}
