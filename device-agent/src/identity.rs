//! The device's key: made on the device, kept in a file that only its owner can read, used to prove who the device is.

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

/// An Ed25519 key that proves a device.
pub struct Identity {
    signing: EncodingKey,
    public: PublicKey,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:?})", self.public)
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("the key file {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the key.
    #[error("others can read the key file {0}: run `chmod 600 {0}`; if somebody may have read it, make a new key", path.display())]
    Permissions {
        /// Which file.
        path: PathBuf,
    },
    /// The file holds no Ed25519 key in PKCS#8 and PEM.
    #[error("{} holds no Ed25519 private key in PEM (PKCS#8)", path.display())]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Library,
}

impl Identity {
    /// Makes a new key and keeps it in a new file, mode 0600.
    ///
    /// # Errors
    /// [`IdentityError`]; a file that is there already is not touched.
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

    /// Reads a key.
    ///
    /// # Errors
    /// [`IdentityError`], also where others than the owner can read the file.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(IdentityError::Permissions { path: path.to_owned() });
        }
        let text = Secret::new(fs::read_to_string(path).map_err(failed)?);
        Self::from_pem(&text).ok_or_else(|| IdentityError::NotAKey { path: path.to_owned() })
    }

    /// A key that is in no file, for tests and programs that keep it elsewhere: PKCS#8 in PEM.
    pub fn from_pem(text: &Secret) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.reveal().as_bytes()).ok()?;
        let der = der.secret_pkcs8_der();
        let pair = Ed25519KeyPair::from_pkcs8(der).ok()?;
        let public = PublicKey::Ed25519(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { signing: EncodingKey::from_ed_der(der), public })
    }

    /// What the relay is to know.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Proves who the device is, once.
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
    fn a_key_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        let made = Identity::create(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap().public(), made.public());
        assert!(matches!(Identity::create(&path), Err(IdentityError::File { .. })), "a key is never written over");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = Identity::load(&path).unwrap_err();
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
    }

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        fs::write(&path, "no key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::NotAKey { .. })));
    }
}
