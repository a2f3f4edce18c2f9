//! Identifiers: device ids, service names, stream ids, nodes and callers. Each can only be made from valid text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::bounds::{
    DEVICE_ID_CHARS, FEATURE_CHARS, INSTANCE_MAX_CHARS, INSTANCE_MIN_CHARS, SERVICE_NAME_CHARS, SHORT_NAME_CHARS, SUBJECT_CHARS,
};

/// Why text is not a valid name. The error names the rule that is violated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too short or too long.
    #[error("{kind} must have {min} to {max} characters, this has {got}")]
    Length {
        /// The kind of name.
        kind: &'static str,
        /// Number of characters.
        got: usize,
        /// Minimum.
        min: usize,
        /// Maximum.
        max: usize,
    },
    /// Upper case, which ssh does not preserve in host names.
    #[error("{kind} must be lower case (ssh and DNS convert names to lower case): found {found:?} at character {at}")]
    UpperCase {
        /// The kind of name.
        kind: &'static str,
        /// The letter.
        found: char,
        /// Its position, from 1.
        at: usize,
    },
    /// A character that is not allowed.
    #[error("{kind} may contain only {allowed}: found {found:?} at character {at}")]
    Character {
        /// The kind of name.
        kind: &'static str,
        /// The allowed characters.
        allowed: &'static str,
        /// The character.
        found: char,
        /// Its position, from 1.
        at: usize,
    },
    /// The first or the last character is not a letter or digit.
    #[error("{kind} must begin and end with a letter or digit")]
    Edge {
        /// The kind of name.
        kind: &'static str,
    },
    /// Two dots in a row.
    #[error("{kind} must not contain '..'")]
    DoubleDot {
        /// The kind of name.
        kind: &'static str,
    },
}

/// The rule for a kind of name.
struct Rule {
    kind: &'static str,
    min: usize,
    max: usize,
    allowed: &'static str,
    is_allowed: fn(u8) -> bool,
    alphanumeric_edges: bool,
}

impl Rule {
    fn check(&self, text: &str) -> Result<(), NameError> {
        let kind = self.kind;
        let got = text.chars().count();
        if got < self.min || got > self.max {
            return Err(NameError::Length { kind, got, min: self.min, max: self.max });
        }
        for (at, found) in text.chars().enumerate().map(|(index, found)| (index + 1, found)) {
            let ok = u8::try_from(found).is_ok_and(self.is_allowed);
            if !ok && found.is_ascii_uppercase() && (self.is_allowed)(found.to_ascii_lowercase() as u8) {
                return Err(NameError::UpperCase { kind, found, at });
            }
            if !ok {
                return Err(NameError::Character { kind, allowed: self.allowed, found, at });
            }
        }
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        if self.alphanumeric_edges && !(edge(text.bytes().next()) && edge(text.bytes().next_back())) {
            return Err(NameError::Edge { kind });
        }
        // Where a name may begin with a dot, dots have no special meaning.
        if self.alphanumeric_edges && text.contains("..") {
            return Err(NameError::DoubleDot { kind });
        }
        Ok(())
    }
}

fn is_dashed(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')
}

fn is_dotted(byte: u8) -> bool {
    is_dashed(byte) || matches!(byte, b'_' | b'.')
}

/// Defines a name kept as shared text. `FromStr` and serde check the same rule.
macro_rules! name {
    ($(#[$meta:meta])* $name:ident, $rule:expr) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            const RULE: Rule = $rule;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::RULE.check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

name!(
    /// A device's id, as used in URLs, tokens and logs.
    ///
    /// 1 to 128 characters of `a-z`, `0-9`, `-`, `_`, `.`; letters or digits at both ends, no `..`. Cheap to clone.
    DeviceId,
    Rule {
        kind: "a device id",
        min: 1,
        max: DEVICE_ID_CHARS,
        allowed: "a-z 0-9 - _ .",
        is_allowed: is_dotted,
        alphanumeric_edges: true
    }
);

name!(
    /// The name of a service that a device exposes. 1 to 32 characters of `a-z`, `0-9`, `-`; letters or digits at both ends.
    ServiceName,
    Rule {
        kind: "a service name",
        min: 1,
        max: SERVICE_NAME_CHARS,
        allowed: "a-z 0-9 -",
        is_allowed: is_dashed,
        alphanumeric_edges: true
    }
);

name!(
    /// The id of a relay process. 1 to 32 characters of `a-z`, `0-9`, `-`; letters or digits at both ends.
    NodeId,
    Rule { kind: "a node id", min: 1, max: SHORT_NAME_CHARS, allowed: "a-z 0-9 -", is_allowed: is_dashed, alphanumeric_edges: true }
);

name!(
    /// The operator's short name for an issuer of callers' tokens; never its URL. 1 to 32 characters of `a-z`, `0-9`, `-`.
    Issuer,
    Rule {
        kind: "an issuer's short name",
        min: 1,
        max: SHORT_NAME_CHARS,
        allowed: "a-z 0-9 -",
        is_allowed: is_dashed,
        alphanumeric_edges: true
    }
);

name!(
    /// A caller's name at its issuer. 1 to 256 characters of visible ASCII.
    Subject,
    Rule {
        kind: "a subject",
        min: 1,
        max: SUBJECT_CHARS,
        allowed: "visible ASCII characters",
        is_allowed: |byte| byte.is_ascii_graphic(),
        alphanumeric_edges: false
    }
);

name!(
    /// Random text that an agent draws at each start. 16 to 64 lower-case hex digits.
    Instance,
    Rule {
        kind: "an instance",
        min: INSTANCE_MIN_CHARS,
        max: INSTANCE_MAX_CHARS,
        allowed: "0-9 a-f",
        is_allowed: |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        alphanumeric_edges: false
    }
);

name!(
    /// An optional feature, used if both sides support it.
    ///
    /// 1 to 32 characters of `a-z`, `0-9`, `-`, `_`, `.`; letters or digits at both ends, no `..`.
    Feature,
    Rule {
        kind: "a feature",
        min: 1,
        max: FEATURE_CHARS,
        allowed: "a-z 0-9 - _ .",
        is_allowed: is_dotted,
        alphanumeric_edges: true
    }
);

/// A caller: issuer and subject, printed as `corp:alice@example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerId {
    /// The issuer that authenticated the subject.
    pub issuer: Issuer,
    /// The caller's name at that issuer.
    pub subject: Subject,
}

impl fmt::Display for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.issuer, self.subject)
    }
}

/// The id of a stream: 128 random bits, 32 lower-case hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamId([u8; 16]);

/// The text is not a stream id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stream id is 32 lower-case hex digits")]
pub struct StreamIdError;

impl StreamId {
    /// From the bits, which must be random.
    pub const fn from_bytes(bits: [u8; 16]) -> Self {
        Self(bits)
    }
}

impl FromStr for StreamId {
    type Err = StreamIdError;

    fn from_str(text: &str) -> Result<Self, StreamIdError> {
        let mut bits = [0; 16];
        if text.len() != 32 {
            return Err(StreamIdError);
        }
        HEXLOWER.decode_mut(text.as_bytes(), &mut bits).map_err(|_| StreamIdError)?;
        Ok(Self(bits))
    }
}

impl TryFrom<String> for StreamId {
    type Error = StreamIdError;

    fn try_from(text: String) -> Result<Self, StreamIdError> {
        text.parse()
    }
}

impl From<StreamId> for String {
    fn from(stream: StreamId) -> Self {
        HEXLOWER.encode(&stream.0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}
