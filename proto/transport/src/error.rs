//! Why a dial failed or was refused, and how far it had come.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_proto::problem::Problem;

use crate::tls_fault::TlsFault;

/// The addresses that a dial has tried, in that order, and how the attempts ended. The dial bounds their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(Vec<(SocketAddr, Option<io::ErrorKind>)>);

impl Attempts {
    /// Whether no address was tried, because none was known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn include(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|(tried, _)| *tried == address)
    }

    pub(crate) fn begin(&mut self, address: SocketAddr) {
        self.0.push((address, None));
    }

    pub(crate) fn fail(&mut self, failed: SocketAddr, error: io::ErrorKind) {
        if let Some((_, outcome)) = self.0.iter_mut().find(|(address, _)| *address == failed) {
            *outcome = Some(error);
        }
    }
}

impl fmt::Display for Attempts {
    /// A single address alone, because the error next to it says what became of it; several with their outcomes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (address, outcome)) in self.0.iter().enumerate() {
            f.write_str(match number {
                0 => "",
                number if number + 1 == self.0.len() => " and ",
                _ => ", ",
            })?;
            match outcome {
                _ if self.0.len() == 1 => write!(f, "{address}")?,
                Some(kind) => write!(f, "{address} ({kind})")?,
                None => write!(f, "{address} (no answer)")?,
            }
        }
        Ok(())
    }
}

/// Why no TCP connection to a host was opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host name has no addresses, or the resolver failed.
    #[error("the name does not resolve")]
    Resolve(#[source] io::Error),
    /// No address accepted a connection.
    #[error("no connection to {attempts}")]
    Failed {
        /// The addresses.
        attempts: Attempts,
        /// The error that says most about the host, of one of them.
        #[source]
        source: io::Error,
    },
    /// The deadline passed. If there are no attempts, the name was still being resolved.
    #[error("the deadline passed while {}", Step::of(.0))]
    TimedOut(Attempts),
    /// The process has no file descriptors left.
    #[error("this process has no file descriptors left")]
    NoDescriptors,
}

/// The step of a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Resolving the host name.
    Resolve,
    /// Connecting to these addresses.
    Connect(Attempts),
    /// The TLS handshake.
    TlsHandshake,
    /// The HTTP request, until its response.
    Request,
}

impl Step {
    /// The step of a dial that has tried these addresses and is not connected.
    pub(crate) fn of(attempts: &Attempts) -> Self {
        if attempts.is_empty() { Self::Resolve } else { Self::Connect(attempts.clone()) }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve => f.write_str("resolving the name"),
            Self::Connect(attempts) => write!(f, "connecting to {attempts}"),
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
    /// No address of the host accepted a connection.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port, and the addresses that were tried.
        host: String,
        /// The system's error that says most about the host, of one of the addresses.
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

    /// What is wrong with the relay's TLS, if that is why the dial failed and it is known what to do about it.
    pub fn tls_fault(&self) -> Option<TlsFault> {
        if let Self::Tls { source, .. } = self { TlsFault::of(source) } else { None }
    }

    /// Whether the connection to the relay was lost once it was trusted and before the response was there: the request may have arrived. A
    /// connection that is lost earlier is not one of these: there is no sign that a relay listens there.
    pub fn is_lost_exchange(&self) -> bool {
        matches!(self, Self::Http(error) if !error.is_parse() && !error.is_user())
    }
}
