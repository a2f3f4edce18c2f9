//! Authentication and authorization: devices' proofs, callers' tokens, the one decision, and the permits that it gives.
//!
//! ```text
//!   hello.proof ──▶ proof::verify_proof ──▶ DevicePrincipal
//!   bearer ──▶ token::TokenVerifier ──▶ Caller ──▶ policy::decide ──▶ StreamPermit, AdminPermit ──▶ revocation::Cut, Revocation
//! ```

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use jsonwebtoken::{Algorithm, DecodingKey};
use moorline_proto::proof::{KeyAlgorithm, PublicKey};

pub mod mint;
pub mod permit;
pub mod policy;
pub mod principal;
pub mod proof;
pub mod revocation;
#[cfg(test)]
mod test_keys;
pub mod token;

/// The key as `jsonwebtoken` takes it.
fn decoding_key(key: &PublicKey) -> DecodingKey {
    match key {
        PublicKey::Ed25519(raw) => DecodingKey::from_ed_der(raw),
        PublicKey::P256(point) => DecodingKey::from_ec_der(&[&[0x04], &point[..]].concat()),
    }
}

/// Whether signatures can be verified with the key. A point off its curve has the right length and verifies nothing.
pub fn is_usable(key: &PublicKey) -> bool {
    match key {
        PublicKey::Ed25519(raw) => ParsedPublicKey::new(&ED25519, raw).is_ok(),
        PublicKey::P256(point) => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [&[0x04], &point[..]].concat()).is_ok(),
    }
}

/// The one algorithm of a key, as `jsonwebtoken` names it.
fn algorithm(of: KeyAlgorithm) -> Algorithm {
    match of {
        KeyAlgorithm::EdDsa => Algorithm::EdDSA,
        KeyAlgorithm::Es256 => Algorithm::ES256,
    }
}
