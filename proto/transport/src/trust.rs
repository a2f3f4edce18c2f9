//! Whom to trust as the relay: the one CA of a join string, or the machine's own store.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// What was given as CA certificate is none.
    #[error("the CA certificate that was given for the relay is not one")]
    NotACertificate(#[source] rustls::Error),
    /// No CA was given, and the machine has none.
    #[error("this machine has no CA certificates of its own, and none was given for the relay")]
    NoRoots,
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// One configuration for every connection of a dialer, so that later ones resume the first one's session.
///
/// # Errors
/// [`TrustError`].
pub(crate) fn client_config(ca: Option<&[u8]>) -> Result<Arc<ClientConfig>, TrustError> {
    let roots = ca.map_or_else(native_roots, only)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(TrustError::Tls)?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn only(ca: &[u8]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec())).map_err(TrustError::NotACertificate)?;
    Ok(roots)
}

fn native_roots() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a part of the machine's CA certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 { Err(TrustError::NoRoots) } else { Ok(roots) }
}
