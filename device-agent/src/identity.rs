//! The device's identity: an Ed25519 key pair that is generated on the device and signs the proof in `hello`. The private key is in a file of mode 0600.

use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use moorline_files::{CreateError, PrivateFileError};
use moorline_proto::names::PROOF_TYP;
use moorline_proto::proof::{ProofClaims, PublicKey};
use moorline_proto::secret::Secret;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use crate::limits::KEY_FILE_BYTES;

/// Read and write for the owner alone.
const PRIVATE_MODE: u32 = 0o600;

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
    /// The key file cannot be created.
    #[error("cannot create the device's key file")]
    Create(#[source] CreateError),
    /// The key file cannot be read, or is not private.
    #[error("cannot use the device's key file")]
    Read(#[source] PrivateFileError),
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
    /// [`IdentityError`]. An existing file is not changed, and a symbolic link is not followed.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| IdentityError::Library)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| IdentityError::Library)?;
        let encoded = Secret::new(BASE64.encode(der.as_ref()));
        let text = Secret::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", encoded.reveal())); // for its file
        moorline_files::create(path, PRIVATE_MODE, text.reveal().as_bytes()).map_err(IdentityError::Create)?; // the file of the key
        Self::from_pem(&text).ok_or(IdentityError::Library)
    }

    /// Reads the private key from a file that only the effective user, or root and a group, can read: see [`moorline_files::read_private`].
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let text = moorline_files::read_private(path, KEY_FILE_BYTES).map_err(IdentityError::Read)?;
        Self::parse(&text).ok_or_else(|| IdentityError::NotAKey { path: path.to_owned() })
    }

    /// Parses a private key (PKCS#8 in PEM) that is kept elsewhere than in a file.
    pub fn from_pem(text: &Secret) -> Option<Self> {
        Self::parse(text.reveal().as_bytes()) // into the key that signs
    }

    fn parse(pem: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
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
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_key_file_is_never_overwritten_and_must_be_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        let made = Identity::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::load(&path).unwrap().public(), made.public());
        assert!(matches!(Identity::create(&path), Err(IdentityError::Create(CreateError::Exists { .. }))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Read(PrivateFileError::Mode { mode: 0o644, .. }))));
    }

    #[test]
    fn a_key_file_may_be_mounted_behind_a_symbolic_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("device.key"), folder.path().join("link.key"));
        let made = Identity::create(&path).unwrap();
        symlink(&path, &link).unwrap();
        assert_eq!(Identity::load(&link).unwrap().public(), made.public());
        assert!(matches!(Identity::create(&link), Err(IdentityError::Create(CreateError::Exists { .. }))));
    }

    #[test]
    fn a_file_without_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        moorline_files::create(&path, 0o600, b"no key").unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::NotAKey { .. })));
    }
}
