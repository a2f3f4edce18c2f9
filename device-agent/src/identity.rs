//! The device's identity: an Ed25519 key pair that is generated on the device and signs the proof in `hello`. The private key is in a file of mode 0600.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use moorline_proto::names::PROOF_TYP;
use moorline_proto::proof::{ProofClaims, PublicKey};
use moorline_proto::secret::Secret;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

/// The key pair of a device.
pub struct Identity {
    signing: EncodingKey,
    public: PublicKey,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:?})", self.public)
    }
}

/// Why a device's key is not usable.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key file cannot be read or written.
    #[error("cannot read or write the key file {}", path.display())]
    File {
        /// The key file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Group or others have access to the key file.
    #[error("others can read the key file {0}: run `chmod 600 {0}`, or make a new key if somebody may have read it", path.display())]
    Permissions {
        /// The key file.
        path: PathBuf,
    },
    /// The file contains no Ed25519 private key.
    #[error("{} contains no Ed25519 private key (PKCS#8 in PEM)", path.display())]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Library,
}

impl Identity {
    /// Generates a key pair and writes the private key to a new file, mode 0600.
    ///
    /// # Errors
    /// [`IdentityError`]. An existing file is not changed.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| IdentityError::Library)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| IdentityError::Library)?;
        let packed = Secret::new(BASE64.encode(der.as_ref()));
        let text = Secret::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", packed.reveal())); // for its file
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(text.reveal().as_bytes())?; // into the one file that is for it
            file.sync_all()
        };
        write().map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
        Self::from_pem(&text).ok_or(IdentityError::Library)
    }

    /// Reads the private key from a file.
    ///
    /// # Errors
    /// [`IdentityError`], also where group or others have access to the file.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(IdentityError::Permissions { path: path.to_owned() });
        }
        let text = Secret::new(fs::read_to_string(path).map_err(failed)?);
        Self::from_pem(&text).ok_or_else(|| IdentityError::NotAKey { path: path.to_owned() })
    }

    /// Parses a private key (PKCS#8 in PEM) that is kept elsewhere than in a file.
    pub fn from_pem(text: &Secret) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.reveal().as_bytes()).ok()?;
        let der = der.secret_pkcs8_der();
        let pair = Ed25519KeyPair::from_pkcs8(der).ok()?;
        let public = PublicKey::Ed25519(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { signing: EncodingKey::from_ed_der(der), public })
    }

    /// The public key, which the relay has to know.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs the claims of a proof. Returns a compact JWS.
    ///
    /// # Errors
    /// [`IdentityError::Library`].
    pub fn sign_proof(&self, claims: &ProofClaims) -> Result<String, IdentityError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(PROOF_TYP.to_owned());
        header.kid = Some(self.public.thumbprint().to_string());
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(|_| IdentityError::Library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_never_overwritten_and_must_be_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        let made = Identity::create(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap().public(), made.public());
        assert!(matches!(Identity::create(&path), Err(IdentityError::File { .. })), "an existing key is never overwritten");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = Identity::load(&path).unwrap_err();
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
    }

    #[test]
    fn a_file_without_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        fs::write(&path, "no key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::NotAKey { .. })));
    }
}
