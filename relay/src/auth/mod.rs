//! Who are you, may you: devices' proofs, callers' tokens, the one decision, and the leave that comes of it.
//!
//! ```text
//!   hello.proof ──▶ device::verify_proof ──▶ the key that proved it
//!   bearer ──▶ caller::CallerAuth ──▶ Caller ──▶ policy::decide ──▶ leave::OpenLeave, leave::ActLeave
//! ```

use jsonwebtoken::{Algorithm, DecodingKey};
use moorline_proto::proof::{KeyAlgorithm, PublicKey};

pub mod caller;
pub mod device;
pub mod leave;
pub mod mint;
pub mod policy;
#[cfg(test)]
mod test_keys;

/// The key in the shape in which signatures are checked.
fn decoding_key(key: &PublicKey) -> DecodingKey {
    match key {
        PublicKey::Ed25519(raw) => DecodingKey::from_ed_der(raw),
        PublicKey::P256(point) => DecodingKey::from_ec_der(&[&[0x04], &point[..]].concat()),
    }
}

/// The one algorithm of a key, in the words of the library that checks.
fn algorithm(of: KeyAlgorithm) -> Algorithm {
    match of {
        KeyAlgorithm::EdDsa => Algorithm::EdDSA,
        KeyAlgorithm::Es256 => Algorithm::ES256,
    }
}
