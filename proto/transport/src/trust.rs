//! Which certificate authorities are trusted to identify the relay: the one CA of a join string, or the machine's trust store.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::tls_sessions::TlsSessionStore;

/// Why no TLS configuration could be built.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The given CA certificate is not a certificate.
    #[error("the relay's CA certificate is not a valid certificate")]
    NotACertificate(#[source] rustls::Error),
    /// No CA was given and the machine has none.
    #[error("this machine has no CA certificates, and none was given for the relay")]
    NoRoots,
    /// rustls refused the configuration.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

impl TrustError {
    /// What to do next.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NoRoots => {
                "install this machine's CA certificates (Debian's package ca-certificates), or use a join string with the relay's own CA, as `moorline-relay join` prints it"
            }
            Self::NotACertificate(_) => "get the join string again (`moorline-relay join` prints it), and use its CA",
            Self::Tls(_) => "report this with the versions of this program and of its system",
        }
    }
}

/// Builds one configuration for all connections of a dialer, so that they share TLS sessions.
///
/// # Errors
/// [`TrustError`].
pub(crate) fn client_config(ca: Option<&[u8]>) -> Result<Arc<ClientConfig>, TrustError> {
    let roots = ca.map_or_else(native_roots, only)?;
    let provider = Arc::new(provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(TrustError::Tls)?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::store(Arc::new(TlsSessionStore::default()));
    Ok(Arc::new(config))
}

/// The cipher suites that agents and clients offer, cheapest first, because the relay takes the client's first choice. A SHA-256 handshake
/// is cheaper than a SHA-384 one and AES-128 is cheaper than AES-256; ChaCha20 is the cheapest on machines without AES instructions.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let rank = |suite: &rustls::SupportedCipherSuite| match suite.suite() {
        suite if suite == cipher_suite::TLS13_CHACHA20_POLY1305_SHA256.suite() => {
            if has_aes() {
                2
            } else {
                0
            }
        }
        suite if suite == cipher_suite::TLS13_AES_128_GCM_SHA256.suite() => 1,
        suite if suite == cipher_suite::TLS13_AES_256_GCM_SHA384.suite() => 3,
        _ => 4,
    };
    provider.cipher_suites.sort_by_key(rank); // stable: the TLS 1.2 suites keep their order
    provider
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

fn only(ca: &[u8]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec())).map_err(TrustError::NotACertificate)?;
    Ok(roots)
}

fn native_roots() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "some of the machine's CA certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 { Err(TrustError::NoRoots) } else { Ok(roots) }
}
