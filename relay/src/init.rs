//! Creates a relay's state folder: configuration, CA and certificate, signing key, database; all of it or nothing.
//!
//! ```text
//!   DIR/                0700
//!   ├── relay.toml      the configuration
//!   ├── ca.pem          the relay's own CA, which the join string carries too  ┐
//!   ├── ca.key    0600  its key, to issue another certificate                  │ not created where the operator
//!   ├── tls.pem         the relay's certificate                                │ brings a certificate
//!   ├── tls.key   0600  its key                                                ┘
//!   ├── signing.key 0600  signs callers' tokens
//!   ├── moorline.db 0600  devices, their public keys, the callers' public keys
//!   └── lock      0600  created by `serve`: see [`crate::state_lock`]
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use moorline_files::{CreateError, create};
use moorline_proto::id::{Issuer, NodeId};
use moorline_proto::join::{Join, RelayUrlError};
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;

use crate::access::mint::{SigningKey, SigningKeyError};
use crate::clock::Clock;
use crate::config::check::{FILE_NAME, name};
use crate::config::file::{File, NewRelay, shipped};
use crate::config::{Config, ConfigError, TlsFiles};
use crate::join_string::{CA_FILE, address};
use crate::net::tls::{TlsFileError, server_config};
use crate::pki;
use crate::store::{CallerKey, Registry, SqliteRegistry, StoreError};
use crate::token::{SIGNING_KEY_FILE, TokenError, TokenRequest, advice_on_private_file, sign};

/// Name of the database in a state folder.
pub const DATABASE_FILE: &str = "moorline.db";
const CA_KEY_FILE: &str = "ca.key";
const TLS_FILE: &str = "tls.pem";
const TLS_KEY_FILE: &str = "tls.key";

/// Options of [`init`].
#[derive(Clone, Debug)]
pub struct Init {
    /// The state folder.
    pub state: PathBuf,
    /// Host names and addresses that devices and callers dial; the join string has the first.
    pub names: Vec<String>,
    /// Address to listen on; the join string has the port.
    pub listen: SocketAddr,
    /// Its name among nodes.
    pub node: NodeId,
    /// Short name of its own issuer of tokens.
    pub issuer: Issuer,
    /// The operator's own certificate and key, of a CA that machines already trust. They are not copied.
    pub own: Option<TlsFiles>,
    /// Lifetime of the operator's first token.
    pub operator_lifetime: Duration,
}

/// What the operator needs to know of the new relay.
#[derive(Debug)]
pub struct CreatedRelay {
    /// The join string for devices and callers. Has no CA where the operator brought a certificate.
    pub join: Join,
    /// The operator's token, which allows everything.
    pub token: Secret,
    /// When the token expires.
    pub expires_at: Timestamp,
    /// The CA's certificate, where one was created.
    pub ca_file: Option<PathBuf>,
}

/// Why no relay was created. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The folder holds a relay.
    #[error("{} already holds a relay: it has {found}", state.display())]
    AlreadyExists {
        /// The folder.
        state: PathBuf,
        /// The file that shows it.
        found: &'static str,
    },
    /// The folder is not empty, and group or others have access to it.
    #[error("{} is not empty, and is open to other users (mode {mode:04o})", state.display())]
    Exposed {
        /// The folder.
        state: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not the name of a host.
    #[error("{0:?} is neither a host name nor an IP address")]
    Name(String),
    /// Name and port do not make an address that can be dialled.
    #[error("devices cannot dial this relay")]
    Address(#[source] RelayUrlError),
    /// A file could not be created.
    #[error("the state folder could not be filled")]
    File(#[source] CreateError),
    /// The folder cannot be created or used, or a path cannot be resolved.
    #[error("{} cannot be used", file.display())]
    Folder {
        /// It.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate could not be issued.
    #[error("the certificate could not be issued")]
    Certificate(#[source] rcgen::Error),
    /// The certificate cannot be used.
    #[error("the certificate cannot be used")]
    Tls(#[source] TlsFileError),
    /// The new configuration is not valid.
    #[error("the new configuration is not valid")]
    Config(#[source] ConfigError),
    /// The signing key could not be generated.
    #[error("the signing key could not be generated")]
    SigningKey(#[source] SigningKeyError),
    /// The operator's token could not be issued.
    #[error("the operator's token could not be issued")]
    Token(#[source] TokenError),
    /// The database could not be created.
    #[error("the database could not be created")]
    Store(#[source] StoreError),
}

impl InitError {
    /// What to do about it.
    pub fn advice(&self) -> String {
        let advice = match self {
            Self::AlreadyExists { .. } => {
                "start it with `moorline-relay serve`, or give --state another folder; nothing is ever overwritten"
            }
            Self::Exposed { .. } => "give --state an empty folder, or one that does not exist yet: it will hold private keys",
            Self::Name(_) => "give --name what devices will dial, without scheme and port: relay.example.com, 192.0.2.1",
            Self::Address(_) => "give --listen a port from 1 to 65535: the join string tells it to devices and callers",
            Self::File(_) | Self::Folder { .. } | Self::Store(_) => {
                "give --state a folder that this user may write to, on a disk with free space"
            }
            Self::Certificate(_) => "check the names: each must be able to stand in a certificate",
            Self::Tls(TlsFileError::PrivateKey(error)) => return advice_on_private_file(error),
            Self::Tls(_) => "give --certificate a PEM file with the whole chain, relay first, and --key its private key in PEM",
            Self::Token(error) => return error.advice(),
            Self::Config(_) | Self::SigningKey(_) => "this is a bug: please report it",
        };
        advice.to_owned()
    }
}

/// Creates a relay's state folder.
///
/// # Errors
/// [`InitError`]. Whatever was written is removed again.
///
/// # Cancel safety
/// Dropping the future removes whatever was written.
pub async fn init(options: &Init, clock: &Clock) -> Result<CreatedRelay, InitError> {
    let now = clock.now();
    let names = checked(&options.names)?;
    let url = address(&names, options.listen.port()).map_err(InitError::Address)?;
    let mut folder = Unfinished::begin(&options.state)?;

    let own = options.own.as_ref().map(absolute).transpose()?;
    let ca = if own.is_some() { None } else { Some(write_pki(&mut folder, &names, now)?) };
    let config = write_config(&mut folder, options, &names, own.as_ref())?;
    if let Some(files) = &config.tls {
        server_config(&files.certificate, &files.key).map_err(InitError::Tls)?;
    }

    let key = SigningKey::generate().map_err(InitError::SigningKey)?;
    let pem = key.to_pem().map_err(InitError::SigningKey)?;
    folder.write(SIGNING_KEY_FILE, pem.reveal(), 0o600)?; // to the one file that holds it
    let operator = TokenRequest::operator(options.operator_lifetime);
    let token = sign(&key, &config.own_iss(), &names, &operator, now);
    let issued = token.map_err(|error| InitError::Token(error.with_file(folder.path(SIGNING_KEY_FILE))))?;
    fill_database(&mut folder, &CallerKey::new(config.own_iss(), config.issuer, key.public().clone())).await?;

    let ca_file = ca.is_some().then(|| folder.path(CA_FILE));
    folder.keep();
    Ok(CreatedRelay { join: Join { url, ca }, token: issued.token, expires_at: issued.expires_at, ca_file })
}

/// The names as they stand in tokens and proofs, each once.
fn checked(written: &[String]) -> Result<Vec<String>, InitError> {
    let mut names = Vec::new();
    for text in written {
        let name = name(text).ok_or_else(|| InitError::Name(text.clone()))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The operator's own files by absolute paths, since the relay may be started in another folder. Symbolic links are kept: certificate
/// managers point them at the current files.
fn absolute(own: &TlsFiles) -> Result<TlsFiles, InitError> {
    let absolute = |file: &PathBuf| path::absolute(file).map_err(|source| InitError::Folder { file: file.clone(), source });
    // Checked before they are resolved, so that the error has the path as the operator wrote it.
    server_config(&own.certificate, &own.key).map_err(InitError::Tls)?;
    Ok(TlsFiles { certificate: absolute(&own.certificate)?, key: absolute(&own.key)? })
}

fn write_pki(folder: &mut Unfinished, names: &[String], now: Timestamp) -> Result<Vec<u8>, InitError> {
    let pki = pki::make(names, now).map_err(InitError::Certificate)?;
    folder.write(CA_FILE, &pki.ca, 0o644)?;
    folder.write(CA_KEY_FILE, pki.ca_key.reveal(), 0o600)?; // to the one file that holds it
    folder.write(TLS_FILE, &pki.certificate, 0o644)?;
    folder.write(TLS_KEY_FILE, pki.key.reveal(), 0o600)?; // to the one file that holds it
    Ok(pki.ca_der)
}

fn write_config(folder: &mut Unfinished, options: &Init, names: &[String], own: Option<&TlsFiles>) -> Result<Config, InitError> {
    let text = shipped(&NewRelay {
        node: options.node.as_str(),
        issuer: options.issuer.as_str(),
        names,
        listen: &options.listen.to_string(),
        tls: own.map(|own| (own.certificate.as_path(), own.key.as_path())),
    });
    let file = folder.path(FILE_NAME);
    let written = File::from_toml(&text);
    let written = written.map_err(|source| InitError::Config(ConfigError::Toml { file, source: Box::new(source) }))?;
    folder.write(FILE_NAME, &text, 0o644)?;
    Config::check(written, &folder.state).map_err(InitError::Config)
}

async fn fill_database(folder: &mut Unfinished, key: &CallerKey) -> Result<(), InitError> {
    let file = folder.path(DATABASE_FILE);
    folder.write(DATABASE_FILE, "", 0o600)?; // SQLite takes an empty file for a new database
    for suffix in ["-wal", "-shm"] {
        folder.made.push(folder.path(&format!("{DATABASE_FILE}{suffix}")));
    }
    let registry = SqliteRegistry::open(&file).await.map_err(InitError::Store)?;
    let put = registry.put_caller_key(key).await;
    registry.close().await;
    put.map_err(InitError::Store)
}

/// A folder that is being filled. Dropping it removes what was created, unless it was kept.
#[must_use = "what was created is removed when this is dropped"]
struct Unfinished {
    state: PathBuf,
    made: Vec<PathBuf>,
    is_new: bool,
}

impl Unfinished {
    fn begin(state: &Path) -> Result<Self, InitError> {
        let failed = |source| InitError::Folder { file: state.into(), source };
        let is_new = match DirBuilder::new().mode(0o700).create(state) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        if !is_new {
            let ours = [FILE_NAME, CA_FILE, CA_KEY_FILE, TLS_FILE, TLS_KEY_FILE, SIGNING_KEY_FILE, DATABASE_FILE];
            if let Some(found) = ours.into_iter().find(|file| fs::symlink_metadata(state.join(file)).is_ok()) {
                return Err(InitError::AlreadyExists { state: state.into(), found });
            }
            make_private(state)?;
        }
        Ok(Self { state: state.into(), made: Vec::new(), is_new })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.state.join(file)
    }

    /// Creates a file with exactly these permission bits, whatever the umask is.
    fn write(&mut self, file: &str, text: &str, mode: u32) -> Result<(), InitError> {
        let file = self.path(file);
        create(&file, mode, text.as_bytes()).map_err(InitError::File)?;
        self.made.push(file);
        Ok(())
    }

    fn keep(mut self) {
        self.made.clear();
        self.is_new = false;
    }
}

/// Closes an empty folder to other users. A folder that holds other things is refused instead.
fn make_private(state: &Path) -> Result<(), InitError> {
    let failed = |source| InitError::Folder { file: state.into(), source };
    let mode = fs::metadata(state).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    if fs::read_dir(state).map_err(failed)?.next().is_some() {
        return Err(InitError::Exposed { state: state.into(), mode });
    }
    fs::set_permissions(state, Permissions::from_mode(0o700)).map_err(failed)
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // A file that cannot be removed stays: the error that led here is the one to report.
        for file in &self.made {
            fs::remove_file(file).ok();
        }
        if self.is_new {
            fs::remove_dir(&self.state).ok();
        }
    }
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
