//! Tokens that a relay's operator issues to callers. Needs the state folder alone: it reads the configuration and the signing key, takes
//! no lock, and works whether the relay runs or not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use moorline_files::{PrivateFileError, read_private};
use moorline_proto::claims::{AccessRule, Action, Audience, CallerClaims, Pattern};
use moorline_proto::id::Subject;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;

use crate::access::mint::{SigningKey, SigningKeyError};
use crate::config::{Config, ConfigError};
use crate::random;

/// Name of the signing key in a state folder.
pub const SIGNING_KEY_FILE: &str = "signing.key";

/// Largest file of a signing key.
const MAX_KEY_BYTES: usize = 16 * 1024;

/// The longest token that fits into `Authorization: Bearer …`: a longer one would be refused by every relay.
const MAX_BYTES: usize = 8 * 1024 - "Bearer ".len();

/// The longest lifetime of a token: a hundred years.
pub const MAX_LIFETIME: Duration = Duration::from_secs(100 * 31_557_600);

/// What a token is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Who it is for.
    pub subject: Subject,
    /// What it allows.
    pub access: AccessRule,
    /// For how long from now: 1 s to [`MAX_LIFETIME`], whole seconds.
    pub lifetime: Duration,
}

impl TokenRequest {
    /// A token for the operator: everything, everywhere.
    pub fn operator(lifetime: Duration) -> Self {
        let any = || vec![Pattern::any()];
        let subject = "operator".parse().expect("eight visible characters are a subject");
        Self { subject, access: AccessRule { actions: Action::ALL.to_vec(), devices: any(), services: any() }, lifetime }
    }
}

/// A token that was issued.
#[derive(Debug)]
pub struct IssuedToken {
    /// The token.
    pub token: Secret,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The folder's configuration cannot be used.
    #[error("the relay's configuration could not be used")]
    Config(#[source] ConfigError),
    /// The signing key cannot be read, or others can read it.
    #[error("the signing key cannot be used")]
    KeyFile(#[source] PrivateFileError),
    /// The signing key is not a key, or cannot sign.
    #[error("{} is not a usable key", file.display())]
    Key {
        /// The key's file.
        file: PathBuf,
        /// Why.
        #[source]
        source: SigningKeyError,
    },
    /// No token lives so short or so long.
    #[error("a token lives from 1s to {}, not {}", humantime::format_duration(MAX_LIFETIME), humantime::format_duration(*got))]
    Lifetime {
        /// The lifetime that was asked for.
        got: Duration,
    },
    /// The token has so many patterns that relays would refuse it.
    #[error("the token would have {got} bytes; relays accept at most {MAX_BYTES}")]
    TooLong {
        /// Its length in bytes.
        got: usize,
    },
}

impl TokenError {
    /// What to do about it.
    pub fn advice(&self) -> String {
        let advice = match self {
            Self::Config(_) => "give --state the folder that `moorline-relay init` made, as the user that owns it",
            Self::KeyFile(error @ PrivateFileError::Mode { .. }) => {
                return format!("{}; if others may have read it, make a new relay: every token that it signed is in doubt", error.advice());
            }
            Self::KeyFile(error) => return error.advice(),
            Self::Key { .. } => "restore the key from your backup; a new key would invalidate every token",
            Self::Lifetime { .. } => "give another lifetime, like 12h or 30days",
            Self::TooLong { .. } => "name fewer devices and services, or use patterns like lamp-*",
        };
        advice.to_owned()
    }
}

/// Issues a token, signed with the key in the state folder.
///
/// Blocks on the disk.
///
/// # Errors
/// [`TokenError`].
pub fn mint(state: &Path, request: &TokenRequest, now: Timestamp) -> Result<IssuedToken, TokenError> {
    let config = Config::load(state).map_err(TokenError::Config)?;
    let file = state.join(SIGNING_KEY_FILE);
    let key = signing_key(&file)?;
    sign(&key, &config.own_iss(), &config.names, request, now).map_err(|error| error.with_file(file))
}

fn signing_key(file: &Path) -> Result<SigningKey, TokenError> {
    let pem = read_private(file, MAX_KEY_BYTES).map_err(TokenError::KeyFile)?;
    let unusable = |source| TokenError::Key { file: file.into(), source };
    let text = std::str::from_utf8(&pem).map_err(|_| unusable(SigningKeyError::NotPem))?;
    SigningKey::from_pem(&Secret::new(text)).map_err(unusable)
}

/// What to do about a private file that was refused.
pub(crate) fn advice_on_private_file(error: &PrivateFileError) -> String {
    match error {
        PrivateFileError::Mode { .. } => format!("{}; replace what is in it if others may have read it", error.advice()),
        _ => error.advice(),
    }
}

/// Why a token was not signed, without the key's file, which [`sign`] does not know.
#[derive(Debug)]
pub(crate) enum SignError {
    /// The key cannot sign.
    Key(SigningKeyError),
    /// See [`TokenError::Lifetime`].
    Lifetime(Duration),
    /// See [`TokenError::TooLong`].
    TooLong(usize),
}

impl SignError {
    pub(crate) fn with_file(self, file: PathBuf) -> TokenError {
        match self {
            Self::Key(source) => TokenError::Key { file, source },
            Self::Lifetime(got) => TokenError::Lifetime { got },
            Self::TooLong(got) => TokenError::TooLong { got },
        }
    }
}

/// Signs a token as issuer `iss`, for a relay with these names.
pub(crate) fn sign(
    key: &SigningKey,
    iss: &str,
    names: &[String],
    request: &TokenRequest,
    now: Timestamp,
) -> Result<IssuedToken, SignError> {
    if request.lifetime.as_secs() == 0 || request.lifetime > MAX_LIFETIME {
        return Err(SignError::Lifetime(request.lifetime));
    }
    let iat = now.as_millis() / 1_000;
    let exp = iat.saturating_add(request.lifetime.as_secs());
    let token = key.mint(&CallerClaims {
        iss: iss.to_owned(),
        sub: request.subject.clone(),
        aud: Audience::Many(names.to_vec()),
        exp,
        iat,
        nbf: None,
        jti: Some(HEXLOWER.encode(&random::bytes::<16>())),
        access: vec![request.access.clone()],
    });
    let token = token.map_err(SignError::Key)?;
    let bytes = token.reveal().len(); // its length alone
    if bytes > MAX_BYTES {
        return Err(SignError::TooLong(bytes));
    }
    Ok(IssuedToken { token, expires_at: Timestamp::from_millis(exp.saturating_mul(1_000)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_checked_and_never_overflow() {
        let key = SigningKey::generate().unwrap();
        let now = Timestamp::from_millis(u64::MAX); // the end of the year 9999
        let lives =
            |lifetime| sign(&key, "moorline:relay:relay", &[], &TokenRequest::operator(lifetime), now).map(|token| token.expires_at);
        for lifetime in [Duration::ZERO, Duration::from_millis(999), MAX_LIFETIME + Duration::from_nanos(1), Duration::MAX] {
            let refused = lives(lifetime).map_err(|error| error.with_file(PathBuf::new()));
            assert!(matches!(refused, Err(TokenError::Lifetime { got }) if got == lifetime), "{refused:?}");
        }
        for lifetime in [Duration::from_secs(1), MAX_LIFETIME] {
            assert_eq!(lives(lifetime).unwrap(), now);
        }
    }
}
