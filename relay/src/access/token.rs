//! Verifies callers' tokens: signed by a trusted issuer, meant for this relay, valid now. What a token allows is decided in
//! [`crate::access::policy`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use moorline_proto::claims::{AccessRule, Audience, CallerClaims};
use moorline_proto::id::CallerId;
use moorline_proto::message::FieldError;
use moorline_proto::problem::ProblemCode;
use moorline_proto::proof::Thumbprint;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use sha2::{Digest, Sha256};

use crate::access::principal::Caller;
use crate::access::{algorithm, decoding_key};
use crate::clock::Clock;
use crate::limits::{TOKEN_CACHE_MAX, TOKEN_CACHE_TTL};
use crate::store::CallerKey;
use crate::ttl_map::TtlMap;

/// How far the clocks of issuer and relay may differ. 30 s: NTP keeps machines within one second; more would extend every token.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// The `typ` of a caller's token (RFC 7519, RFC 9068). A token of another type has another purpose, like a device's proof.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// Verifies tokens: holds the trusted keys and the relay's names.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    keys: BTreeMap<Thumbprint, CallerKey>,
    names: Vec<String>,
    clock: Clock,
    /// Tokens whose signature was verified lately, by their hash. A caller with many streams sends the same token each time.
    verified: Arc<TtlMap<[u8; 32], VerifiedToken>>,
}

/// A token whose signature was verified. Audience and times are checked at each use.
#[derive(Clone, Debug)]
struct VerifiedToken {
    kid: Thumbprint,
    claims: Arc<CallerClaims>,
    access: Arc<[AccessRule]>,
    token_id: Option<Arc<str>>,
}

/// Why a token is rejected. The text is sent to the caller, and contains nothing of the signature.
#[derive(Debug, thiserror::Error)]
pub enum InvalidToken {
    /// Not a compact JWS.
    #[error("the token is no signed JWT (three parts in base64url with dots between)")]
    NoJwt,
    /// A `typ` of another purpose.
    #[error("the token's typ says that it is for another purpose than calling")]
    Purpose,
    /// A `crit` header: an extension that must be understood and is not.
    #[error("the token's header has crit, of which no extension is understood")]
    Critical,
    /// No `kid`, or one of no trusted key.
    #[error("the token's kid names no key that this relay trusts")]
    UnknownKey,
    /// The `alg` is not the key's.
    #[error("the token's alg is not the one of its key")]
    Algorithm,
    /// The signature is invalid.
    #[error("the token's signature is invalid")]
    Signature,
    /// Claims are missing or malformed.
    #[error("the token's claims: {0}")]
    Claims(String),
    /// The `iss` is not the issuer of the key.
    #[error("the token's iss is not the one that its key belongs to")]
    Issuer,
    /// The `aud` is not a name of this relay.
    #[error("the token's aud is not a name of this relay")]
    Audience,
    /// Expired.
    #[error("the token expired at {at}; get a new one")]
    Expired {
        /// Its `exp`.
        at: Timestamp,
    },
    /// Not valid yet.
    #[error("the token is valid from {from}; it may be that a clock is wrong")]
    NotYetValid {
        /// Its `nbf`, or `iat`.
        from: Timestamp,
    },
}

impl InvalidToken {
    /// The problem code of the answer.
    pub fn problem(&self) -> ProblemCode {
        match self {
            Self::NoJwt
            | Self::Purpose
            | Self::Critical
            | Self::UnknownKey
            | Self::Algorithm
            | Self::Signature
            | Self::Claims(_)
            | Self::Issuer
            | Self::Audience => ProblemCode::TokenInvalid,
            Self::Expired { .. } => ProblemCode::TokenExpired,
            Self::NotYetValid { .. } => ProblemCode::TokenNotYetValid,
        }
    }
}

impl TokenVerifier {
    /// Accepts tokens signed by one of `keys` for one of `names` (lower case), by the time of `clock`.
    pub fn new(keys: Vec<CallerKey>, names: Vec<String>, clock: Clock) -> Self {
        let verified = Arc::new(TtlMap::new(TOKEN_CACHE_TTL, TOKEN_CACHE_MAX));
        Self { keys: keys.into_iter().map(|key| (key.kid, key)).collect(), names, clock, verified }
    }

    /// Verifies a token and returns its caller.
    ///
    /// # Errors
    /// [`InvalidToken`]; [`InvalidToken::problem`] is the code of the answer.
    pub fn authenticate(&self, bearer: &Secret) -> Result<Caller, InvalidToken> {
        let VerifiedToken { kid, claims, access, token_id } = self.verified(bearer.reveal())?; // to the library that checks its signature
        let key = self.keys.get(&kid).ok_or(InvalidToken::UnknownKey)?;
        if claims.iss != key.iss {
            return Err(InvalidToken::Issuer);
        }
        if !self.is_audience(&claims.aud) {
            return Err(InvalidToken::Audience);
        }
        let expires_at = in_time(&claims, self.clock.now())?;
        let id = CallerId { issuer: key.issuer.clone(), subject: claims.sub.clone() };
        Ok(Caller { id, token_id, key_id: kid, access, expires_at })
    }

    fn verified(&self, token: &str) -> Result<VerifiedToken, InvalidToken> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(verified) = self.verified.get(&hash) {
            return Ok(verified);
        }
        let key = self.key(token)?;
        let mut claims = verified_claims(token, key)?;
        let (access, token_id) = (std::mem::take(&mut claims.access).into(), claims.jti.take().map(Arc::from));
        let verified = VerifiedToken { kid: key.kid, claims: Arc::new(claims), access, token_id };
        self.verified.put(hash, verified.clone());
        Ok(verified)
    }

    /// The key that the token names. The key's own algorithm is the only one accepted.
    fn key(&self, token: &str) -> Result<&CallerKey, InvalidToken> {
        let header = decode_header(token).map_err(|_| InvalidToken::NoJwt)?;
        if header.typ.is_some_and(|typ| !TYPES.contains(&typ.to_ascii_lowercase().as_str())) {
            return Err(InvalidToken::Purpose);
        }
        if header.crit.is_some() {
            return Err(InvalidToken::Critical);
        }
        let kid: Option<Thumbprint> = header.kid.and_then(|kid| kid.parse().ok());
        let key = kid.and_then(|kid| self.keys.get(&kid)).ok_or(InvalidToken::UnknownKey)?;
        if header.alg == algorithm(key.algorithm()) { Ok(key) } else { Err(InvalidToken::Algorithm) }
    }

    fn is_audience(&self, aud: &Audience) -> bool {
        match aud {
            Audience::One(name) => self.names.contains(name),
            Audience::Many(names) => names.iter().any(|name| self.names.contains(name)),
        }
    }
}

fn verified_claims(token: &str, key: &CallerKey) -> Result<CallerClaims, InvalidToken> {
    // The library checks only the signature: the claims type requires what must be there, and times are checked against our clock.
    let mut only_signature = Validation::new(algorithm(key.algorithm()));
    only_signature.required_spec_claims.clear();
    only_signature.validate_exp = false;
    only_signature.validate_aud = false;
    let data = decode::<CallerClaims>(token, &decoding_key(&key.key), &only_signature);
    data.map(|data| data.claims).map_err(|error| match error.kind() {
        ErrorKind::Json(json) => InvalidToken::Claims(FieldError::from(&**json).to_string()),
        _ => InvalidToken::Signature,
    })
}

fn in_time(claims: &CallerClaims, now: Timestamp) -> Result<Timestamp, InvalidToken> {
    let moment = |seconds: u64| Timestamp::from_millis(seconds.saturating_mul(1_000));
    let leeway = u64::try_from(LEEWAY.as_millis()).unwrap_or(u64::MAX);
    let expires_at = Timestamp::from_millis(moment(claims.exp).as_millis().saturating_add(leeway));
    if now >= expires_at {
        return Err(InvalidToken::Expired { at: moment(claims.exp) });
    }
    let from = moment(claims.nbf.unwrap_or(claims.iat).max(claims.iat));
    if from.as_millis() > now.as_millis().saturating_add(leeway) {
        return Err(InvalidToken::NotYetValid { from });
    }
    Ok(expires_at)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
