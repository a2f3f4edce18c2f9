//! Verifies a device's proof: that its sender has a key of the device, for this one connection.

use jsonwebtoken::{Validation, decode, decode_header};
use moorline_proto::control::Nonce;
use moorline_proto::id::{DeviceId, Instance};
use moorline_proto::names::PROOF_TYP;
use moorline_proto::proof::{ProofClaims, Thumbprint};

use crate::access::{algorithm, decoding_key};
use crate::store::KeyRecord;

/// What a proof must state.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The nonce of this connection's `challenge`.
    pub nonce: Nonce,
    /// The relay's names, in lower case: the device must have dialled one of them.
    pub names: &'a [String],
    /// The device of `hello`.
    pub device: &'a DeviceId,
    /// The instance of `hello`.
    pub instance: &'a Instance,
}

/// Why a proof is rejected. For the relay's log: it is not sent to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a compact JWS, or without the claims of a proof.
    #[error("not a signed proof")]
    NoProof,
    /// A `typ` of another purpose.
    #[error("its typ is not {PROOF_TYP}")]
    Purpose,
    /// A `crit` header: an extension that must be understood and is not.
    #[error("its header has crit, of which no extension is understood")]
    Critical,
    /// `x5c`, which is not understood yet.
    #[error("it is signed with an X.509 certificate, which this relay does not take")]
    Certificate,
    /// No `kid`, or one of no key of this device.
    #[error("its kid names no key of the device")]
    UnknownKey,
    /// The `alg` is not the key's.
    #[error("its alg is not the one of its key")]
    Algorithm,
    /// The signature is invalid.
    #[error("its signature does not hold")]
    Signature,
    /// Made for another connection: replayed.
    #[error("its nonce is not the one of this connection")]
    Nonce,
    /// Made for another relay.
    #[error("its aud is no name of this relay")]
    Audience,
    /// About another device.
    #[error("its sub is another device than the hello's")]
    Device,
    /// For another instance than the one of `hello`.
    #[error("its instance is another than the hello's")]
    Instance,
}

/// Verifies a proof, and returns the thumbprint of the key that made it.
///
/// # Errors
/// [`ProofError`], the first thing that is wrong. A proof carries no time: the nonce makes it valid for one connection only.
pub fn verify_proof(proof: &str, expected: &Expected<'_>, keys: &[KeyRecord]) -> Result<Thumbprint, ProofError> {
    let header = decode_header(proof).map_err(|_| ProofError::NoProof)?;
    if header.typ.as_deref() != Some(PROOF_TYP) {
        return Err(ProofError::Purpose);
    }
    if header.crit.is_some() {
        return Err(ProofError::Critical);
    }
    if header.x5c.is_some() {
        return Err(ProofError::Certificate);
    }
    let kid: Option<Thumbprint> = header.kid.and_then(|kid| kid.parse().ok());
    let key = keys.iter().find(|key| Some(key.kid) == kid).ok_or(ProofError::UnknownKey)?;
    if header.alg != algorithm(key.key.algorithm()) {
        return Err(ProofError::Algorithm);
    }
    let claims = signed_claims(proof, key)?;
    if claims.nonce != expected.nonce {
        return Err(ProofError::Nonce);
    }
    if !expected.names.contains(&claims.aud) {
        return Err(ProofError::Audience);
    }
    if claims.sub != *expected.device {
        return Err(ProofError::Device);
    }
    if claims.instance != *expected.instance {
        return Err(ProofError::Instance);
    }
    Ok(key.kid)
}

fn signed_claims(proof: &str, key: &KeyRecord) -> Result<ProofClaims, ProofError> {
    // The library checks only the signature: a proof has no times, and its audience is compared by the caller.
    let mut only_signature = Validation::new(algorithm(key.key.algorithm()));
    only_signature.required_spec_claims.clear();
    only_signature.validate_exp = false;
    only_signature.validate_aud = false;
    let data = decode::<ProofClaims>(proof, &decoding_key(&key.key), &only_signature);
    data.map(|data| data.claims).map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::Json(_) => ProofError::NoProof,
        _ => ProofError::Signature,
    })
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
