//! The relay's side of TLS: certificate and key from files, and what is offered. Reloading is not here yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moorline_files::{PrivateFileError, read_private};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};

/// The one protocol inside: balancers that are offered `h2` would speak it to clients that expect an HTTP/1.1 upgrade.
const ALPN: &[u8] = b"http/1.1";

/// Session tickets per connection. A client that keeps what it gets has as many as it had connections at once. The session is in the ticket,
/// under a key that changes every few hours: nothing is kept here, however many devices there are. Other nodes have other keys.
const TICKETS: usize = 1;

/// Largest file of a private key: one of 16,384 bits RSA has 13 KB.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The certificate's file cannot be read, or holds something else.
    #[error("no certificate in {}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The key's file holds something else.
    #[error("no private key in {}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The key's file is open to others, or cannot be read.
    #[error("the private key cannot be used")]
    PrivateKey(#[source] PrivateFileError),
    /// Both are there, and cannot be used together.
    #[error("certificate {} and key {} cannot be used", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// TLS 1.3 and 1.2 with the chain and key of two PEM files. Reads files: not for hot paths.
///
/// # Errors
/// [`TlsFileError`]: a file that cannot be read or holds something else, a key of another certificate.
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsFileError> {
    let unreadable = |source| TlsFileError::Certificate { file: certificate.into(), source };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
    if chain.is_empty() {
        return Err(unreadable(pem::Error::NoItemsFound));
    }
    let private = private_key(key)?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .and_then(|builder| Ok((builder.with_no_client_auth().with_single_cert(chain, private)?, aws_lc_rs::Ticketer::new()?)));
    let unusable = |source| TlsFileError::Unusable { certificate: certificate.into(), key: key.into(), source };
    let (mut config, ticketer) = config.map_err(unusable)?;
    config.ticketer = ticketer;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

/// Reads the private key. Certificate managers keep a symbolic link to the current key: the file that it leads to is checked and read.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let pem = read_private(file, MAX_KEY_BYTES).map_err(TlsFileError::PrivateKey)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|source| TlsFileError::Key { file: file.into(), source })
}
