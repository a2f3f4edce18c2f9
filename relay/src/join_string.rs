//! The join string of a relay that exists, printed again. Needs the state folder alone: it reads the configuration and the CA's certificate, no
//! secret, takes no lock, and works whether the relay runs or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moorline_proto::join::{Join, RelayUrl, RelayUrlError};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};

use crate::clock::Clock;
use crate::config::{Config, ConfigError};

/// Name of the CA's certificate in a state folder. There is none where the operator brought a certificate that machines already trust.
pub const CA_FILE: &str = "ca.pem";

/// Why there is no join string.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The folder's configuration cannot be used.
    #[error("the relay's configuration could not be used")]
    Config(#[source] ConfigError),
    /// Name and port do not make an address that can be dialled.
    #[error("devices cannot dial this relay")]
    Address(#[source] RelayUrlError),
    /// A certificate cannot be read.
    #[error("no certificate in {}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The CA's certificate cannot stand in a join string.
    #[error("{} holds no certificate of a CA", file.display())]
    Ca {
        /// The file.
        file: PathBuf,
    },
}

impl JoinError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Config(_) => "give --state the folder that `moorline-relay init` made, as the user that owns it",
            Self::Address(_) => "set `ports` in relay.toml to the port that devices and callers dial, or give the first listener one",
            Self::Certificate { .. } => "check ca.pem in the state folder, and [tls] in relay.toml",
            Self::Ca { .. } => "restore ca.pem from your backup, or remove it if machines trust the relay's certificate without it",
        }
    }
}

/// The join string of the relay in a state folder, as `init` printed it: the first name, the port that devices and callers dial, and the
/// relay's own CA. The CA is left out once the relay's certificate is another's.
///
/// Blocks on the disk.
///
/// # Errors
/// [`JoinError`].
pub fn join(state: &Path, clock: &Clock) -> Result<Join, JoinError> {
    let config = Config::load(state).map_err(JoinError::Config)?;
    let listening = config.listeners.first().map(|listener| listener.address.port());
    let port = config.ports.first().copied().or(listening).unwrap_or_default();
    let url = address(&config.names, port).map_err(JoinError::Address)?;
    let file = state.join(CA_FILE);
    let ca = match CertificateDer::from_pem_file(&file) {
        Ok(ca) => ca,
        Err(pem::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Join { url, ca: None }),
        Err(source) => return Err(JoinError::Certificate { file, source }),
    };
    let is_issuer = match &config.tls {
        // A load balancer that has the certificate which `init` made.
        None => true,
        Some(tls) => {
            let unreadable = |source| JoinError::Certificate { file: tls.certificate.clone(), source };
            let chain = CertificateDer::pem_file_iter(&tls.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            is_issued_by(&chain.map_err(unreadable)?, &ca, url.host(), clock).ok_or(JoinError::Ca { file })?
        }
    };
    Ok(Join { url, ca: is_issuer.then(|| ca.to_vec()) })
}

/// What is dialled: the first name, at this port.
///
/// # Errors
/// There is no name, or the port is 0.
pub(crate) fn address(names: &[String], port: u16) -> Result<RelayUrl, RelayUrlError> {
    let host = names.first().map(String::as_str).unwrap_or_default();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("https://{host}:{port}").parse()
}

/// Whether a chain leads to this CA, be it expired or for other names. `None` if that is no CA.
fn is_issued_by(chain: &[CertificateDer<'_>], ca: &CertificateDer<'_>, host: &str, clock: &Clock) -> Option<bool> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).ok()?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(clock.now().as_millis()));
    let Some((leaf, intermediates)) = chain.split_first() else { return Some(false) };
    Some(match verifier.verify_server_cert(leaf, intermediates, &name, &[], now) {
        Ok(_) => true,
        Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => false,
        Err(_) => true,
    })
}

#[cfg(test)]
#[path = "join_string_tests.rs"]
mod tests;
