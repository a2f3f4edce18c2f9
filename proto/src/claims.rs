//! Claims of callers' tokens, and the access rules in them. Issuers and signatures are verified by the relay.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use crate::bounds::{EPOCH_MAX_S, ISS_CHARS, JTI_CHARS};
use crate::code::codes;
use crate::id::Subject;
use crate::secret::Secret;
use crate::text::{bounded, bounded_if_any};
use crate::timestamp::Timestamp;
use crate::whole::{between, between_if_any};

/// The claims of a caller's token (RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerClaims {
    /// The issuer's own identifier, which the relay's configuration maps to a short name.
    #[serde(deserialize_with = "bounded::<_, ISS_CHARS>")]
    pub iss: String,
    /// The caller.
    pub sub: Subject,
    /// The audience: one of the relay's names.
    pub aud: Audience,
    /// Expiry, in seconds since 1970. This and the other times are clamped to the year 9999.
    #[serde(deserialize_with = "between::<_, 0, EPOCH_MAX_S>")]
    pub exp: u64,
    /// Time of issue, in seconds since 1970.
    #[serde(deserialize_with = "between::<_, 0, EPOCH_MAX_S>")]
    pub iat: u64,
    /// Not valid before, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, EPOCH_MAX_S>")]
    pub nbf: Option<u64>,
    /// Id of the token, for the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded_if_any::<_, JTI_CHARS>")]
    pub jti: Option<String>,
    /// What a token that the relay minted allows. Everything else is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<AccessRule>,
}

/// When a token says that it expires. Nothing is verified: for messages to whoever holds the token. `None` for a token without a readable `exp`.
pub fn unverified_expiry(token: &Secret) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Expiry {
        exp: u64,
    }
    let payload = token.reveal().split('.').nth(1)?; // into memory that is zeroed
    let payload = Zeroizing::new(BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?);
    let Expiry { exp } = serde_json::from_slice(&payload).ok()?;
    Some(Timestamp::from_millis(exp.saturating_mul(1_000)))
}

/// One name, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "neither a text nor a list of texts")]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

codes! {
    /// What an access rule allows.
    pub enum Action {
        /// Open a stream.
        StreamOpen = "stream.open",
        /// See live streams.
        StreamList = "stream.list",
        /// End a live stream.
        StreamEnd = "stream.end",
        /// See devices of the registry.
        DeviceRead = "device.read",
        /// Add, change and remove devices.
        DeviceWrite = "device.write",
    }
}

/// Allows the actions on devices and services that match. An unknown member makes the whole token invalid: a restriction that is not
/// understood must not be ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// The allowed actions.
    pub actions: Vec<Action>,
    /// Patterns of device ids; one must match.
    pub devices: Vec<Pattern>,
    /// Patterns of service names; one must match where the action concerns a service.
    #[serde(default)]
    pub services: Vec<Pattern>,
}

/// A name in which `*` matches any characters, or none: `lamp-*`, `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// The text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern has 1 to 128 characters of a-z 0-9 - _ . and *")]
pub struct PatternError;

impl Pattern {
    /// Matches every name.
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// Whether the name matches. Takes at most time proportional to the product of both lengths.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            if pattern.get(p) == Some(&b'*') {
                star = Some((p, n));
                p += 1;
            } else if pattern.get(p) == Some(&name[n]) {
                p += 1;
                n += 1;
            } else if let Some((star_p, star_n)) = star {
                star = Some((star_p, star_n + 1));
                p = star_p + 1;
                n = star_n + 1;
            } else {
                return false;
            }
        }
        pattern[p..].iter().all(|&byte| byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let ok = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*');
        if text.is_empty() || text.len() > crate::bounds::DEVICE_ID_CHARS || !text.bytes().all(ok) {
            return Err(PatternError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_end_is_read_where_there_is_one() {
        let token = |payload: &str| Secret::new(format!("eyJ.{}.c2ln", BASE64URL_NOPAD.encode(payload.as_bytes())));
        assert_eq!(unverified_expiry(&token(r#"{"sub":1,"exp":1790000000}"#)), Some(Timestamp::from_millis(1_790_000_000_000)));
        assert_eq!(unverified_expiry(&token(&format!(r#"{{"exp":{}}}"#, u64::MAX))), Some(Timestamp::from_millis(u64::MAX)));
        for none in [token("{}"), token(r#"{"exp":"soon"}"#), token(r#"{"exp":-1}"#), token("x"), Secret::new("word"), Secret::new("a.%.c")]
        {
            assert_eq!(unverified_expiry(&none), None);
        }
    }
}
