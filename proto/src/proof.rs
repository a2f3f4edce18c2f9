//! How a device authenticates: public keys, their thumbprints, and the claims of a proof. Does not sign or verify.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

use crate::code::codes;
use crate::control::Nonce;
use crate::ed25519::{self, Weakness};
use crate::id::{DeviceId, Instance};

/// The claims of a proof, a compact JWS with `typ` [`crate::names::PROOF_TYP`] and `kid`, the key's [`Thumbprint`].
///
/// There is no time in it: a device's clock may be wrong. The nonce binds the proof to one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofClaims {
    /// From `challenge`.
    pub nonce: Nonce,
    /// The host that the device dialled: lower case, no port, IPv6 without brackets.
    pub aud: String,
    /// The device.
    pub sub: DeviceId,
    /// As in `hello`.
    pub instance: Instance,
}

codes! {
    /// The signature algorithm of a device's key.
    pub enum KeyAlgorithm {
        /// Ed25519.
        EdDsa = "EdDSA",
        /// ECDSA with P-256 and SHA-256.
        Es256 = "ES256",
    }
}

/// A device's public key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum PublicKey {
    /// The 32 bytes of RFC 8032. Those that were read are canonical and not of small order.
    Ed25519([u8; 32]),
    /// x and y, 32 bytes each. Not checked to be on the curve.
    P256([u8; 64]),
}

/// Why something is not a public key of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// A private key was given instead of a public one. It should be considered compromised.
    #[error("this is a private key; register the public one, and make a new pair if this went anywhere")]
    Private,
    /// Not one PEM block of the type `PUBLIC KEY`.
    #[error("not a PEM block of the type PUBLIC KEY (SPKI, as `openssl pkey -pubout` writes it)")]
    NotPem,
    /// SPKI of another algorithm, or not SPKI.
    #[error("neither an Ed25519 nor a P-256 key")]
    Algorithm,
    /// An Ed25519 key of small order, zero among them: signatures of anybody verify with it.
    #[error("this Ed25519 key is a point of small order, with which anybody can sign; make a new pair")]
    SmallOrder,
    /// An Ed25519 key whose y is not below 2^255 - 19 (RFC 8032, 5.1.3).
    #[error("this Ed25519 key is not in its canonical form (RFC 8032): y must be below 2^255 - 19")]
    NotCanonical,
    /// A JWK with a missing member, which is named.
    #[error("not a JWK of kty OKP with crv Ed25519, or of kty EC with crv P-256: {0}")]
    Jwk(&'static str),
}

const ED25519_SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00, 0x04,
];
const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

impl PublicKey {
    /// Parses SPKI in PEM.
    ///
    /// # Errors
    /// [`PublicKeyError`]: a private key, not PEM, another algorithm, a weak key.
    pub fn from_pem(text: &str) -> Result<Self, PublicKeyError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(PublicKeyError::Private);
        }
        let inside = text.trim().strip_prefix(PEM_BEGIN).and_then(|rest| rest.strip_suffix(PEM_END)).ok_or(PublicKeyError::NotPem)?;
        let packed: String = inside.split_ascii_whitespace().collect();
        let der = BASE64.decode(packed.as_bytes()).map_err(|_| PublicKeyError::NotPem)?;
        Self::from_spki(&der)
    }

    /// Parses SPKI in DER.
    ///
    /// # Errors
    /// [`PublicKeyError::Algorithm`], [`PublicKeyError::SmallOrder`], [`PublicKeyError::NotCanonical`].
    pub fn from_spki(der: &[u8]) -> Result<Self, PublicKeyError> {
        if let Some(raw) = der.strip_prefix(ED25519_SPKI).and_then(|raw| raw.try_into().ok()) {
            return Self::ed25519(raw);
        }
        let p256 = der.strip_prefix(P256_SPKI).and_then(|raw| raw.try_into().ok()).map(Self::P256);
        p256.ok_or(PublicKeyError::Algorithm)
    }

    fn ed25519(raw: [u8; 32]) -> Result<Self, PublicKeyError> {
        ed25519::check(&raw).map_err(|weakness| match weakness {
            Weakness::SmallOrder => PublicKeyError::SmallOrder,
            Weakness::NotCanonical => PublicKeyError::NotCanonical,
        })?;
        Ok(Self::Ed25519(raw))
    }

    /// Converts a JWK. Members other than those of a public key are ignored; `d` is an error.
    ///
    /// # Errors
    /// [`PublicKeyError`].
    pub fn from_jwk(jwk: &Jwk) -> Result<Self, PublicKeyError> {
        fn coordinate(text: Option<&str>, missing: &'static str) -> Result<[u8; 32], PublicKeyError> {
            let bytes = text.and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok());
            bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(PublicKeyError::Jwk(missing))
        }
        if jwk.d.is_some() {
            return Err(PublicKeyError::Private);
        }
        let x = coordinate(jwk.x.as_deref(), "x must be 32 bytes in base64url");
        match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => x.and_then(Self::ed25519),
            ("EC", Some("P-256")) => {
                let mut point = [0; 64];
                point[..32].copy_from_slice(&x?);
                point[32..].copy_from_slice(&coordinate(jwk.y.as_deref(), "y must be 32 bytes in base64url")?);
                Ok(Self::P256(point))
            }
            _ => Err(PublicKeyError::Jwk("kty and crv name another kind of key")),
        }
    }

    /// The key as a JWK, with the required members alone.
    pub fn to_jwk(&self) -> Jwk {
        let text = |bytes: &[u8]| Some(BASE64URL_NOPAD.encode(bytes));
        match self {
            Self::Ed25519(x) => Jwk { kty: "OKP".to_owned(), crv: Some("Ed25519".to_owned()), x: text(x), y: None, d: None },
            Self::P256(point) => {
                Jwk { kty: "EC".to_owned(), crv: Some("P-256".to_owned()), x: text(&point[..32]), y: text(&point[32..]), d: None }
            }
        }
    }

    /// The key as SPKI in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(raw) => [ED25519_SPKI, raw].concat(),
            Self::P256(point) => [P256_SPKI, point].concat(),
        }
    }

    /// The key as SPKI in PEM.
    pub fn to_pem(&self) -> String {
        let packed = BASE64.encode(&self.to_spki());
        let lines: Vec<&str> = packed.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", lines.join("\n"))
    }

    /// The key's signature algorithm.
    pub fn algorithm(&self) -> KeyAlgorithm {
        match self {
            Self::Ed25519(_) => KeyAlgorithm::EdDsa,
            Self::P256(_) => KeyAlgorithm::Es256,
        }
    }

    /// SHA-256 over the required members in the order of RFC 7638 (RFC 8037 for Ed25519).
    pub fn thumbprint(&self) -> Thumbprint {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let members = match self {
            Self::Ed25519(x) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, text(x)),
            Self::P256(point) => {
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, text(&point[..32]), text(&point[32..]))
            }
        };
        Thumbprint(Sha256::digest(members).into())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm(), self.thumbprint())
    }
}

/// The members of a JSON Web Key that are used here (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// `OKP` or `EC`.
    pub kty: String,
    /// `Ed25519` or `P-256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// base64url, for `EC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// The private part, which must not be present.
    #[serde(default, skip_serializing)]
    pub d: Option<PrivatePart>,
}

/// Marks that a JWK has a private part, whose value is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivatePart;

impl<'de> Deserialize<'de> for PrivatePart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// The id of a key: RFC 7638 with SHA-256, in base64url without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Thumbprint([u8; 32]);

/// The text is not a thumbprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a thumbprint is 32 bytes in base64url without padding")]
pub struct ThumbprintError;

impl FromStr for Thumbprint {
    type Err = ThumbprintError;

    fn from_str(text: &str) -> Result<Self, ThumbprintError> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| ThumbprintError)?;
        bytes.try_into().map(Self).map_err(|_| ThumbprintError)
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thumbprint({self})")
    }
}

impl Serialize for Thumbprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Thumbprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
