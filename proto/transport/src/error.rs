//! Why a dial failed or was refused, and how far it had come.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_proto::problem::Problem;

/// The step of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Resolving the host name.
    Resolve,
    /// Connecting to this address.
    Connect(SocketAddr),
    /// The TLS handshake.
    TlsHandshake,
    /// The HTTP request, until its response.
    Request,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve => f.write_str("resolving the relay's name"),
            Self::Connect(address) => write!(f, "connecting to {address}"),
            Self::TlsHandshake => f.write_str("performing the TLS handshake"),
            Self::Request => f.write_str("waiting for the relay's response"),
        }
    }
}

/// A response of the relay that is a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The body, if it is one of the protocol's problems.
    pub problem: Option<Problem>,
    /// A retry makes sense after this long: `Retry-After`, or the problem's `retry_after_s`; one day at most.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Some(problem) => write!(f, "{} {}: {}", self.status, problem.code, problem.detail),
            None => write!(f, "HTTP status {}", self.status),
        }
    }
}

/// Why a dial failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The deadline passed.
    #[error("no response in time: the deadline passed while {step}")]
    Deadline {
        /// The step that was under way.
        step: Step,
    },
    /// The host name has no addresses, or the resolver failed.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The host name.
        host: String,
        /// The resolver's error.
        #[source]
        source: io::Error,
    },
    /// No address of the host accepted a connection. Describes the last one.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port, and the last address tried.
        host: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process has no file descriptors left.
    #[error("this process has no file descriptors left")]
    NoDescriptors,
    /// The TLS handshake failed: the peer is not the trusted relay, or does not speak TLS.
    #[error("TLS handshake with {host} failed")]
    Tls {
        /// The host that the certificate must be valid for.
        host: String,
        /// The TLS error.
        #[source]
        source: io::Error,
    },
    /// The connection failed, or the response is not HTTP/1.1.
    #[error("the HTTP exchange with the relay failed")]
    Http(#[source] hyper::Error),
    /// The path or a header is not valid in a request.
    #[error("the request is not valid HTTP")]
    Request(#[source] http::Error),
    /// The response's body could not be read, is too large, or is not what was expected.
    #[error("cannot read the relay's response: {0}")]
    Body(String),
    /// The 101 is not for the upgrade that was requested.
    #[error("the relay's upgrade is invalid: {0}")]
    Upgrade(&'static str),
    /// The relay refused.
    #[error("refused by the relay: {0}")]
    Refused(Box<Refusal>),
}

impl DialError {
    /// The relay's refusal, if this is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        if let Self::Refused(refusal) = self { Some(refusal) } else { None }
    }

    /// Whether the connection to the relay was lost once it was trusted and before the response was there: the request may have arrived. A
    /// connection that is lost earlier is not one of these: there is no sign that a relay listens there.
    pub fn is_lost_exchange(&self) -> bool {
        matches!(self, Self::Http(error) if !error.is_parse() && !error.is_user())
    }
}
