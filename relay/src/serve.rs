//! The running program: opens what a state folder holds, starts the relay, and stops it when it is told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::init::DATABASE_FILE;
use crate::net::tls::{TlsFileError, server_config};
use crate::relay::{Relay, StartError, State};
use crate::store::{SqliteRegistry, StoreError};

/// What shall run.
#[derive(Clone, Debug)]
pub struct Serve {
    /// The state folder.
    pub state: PathBuf,
    /// Instead of the first listener's address.
    pub listen: Option<SocketAddr>,
}

/// Why the relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration does not hold.
    #[error("the relay's configuration could not be used")]
    Config(#[source] ConfigError),
    /// Certificate or key cannot be used.
    #[error("the relay's certificate could not be used")]
    Tls(#[source] TlsFileError),
    /// There is no database, so this is no state folder.
    #[error("{} holds no relay: {DATABASE_FILE} is not there", .0.display())]
    NoRelay(PathBuf),
    /// The database cannot be used.
    #[error("the relay's database could not be used")]
    Store(#[source] StoreError),
    /// The relay did not start.
    #[error("the relay did not start")]
    Start(#[source] StartError),
    /// Signals cannot be waited for.
    #[error("the operating system does not hand out signals")]
    Signals(#[source] std::io::Error),
}

impl ServeError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Config(ConfigError::Read { .. }) | Self::NoRelay(_) => {
                "give --state the folder that `moorline-relay init` made, as the user that owns it"
            }
            Self::Config(ConfigError::Toml { .. } | ConfigError::Value { .. }) => "correct it in relay.toml and start again",
            Self::Tls(_) => "see [tls] in relay.toml: the whole chain in PEM, relay first, and its private key",
            Self::Store(_) => "see that nothing else holds the database, and that its disk has room and may be written by this user",
            Self::Start(StartError::Listen { .. }) => {
                "see what else listens there (`ss -ltnp`); ports under 1024 need CAP_NET_BIND_SERVICE; or give --listen another address"
            }
            Self::Start(StartError::NoCertificate(_)) => "put certificate and key into [tls] of relay.toml",
            Self::Start(StartError::Registry(_)) => "the database opened and then failed: see its disk",
            Self::Signals(_) => "this is a fault of the machine: see its limits",
        }
    }
}

/// Runs a relay until SIGTERM or SIGINT, and then until it has said goodbye, or until the second signal.
///
/// # Errors
/// [`ServeError`], before anything was listened on.
///
/// # Cancel safety
/// Dropping the future ends the relay at once, without goodbyes.
pub async fn serve(options: &Serve, clock: Clock) -> Result<(), ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    let mut config = Config::load(&options.state).map_err(ServeError::Config)?;
    if let (Some(address), Some(first)) = (options.listen, config.listeners.first_mut()) {
        first.address = address;
    }
    raise_descriptors(&config);
    let tls = config.tls.as_ref().map(|files| server_config(&files.certificate, &files.key));
    let tls = tls.transpose().map_err(ServeError::Tls)?;
    let registry = Arc::new(open(&options.state).await?);
    let state = State { registry: Arc::<SqliteRegistry>::clone(&registry), tls, clock };
    let relay = Relay::start(config, state).await.map_err(ServeError::Start)?;

    let name = signals.next().await;
    info!(signal = name, "stopping; a second signal stops at once");
    tokio::select! {
        () = relay.stop() => registry.close().await,
        name = signals.next() => warn!(signal = name, "stopped at once"),
    }
    info!("stopped");
    Ok(())
}

/// Opens the database of a state folder; does not make one where there is none.
async fn open(state: &Path) -> Result<SqliteRegistry, ServeError> {
    let file = state.join(DATABASE_FILE);
    if !file.exists() {
        return Err(ServeError::NoRelay(state.into()));
    }
    SqliteRegistry::open(&file).await.map_err(ServeError::Store)
}

/// Every connection is a descriptor, and the soft limit is 1,024 on most machines.
fn raise_descriptors(config: &Config) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit > config.limits.connections.get() as u64 => info!(limit, "file descriptors"),
        Ok(limit) => warn!(
            limit,
            connections = config.limits.connections,
            "fewer file descriptors than limits.connections: raise them (LimitNOFILE=) or lower the limit, or connections will be dropped"
        ),
        Err(error) => warn!(%error, "the limit of file descriptors could not be raised"),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next one's name. Cancel safe: a signal that was not handed out is handed out next time.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
