//! The relay's own signing key, and the callers' tokens that it signs.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use moorline_proto::claims::CallerClaims;
use moorline_proto::names::CALLER_TOKEN_TYP;
use moorline_proto::proof::PublicKey;
use moorline_proto::secret::Secret;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

/// An Ed25519 key that signs callers' tokens.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// Why a signing key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Not a PEM block `PRIVATE KEY`.
    #[error("not a PEM block of the type PRIVATE KEY (PKCS#8)")]
    NotPem,
    /// Not an Ed25519 key.
    #[error("not an Ed25519 key")]
    Algorithm,
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Library,
}

impl SigningKey {
    /// Generates a key.
    ///
    /// # Errors
    /// [`SigningKeyError::Library`].
    pub fn generate() -> Result<Self, SigningKeyError> {
        Self::of(Ed25519KeyPair::generate().map_err(|_| SigningKeyError::Library)?)
    }

    /// Reads PKCS#8 in PEM, with or without the public half (`openssl genpkey -algorithm ed25519` writes it without).
    ///
    /// # Errors
    /// [`SigningKeyError`]: not PEM, or another algorithm.
    pub fn from_pem(pem: &Secret) -> Result<Self, SigningKeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.reveal().as_bytes()).map_err(|_| SigningKeyError::NotPem)?;
        Self::of(Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| SigningKeyError::Algorithm)?)
    }

    fn of(pair: Ed25519KeyPair) -> Result<Self, SigningKeyError> {
        let raw = pair.public_key().as_ref().try_into().map_err(|_| SigningKeyError::Library)?;
        Ok(Self { pair, public: PublicKey::Ed25519(raw) })
    }

    /// PKCS#8 in PEM, in the version that every OpenSSL reads.
    ///
    /// # Errors
    /// [`SigningKeyError::Library`].
    pub fn to_pem(&self) -> Result<Secret, SigningKeyError> {
        let packed = BASE64.encode(self.pkcs8()?.as_ref());
        Ok(Secret::new(format!("-----BEGIN PRIVATE KEY-----\n{packed}\n-----END PRIVATE KEY-----\n")))
    }

    /// The public key, with which relays verify signatures.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a caller's token with these claims.
    ///
    /// # Errors
    /// [`SigningKeyError::Library`].
    pub fn mint(&self, claims: &CallerClaims) -> Result<Secret, SigningKeyError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(CALLER_TOKEN_TYP.to_owned());
        header.kid = Some(self.public.thumbprint().to_string());
        let key = EncodingKey::from_ed_der(self.pkcs8()?.as_ref());
        encode(&header, claims, &key).map(Secret::new).map_err(|_| SigningKeyError::Library)
    }

    fn pkcs8(&self) -> Result<Pkcs8V1Der<'static>, SigningKeyError> {
        self.pair.as_der().map_err(|_| SigningKeyError::Library)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}
