//! TLS configuration: certificate and key from PEM files, protocol versions, ALPN, session tickets. Files are read once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};

/// The one application protocol: load balancers that are offered `h2` would use it for clients that need an HTTP/1.1 upgrade.
const ALPN: &[u8] = b"http/1.1";

/// Session tickets per connection: a client has as many as it had connections at once. Tickets are stateless, encrypted with a key that
/// changes every few hours, so the relay stores nothing per device. Other nodes have other keys.
const TICKETS: usize = 1;

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The certificate's file cannot be read, or holds no certificate.
    #[error("no certificate in {}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The key's file cannot be read, or holds no private key.
    #[error("no private key in {}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// rustls rejects them, or they do not belong together.
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

/// TLS 1.3 and 1.2 with the certificate chain and key of two PEM files. Blocks while it reads the files.
///
/// # Errors
/// [`TlsFileError`].
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsFileError> {
    let unreadable = |source| TlsFileError::Certificate { file: certificate.into(), source };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
    if chain.is_empty() {
        return Err(unreadable(pem::Error::NoItemsFound));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsFileError::Key { file: key.into(), source })?;
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
