//! The local target of a service: its address, connecting to it, and what a failure means for the caller.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::control::RejectCode;
use moorline_transport::bridge::LocalSide;
use moorline_transport::descriptors;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::limits::RESOLVER_CALLS;

/// The address of a local service: `host:port`, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP address. The name is resolved for each connection.
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

/// Why a connection to a target failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The host name does not resolve.
    #[error("the target's host name does not resolve")]
    Resolve(#[source] io::Error),
    /// The target did not answer in time.
    #[error("the target did not answer within {0:?}")]
    TimedOut(Duration),
    /// The connection failed.
    #[error("connecting to the target failed")]
    Connect(#[source] io::Error),
    /// The agent has no file descriptors left.
    #[error("the device has no file descriptors left")]
    NoDescriptors,
}

impl TargetError {
    /// The code that the caller gets.
    pub fn code(&self) -> RejectCode {
        match self {
            Self::Resolve(_) => RejectCode::TargetUnreachable,
            Self::TimedOut(_) => RejectCode::TargetTimeout,
            Self::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => RejectCode::TargetRefused,
                io::ErrorKind::TimedOut => RejectCode::TargetTimeout,
                io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable
                | io::ErrorKind::NotFound => RejectCode::TargetUnreachable,
                // For instance, permission denied on a socket: a problem of the device.
                _ => RejectCode::Internal,
            },
            Self::NoDescriptors => RejectCode::Internal,
        }
    }
}

impl Target {
    /// Connects to the target. Fails after `limit`.
    ///
    /// # Errors
    /// [`TargetError`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn dial(&self, resolver: &Resolver, limit: Duration) -> Result<LocalStream, TargetError> {
        let connected = timeout(limit, self.connect(resolver)).await.map_err(|_| TargetError::TimedOut(limit))?;
        connected.map_err(|error| match error {
            TargetError::Connect(error) if descriptors::is_shortage(&error) => TargetError::NoDescriptors,
            TargetError::Resolve(error) if descriptors::is_shortage_of_resolver(&error) => TargetError::NoDescriptors,
            error => error,
        })
    }

    async fn connect(&self, resolver: &Resolver) -> Result<LocalStream, TargetError> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).await.map(LocalStream::Unix).map_err(TargetError::Connect),
            Self::Tcp { host, port } => {
                let addresses = resolver.resolve(host, *port).await.map_err(TargetError::Resolve)?;
                let mut last = TargetError::Resolve(io::ErrorKind::NotFound.into());
                for address in addresses {
                    match TcpStream::connect(address).await {
                        Ok(tcp) => {
                            if let Err(error) = tcp.set_nodelay(true) {
                                tracing::debug!(%error, "setting TCP_NODELAY failed");
                            }
                            return Ok(LocalStream::Tcp(tcp));
                        }
                        Err(error) => last = TargetError::Connect(error),
                    }
                }
                Err(last)
            }
        }
    }
}

/// The system's resolver, with a bounded number of calls at once. Clones share the bound.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Semaphore>);

impl Default for Resolver {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(RESOLVER_CALLS)))
    }
}

impl Resolver {
    /// Returns the addresses of a host; those of an IP address without asking the system.
    ///
    /// # Cancel safety
    /// A call that has begun goes on in its thread, and counts until it returns.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let host = host.to_owned();
        self.call(move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect)).await
    }

    async fn call<T: Send + 'static>(&self, call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let called = spawn_blocking(move || {
            let _permit = permit;
            call()
        });
        called.await.map_err(io::Error::other)?
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
        let resolver = Resolver::default();
        let dial = async |text: &str| text.parse::<Target>().unwrap().dial(&resolver, Duration::from_secs(5)).await.unwrap_err().code();
        assert_eq!(dial(&closed.to_string()).await, RejectCode::TargetRefused);
        assert_eq!(dial("no-such-host.invalid:1").await, RejectCode::TargetUnreachable);
        assert_eq!(dial("unix:/no/such/socket").await, RejectCode::TargetUnreachable);
    }

    #[tokio::test]
    async fn abandoned_resolver_calls_still_count() {
        let resolver = Resolver::default();
        let mut stuck = Vec::new();
        for _ in 0..RESOLVER_CALLS {
            let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
            let (begun, begins) = tokio::sync::oneshot::channel();
            let call = resolver.call(move || {
                begun.send(()).ok();
                released.recv().ok();
                Ok(())
            });
            tokio::select! {
                biased;
                _ = call => panic!("it hangs"),
                begins = begins => begins.unwrap(),
            }
            stuck.push(release);
        }
        assert_eq!(resolver.0.available_permits(), 0, "the offers have ended, their calls have not");
        drop(stuck);
        resolver.resolve("localhost", 1).await.unwrap();
        assert_eq!(resolver.resolve("::1", 22).await.unwrap(), ["[::1]:22".parse().unwrap()]);
    }
}
