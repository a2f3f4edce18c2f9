//! Callers' tokens: is it signed by somebody who may vouch, meant for this relay, and good now. What it allows is [`crate::access::policy`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use moorline_proto::claims::{AccessRule, Audience, CallerClaims};
use moorline_proto::id::CallerId;
use moorline_proto::problem::ProblemCode;
use moorline_proto::proof::Thumbprint;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use sha2::{Digest, Sha256};

use crate::access::principal::Caller;
use crate::access::{algorithm, decoding_key};
use crate::clock::Clock;
use crate::store::CallerKey;
use crate::ttl_map::TtlMap;

/// How far the clocks of issuer and relay may differ. 30 s: NTP keeps machines within one; more would be life after expiry.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// A signature is checked once in this time.
const PROVEN_FOR: Duration = Duration::from_secs(60);
/// So many tokens are remembered, of a kilobyte each.
const PROVEN_MOST: usize = 1_000;

/// `typ` that a caller's token may have (RFC 7519, RFC 9068). Another one is a token of another purpose, like a device's proof.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// Who may vouch for callers, and for whom this relay is.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    keys: BTreeMap<Thumbprint, CallerKey>,
    names: Vec<String>,
    clock: Clock,
    /// Tokens whose signature held a moment ago, by their hash. A caller with many streams shows the same one each time.
    proven: Arc<TtlMap<[u8; 32], Proven>>,
}

/// A token whose signature holds; whom it is for and its time are judged at each use.
#[derive(Clone, Debug)]
struct Proven {
    kid: Thumbprint,
    claims: Arc<CallerClaims>,
    access: Arc<[AccessRule]>,
    token_id: Option<Arc<str>>,
}

/// Why a token is not taken. The text is shown to whoever sent the token, and holds nothing of its signature.
#[derive(Debug, thiserror::Error)]
pub enum InvalidToken {
    /// No compact JWS.
    #[error("the token is no signed JWT (three parts in base64url with dots between)")]
    NoJwt,
    /// `typ` of another purpose.
    #[error("the token's typ says that it is for another purpose than calling")]
    Purpose,
    /// `crit`: an extension that must be understood, and is not.
    #[error("the token's header has crit, of which no extension is understood")]
    Critical,
    /// No `kid`, or none that is trusted.
    #[error("the token's kid names no key that this relay trusts")]
    UnknownKey,
    /// `alg` is another than the key's one.
    #[error("the token's alg is not the one of its key")]
    Algorithm,
    /// The signature does not hold.
    #[error("the token's signature does not hold")]
    Signature,
    /// Claims are missing or wrong.
    #[error("the token's claims: {0}")]
    Claims(String),
    /// `iss` is not whom the key belongs to.
    #[error("the token's iss is not the one that its key belongs to")]
    Issuer,
    /// `aud` names somebody else.
    #[error("the token's aud is not a name of this relay")]
    Audience,
    /// The time is over.
    #[error("the token expired at {at}; get a new one")]
    Expired {
        /// Its `exp`.
        at: Timestamp,
    },
    /// The time has not come.
    #[error("the token is valid from {from}; it may be that a clock is wrong")]
    NotYetValid {
        /// Its `nbf`, or `iat`.
        from: Timestamp,
    },
}

impl InvalidToken {
    /// What the caller is told.
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
    /// Takes tokens that one of `keys` signed for one of `names` (lower case), by the time of `clock`.
    pub fn new(keys: Vec<CallerKey>, names: Vec<String>, clock: Clock) -> Self {
        let proven = Arc::new(TtlMap::new(PROVEN_FOR, PROVEN_MOST));
        Self { keys: keys.into_iter().map(|key| (key.kid, key)).collect(), names, clock, proven }
    }

    /// Who sent this token.
    ///
    /// # Errors
    /// [`InvalidToken`], of which [`InvalidToken::problem`] makes the answer.
    pub fn authenticate(&self, bearer: &Secret) -> Result<Caller, InvalidToken> {
        let Proven { kid, claims, access, token_id } = self.proven(bearer.reveal())?; // to the library that checks its signature
        let key = self.keys.get(&kid).ok_or(InvalidToken::UnknownKey)?;
        if claims.iss != key.iss {
            return Err(InvalidToken::Issuer);
        }
        if !self.is_meant(&claims.aud) {
            return Err(InvalidToken::Audience);
        }
        let expires_at = in_time(&claims, self.clock.now())?;
        let id = CallerId { issuer: key.issuer.clone(), subject: claims.sub.clone() };
        Ok(Caller { id, token_id, key_id: kid, access, expires_at })
    }

    fn proven(&self, token: &str) -> Result<Proven, InvalidToken> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(proven) = self.proven.get(&hash) {
            return Ok(proven);
        }
        let key = self.key(token)?;
        let mut claims = verified_claims(token, key)?;
        let (access, token_id) = (std::mem::take(&mut claims.access).into(), claims.jti.take().map(Arc::from));
        let proven = Proven { kid: key.kid, claims: Arc::new(claims), access, token_id };
        self.proven.put(hash, proven.clone());
        Ok(proven)
    }

    /// The key that the token says it was signed with, whose algorithm alone counts.
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

    fn is_meant(&self, aud: &Audience) -> bool {
        match aud {
            Audience::One(name) => self.names.contains(name),
            Audience::Many(names) => names.iter().any(|name| self.names.contains(name)),
        }
    }
}

fn verified_claims(token: &str, key: &CallerKey) -> Result<CallerClaims, InvalidToken> {
    // The library checks the signature alone: our claims type requires what must be there, and the time is our clock's.
    let mut only_signature = Validation::new(algorithm(key.algorithm()));
    only_signature.required_spec_claims.clear();
    only_signature.validate_exp = false;
    only_signature.validate_aud = false;
    let data = decode::<CallerClaims>(token, &decoding_key(&key.key), &only_signature);
    data.map(|data| data.claims).map_err(|error| match error.kind() {
        ErrorKind::Json(json) => InvalidToken::Claims(json.to_string()),
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
