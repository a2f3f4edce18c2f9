//! The local target of a service: its address, connecting to it, and what a failure means for the caller.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::control::RejectCode;
use moorline_transport::bridge::{Failure, LocalSide};
use moorline_transport::descriptors;
use moorline_transport::tcp::AddressSource;
pub use moorline_transport::tcp::{ConnectError, TcpConnector};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

/// The address of a local service: `host:port`, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP address. The name is resolved for each connection, and its addresses are raced.
    Tcp {
        /// Host name or IP address; IPv6 without brackets.
        host: String,
        /// Port, never 0.
        port: u16,
    },
    /// The absolute path of a Unix stream socket.
    Unix(PathBuf),
}

/// The text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither host:port (such as 127.0.0.1:22 or [::1]:22) nor unix:/path")]
pub struct TargetParseError(String);

impl FromStr for Target {
    type Err = TargetParseError;

    fn from_str(text: &str) -> Result<Self, TargetParseError> {
        let error = || TargetParseError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(error()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().ok().filter(|&port| port > 0).ok_or_else(error)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        if host.is_empty() || (bracketed.is_none() && host.contains(':')) || host.contains(char::is_whitespace) {
            return Err(error());
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a connection to a target failed. The text is for the caller: addresses are private to the device, and only the sources have them.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The host name does not resolve.
    #[error("the target's host name does not resolve")]
    Resolve(#[source] io::Error),
    /// The target did not answer in time.
    #[error("the target did not answer within {limit:?}")]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// What was tried, if the target has an address.
        #[source]
        source: Option<ConnectError>,
    },
    /// No address of the host accepted a connection.
    #[error("connecting to the target failed")]
    Tcp {
        /// The kind of the error that says most about the target.
        kind: io::ErrorKind,
        /// What was tried.
        #[source]
        source: ConnectError,
    },
    /// The Unix socket did not accept a connection.
    #[error("connecting to the target failed")]
    Unix(#[source] io::Error),
    /// The agent has no file descriptors left.
    #[error("the device has no file descriptors left")]
    NoDescriptors,
}

impl TargetError {
    /// The code that the caller gets.
    pub fn code(&self) -> RejectCode {
        let kind = match self {
            Self::Resolve(_) => return RejectCode::TargetUnreachable,
            Self::TimedOut { .. } => return RejectCode::TargetTimeout,
            Self::NoDescriptors => return RejectCode::Internal,
            Self::Tcp { kind, .. } => *kind,
            Self::Unix(error) => error.kind(),
        };
        match kind {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => RejectCode::TargetRefused,
            io::ErrorKind::TimedOut => RejectCode::TargetTimeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NotFound => RejectCode::TargetUnreachable,
            // For instance, permission denied on a socket: a problem of the device.
            _ => RejectCode::Internal,
        }
    }

    fn of_tcp(error: ConnectError, limit: Duration) -> Self {
        match error {
            ConnectError::Resolve(source) => Self::Resolve(source),
            ConnectError::Failed { ref source, .. } => Self::Tcp { kind: source.kind(), source: error },
            ConnectError::TimedOut(_) => Self::TimedOut { limit, source: Some(error) },
            ConnectError::NoDescriptors => Self::NoDescriptors,
        }
    }

    fn of_unix(error: io::Error) -> Self {
        if descriptors::is_shortage(&error) { Self::NoDescriptors } else { Self::Unix(error) }
    }
}

impl Target {
    /// Connects to the target. Fails after `limit`.
    ///
    /// # Errors
    /// [`TargetError`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection, and all attempts.
    pub async fn dial(&self, connector: &TcpConnector, limit: Duration) -> Result<LocalStream, TargetError> {
        let deadline = Instant::now() + limit;
        match self {
            Self::Unix(path) => {
                let connected = timeout_at(deadline, UnixStream::connect(path)).await;
                let connected = connected.map_err(|_| TargetError::TimedOut { limit, source: None })?;
                connected.map(LocalStream::Unix).map_err(TargetError::of_unix)
            }
            // A target may move at any time, for instance a container: what was remembered of its name is no reason not to resolve it.
            Self::Tcp { host, port } => {
                let connected = connector.connect(host, *port, AddressSource::Resolve, deadline).await;
                connected.map(LocalStream::Tcp).map_err(|error| TargetError::of_tcp(error, limit))
            }
        }
    }
}

/// Any byte stream that an embedding program accepts an offer with.
pub trait AnyStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> AnyStream for S {}

/// The local end of a stream.
pub enum LocalStream {
    /// A TCP connection, which can be reset.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// A stream of an embedding program.
    Any(Box<dyn AnyStream>),
}

impl fmt::Debug for LocalStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "LocalStream::Tcp",
            Self::Unix(_) => "LocalStream::Unix",
            Self::Any(_) => "LocalStream::Any",
        })
    }
}

macro_rules! with_io {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream.get_mut() {
            LocalStream::Tcp($io) => $call,
            LocalStream::Unix($io) => $call,
            LocalStream::Any($io) => $call,
        }
    };
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with_io!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        with_io!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_io!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_io!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

impl LocalSide for LocalStream {
    fn reset_on_drop(&self) {
        // Other streams can only be closed.
        if let Self::Tcp(tcp) = self {
            tcp.reset_on_drop();
        }
    }

    fn end_on_drop(&self) {
        if let Self::Tcp(tcp) = self {
            tcp.end_on_drop();
        }
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.unacknowledged(),
            Self::Unix(unix) => unix.unacknowledged(),
            Self::Any(_) => Ok(0),
        }
    }

    fn failure(&self) -> Option<Failure> {
        if let Self::Tcp(tcp) = self { tcp.failure() } else { None }
    }

    fn is_socket(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => true,
            Self::Any(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_displayed_as_it_was_parsed() {
        for text in ["127.0.0.1:22", "[::1]:8080", "localhost:80", "unix:/run/docker.sock"] {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "22", "host", "host:", "host:0", "host:99999", "::1:22", "unix:relative", ":22", "a b:1"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn each_failure_has_its_reject_code() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        let connector = TcpConnector::default();
        let dial = async |text: &str| text.parse::<Target>().unwrap().dial(&connector, Duration::from_secs(5)).await.unwrap_err().code();
        assert_eq!(dial(&closed.to_string()).await, RejectCode::TargetRefused);
        assert_eq!(dial("no-such-host.invalid:1").await, RejectCode::TargetUnreachable);
        assert_eq!(dial("unix:/no/such/socket").await, RejectCode::TargetUnreachable);
    }
}
