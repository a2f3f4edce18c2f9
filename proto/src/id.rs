//! What things are called: device ids, service names, stream ids, nodes and callers. Each can only be made from text that keeps its rules.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::bounds::{
    DEVICE_ID_CHARS, FEATURE_CHARS, INSTANCE_MAX_CHARS, INSTANCE_MIN_CHARS, SERVICE_NAME_CHARS, SHORT_NAME_CHARS, SUBJECT_CHARS,
};

/// Why text is no name of its kind. The text of the error names the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too short or too long.
    #[error("{kind} must have {min} to {max} characters, this has {got}")]
    Length {
        /// What the text should have been.
        kind: &'static str,
        /// Characters that it has.
        got: usize,
        /// Fewest that it may have.
        min: usize,
        /// Most that it may have.
        max: usize,
    },
    /// Upper case, which host names in ssh do not keep.
    #[error("{kind} is written in lower case (ssh and DNS lower-case names): found {found:?} at character {at}")]
    UpperCase {
        /// What the text should have been.
        kind: &'static str,
        /// The letter.
        found: char,
        /// Where it stands, from 1.
        at: usize,
    },
    /// A character that has no place in it.
    #[error("{kind} may have {allowed} only: found {found:?} at character {at}")]
    Character {
        /// What the text should have been.
        kind: &'static str,
        /// The characters that may stand in it.
        allowed: &'static str,
        /// The one that may not.
        found: char,
        /// Where it stands, from 1.
        at: usize,
    },
    /// The first or the last character is no letter and no digit.
    #[error("{kind} must begin and end with a letter or digit")]
    Edge {
        /// What the text should have been.
        kind: &'static str,
    },
    /// Two dots in a row.
    #[error("{kind} must not contain '..'")]
    DoubleDot {
        /// What the text should have been.
        kind: &'static str,
    },
}

/// The rule that a kind of name keeps.
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
        // A dot is an ordinary character where a name may begin with one.
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

/// A name kept as shared text; parsing, printing and serde go through the same door.
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
    /// A device's name, as it stands in URLs, tokens and logs.
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
    /// What a device exposes. 1 to 32 characters of `a-z`, `0-9`, `-`; letters or digits at both ends.
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
    /// One process of the relay. 1 to 32 characters of `a-z`, `0-9`, `-`; letters or digits at both ends.
    NodeId,
    Rule { kind: "a node id", min: 1, max: SHORT_NAME_CHARS, allowed: "a-z 0-9 -", is_allowed: is_dashed, alphanumeric_edges: true }
);

name!(
    /// The operator's short name for who issues callers' tokens; never its URL. 1 to 32 characters of `a-z`, `0-9`, `-`.
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
    /// Who a caller is at its issuer. 1 to 256 characters of visible ASCII.
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
    /// Random per start of an agent. 16 to 64 lower-case hex digits.
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
    /// Something that both sides must know in order to use it.
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

/// Who asks for a stream: printed `corp:alice@example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerId {
    /// Who vouches for the subject.
    pub issuer: Issuer,
    /// Who it is there.
    pub subject: Subject,
}

impl fmt::Display for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.issuer, self.subject)
    }
}

/// 128 random bits that name a stream; 32 lower-case hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamId([u8; 16]);

/// Text that is no stream id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stream id is 32 lower-case hex digits")]
pub struct StreamIdError;

impl StreamId {
    /// From the bits, which whoever calls has drawn at random.
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
