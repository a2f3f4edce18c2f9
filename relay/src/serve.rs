//! The running program: locks the state folder, opens what it holds, starts the relay, and stops it on a signal.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moorline_files::{Link, PrivateFileError, check_private};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::init::DATABASE_FILE;
use crate::net::tls::{TlsFileError, server_config};
use crate::relay::{Relay, StartError, State};
use crate::state_lock::{LockError, StateLock};
use crate::store::{SqliteRegistry, StoreError};
use crate::token::{SIGNING_KEY_FILE, advice_on_private_file};

/// Options of [`serve`].
#[derive(Clone, Debug)]
pub struct Serve {
    /// The state folder.
    pub state: PathBuf,
    /// Overrides the first listener's address.
    pub listen: Option<SocketAddr>,
}

/// Why the relay did not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be used.
    #[error("the relay's configuration could not be used")]
    Config(#[source] ConfigError),
    /// The state folder is not to be had.
    #[error("the state folder could not be locked")]
    Lock(#[source] LockError),
    /// The database or the signing key is open to others.
    #[error("a private file of the relay could not be used")]
    PrivateFile(#[source] PrivateFileError),
    /// Certificate or key cannot be used.
    #[error("the relay's certificate could not be used")]
    Tls(#[source] TlsFileError),
    /// The folder has no database, so it is not a state folder.
    #[error("{} holds no relay: it has no {DATABASE_FILE}", .0.display())]
    NoRelay(PathBuf),
    /// The database cannot be used.
    #[error("the relay's database could not be used")]
    Store(#[source] StoreError),
    /// The relay did not start.
    #[error("the relay did not start")]
    Start(#[source] StartError),
    /// Signal handlers cannot be installed.
    #[error("signal handlers could not be installed")]
    Signals(#[source] std::io::Error),
}

impl ServeError {
    /// What to do about it.
    pub fn advice(&self) -> String {
        let advice = match self {
            Self::Config(ConfigError::Read { .. }) | Self::NoRelay(_) => {
                "give --state the folder that `moorline-relay init` made, as the user that owns it"
            }
            Self::Config(ConfigError::Toml { .. } | ConfigError::Value { .. }) => "correct it in relay.toml and start again",
            Self::Lock(LockError::Held { .. }) => "stop the other relay first, or give --state another folder: two relays cannot share one",
            Self::Lock(LockError::File { .. }) => "run it as the user that owns the state folder, on a disk that supports file locks",
            Self::PrivateFile(error) | Self::Tls(TlsFileError::PrivateKey(error)) => return advice_on_private_file(error),
            Self::Tls(_) => {
                "check [tls] in relay.toml: a PEM file with the whole chain, the relay's certificate first, and its private key"
            }
            Self::Store(_) => {
                "check that no other program has locked the database, that its disk has room, and that this user may write to it"
            }
            Self::Start(StartError::Listen { .. }) => {
                "check what else listens there (`ss -ltnp`); ports under 1024 need CAP_NET_BIND_SERVICE; or give --listen another address"
            }
            Self::Start(StartError::NoCertificate(_)) => "name the certificate and its key in [tls] of relay.toml",
            Self::Start(StartError::Registry(_)) => "the database could be opened but not read: check its disk",
            Self::Signals(_) => "check this user's limits (ulimit -a)",
        };
        advice.to_owned()
    }
}

/// Runs a relay until SIGTERM or SIGINT, and then until its connections are closed, or until the second signal.
///
/// Returns the lock on the state folder, so that it can be held until the runtime has ended.
///
/// # Errors
/// [`ServeError`], before anything was listened on.
///
/// # Cancel safety
/// Dropping the future ends the relay at once, without closing its connections in order.
pub async fn serve(options: &Serve, clock: Clock) -> Result<StateLock, ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    let Running { lock, registry, relay } = Running::start(options, clock).await?;
    let name = signals.next().await;
    info!(signal = name, "stopping; a second signal stops at once");
    tokio::select! {
        () = async { relay.stop().await; registry.close().await } => info!("stopped"),
        name = signals.next() => warn!(signal = name, "stopped at once"),
    }
    Ok(lock)
}

/// A relay that runs, and what it stands on.
struct Running {
    lock: StateLock,
    registry: Arc<SqliteRegistry>,
    relay: Relay,
}

impl Running {
    async fn start(options: &Serve, clock: Clock) -> Result<Self, ServeError> {
        let mut config = Config::load(&options.state).map_err(ServeError::Config)?;
        let lock = StateLock::acquire(&options.state).map_err(ServeError::Lock)?;
        if let (Some(address), Some(first)) = (options.listen, config.listeners.first_mut()) {
            first.address = address;
        }
        raise_descriptors(&config);
        check_signing_key(&options.state)?;
        let tls = config.tls.as_ref().map(|files| server_config(&files.certificate, &files.key));
        let tls = tls.transpose().map_err(ServeError::Tls)?;
        let registry = Arc::new(open(&options.state).await?);
        let state = State { registry: Arc::<SqliteRegistry>::clone(&registry), tls, clock };
        let relay = Relay::start(config, state).await.map_err(ServeError::Start)?;
        Ok(Self { lock, registry, relay })
    }
}

/// The relay needs no signing key to run. But where there is one that others can read, anybody may have made themselves a token.
fn check_signing_key(state: &Path) -> Result<(), ServeError> {
    match check_private(state.join(SIGNING_KEY_FILE), Link::Follow) {
        Err(error) if !error.is_not_found() => Err(ServeError::PrivateFile(error)),
        _ => Ok(()),
    }
}

/// Opens the database of a state folder. Does not create one.
async fn open(state: &Path) -> Result<SqliteRegistry, ServeError> {
    let file = state.join(DATABASE_FILE);
    match check_private(&file, Link::Refuse) {
        Err(error) if error.is_not_found() => Err(ServeError::NoRelay(state.into())),
        Err(error) => Err(ServeError::PrivateFile(error)),
        Ok(()) => SqliteRegistry::open(&file).await.map_err(ServeError::Store),
    }
}

/// Raises the soft limit of file descriptors: it is 1,024 on most machines, and every connection needs one.
fn raise_descriptors(config: &Config) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit > config.limits.connections.get() as u64 => info!(limit, "file descriptors"),
        Ok(limit) => warn!(
            limit,
            connections = config.limits.connections,
            "fewer file descriptors than limits.connections: connections will be refused; raise LimitNOFILE= or lower limits.connections"
        ),
        Err(error) => warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

/// SIGTERM and SIGINT, which stop the relay, and SIGHUP, which by default would end it without a word.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, hup: signal(SignalKind::hangup())? })
    }

    /// The name of the next one that stops the relay. Cancel safe: a signal that was not handed out is handed out next time.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                _ = self.hup.recv() => warn!(signal = "SIGHUP", "reloading is not supported; restart the relay to apply changes"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::init::{Init, init};

    /// A new relay's state folder, and what to serve it with.
    async fn relay(folder: &Path) -> Serve {
        let state = folder.join("relay");
        let options = Init {
            state: state.clone(),
            names: vec!["127.0.0.1".to_owned()],
            listen: "127.0.0.1:443".parse().unwrap(),
            node: "n1".parse().unwrap(),
            issuer: "relay".parse().unwrap(),
            own: None,
            operator_lifetime: Duration::from_secs(60),
        };
        init(&options, &Clock::system()).await.unwrap();
        Serve { state, listen: Some("127.0.0.1:0".parse().unwrap()) }
    }

    #[tokio::test]
    async fn a_state_folder_is_served_by_one_relay_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let options = relay(folder.path()).await;
        let first = Running::start(&options, Clock::system()).await.unwrap();
        let second = Running::start(&options, Clock::system()).await.map(drop).unwrap_err();
        let us = std::process::id();
        assert!(matches!(second, ServeError::Lock(LockError::Held { pid: Some(pid), .. }) if pid == us), "{second:?}");
        assert!(second.advice().contains("stop the other relay"));

        first.relay.stop().await;
        first.registry.close().await;
        let third = Running::start(&options, Clock::system()).await.map(drop);
        assert!(matches!(third, Err(ServeError::Lock(_))), "the lock outlives the relay");
        drop(first.lock);
        Running::start(&options, Clock::system()).await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn private_files_that_others_can_read_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let options = relay(folder.path()).await;
        for file in ["tls.key", "signing.key", "moorline.db"] {
            for mode in [0o604, 0o644, 0o660] {
                fs::set_permissions(options.state.join(file), Permissions::from_mode(mode)).unwrap();
                let error = serve(&options, Clock::system()).await.unwrap_err();
                let refused = match &error {
                    ServeError::PrivateFile(PrivateFileError::Mode { path, mode, .. })
                    | ServeError::Tls(TlsFileError::PrivateKey(PrivateFileError::Mode { path, mode, .. })) => (path.ends_with(file), *mode),
                    other => panic!("{file}: {other:?}"),
                };
                assert_eq!(refused, (true, mode), "{file}");
                assert!(error.advice().starts_with("chmod 600"), "{}", error.advice());
            }
            fs::set_permissions(options.state.join(file), Permissions::from_mode(0o600)).unwrap();
        }
        Running::start(&options, Clock::system()).await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn a_folder_without_a_database_is_no_relay() {
        let folder = tempfile::tempdir().unwrap();
        let options = relay(folder.path()).await;
        fs::remove_file(options.state.join(DATABASE_FILE)).unwrap();
        assert!(matches!(serve(&options, Clock::system()).await, Err(ServeError::NoRelay(_))));
        assert!(!options.state.join(DATABASE_FILE).exists());
    }
}
