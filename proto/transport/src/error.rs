//! Why the relay was not reached, or refused, and how far a dial had come.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_proto::problem::Problem;

/// Where a dial was when it failed or its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking for the addresses of the host's name.
    Resolve,
    /// Connecting by TCP to this address.
    Connect(SocketAddr),
    /// The TLS handshake.
    TlsHandshake,
    /// Waiting for the answer to the HTTP request.
    Request,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve => f.write_str("resolving the relay's name"),
            Self::Connect(address) => write!(f, "connecting to {address}"),
            Self::TlsHandshake => f.write_str("the TLS handshake"),
            Self::Request => f.write_str("waiting for the relay's answer"),
        }
    }
}

/// The relay's answer, where it is a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The body, if it is a problem of the protocol.
    pub problem: Option<Problem>,
    /// Asking again makes sense after this long.
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

/// Why the relay was not reached, or refused.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The deadline passed.
    #[error("no answer in time: the deadline passed while {step}")]
    Deadline {
        /// Where the time went.
        step: Step,
    },
    /// The host's name has no address, or nobody could be asked.
    #[error("the name {host} does not resolve")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No address of the host takes a connection. Tells of the last one.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port, with the address that was tried last.
        host: String,
        /// What the machine says.
        #[source]
        source: io::Error,
    },
    /// This process may open no more connections.
    #[error("no file descriptors are left for this program")]
    NoDescriptors,
    /// The TLS handshake failed: not the relay that is trusted, or no TLS there.
    #[error("no TLS with {host}")]
    Tls {
        /// The host that a certificate was expected for.
        host: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP/1.1.
    #[error("the HTTP exchange with the relay failed")]
    Http(#[source] hyper::Error),
    /// What should be asked is no request: a path or header that cannot be sent.
    #[error("this cannot be asked")]
    Request(#[source] http::Error),
    /// The body of the answer is broken, or larger than is read.
    #[error("the relay's answer is not readable: {0}")]
    Body(String),
    /// The answer was 101, but for something else than was asked for.
    #[error("the relay's upgrade is broken: {0}")]
    Upgrade(&'static str),
    /// The relay refused.
    #[error("refused by the relay: {0}")]
    Refused(Box<Refusal>),
}

impl DialError {
    /// The relay's refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        if let Self::Refused(refusal) = self { Some(refusal) } else { None }
    }
}
