//! Reading a text message: first its `type`, then the fields of that type, so that an unknown type is no error and a known one's error names the field.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A message as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// A type of this version.
    Known(T),
    /// A type of a later version, to be ignored and counted. Holds at most 64 characters of its name.
    Unknown(String),
}

/// Why text is no message. What is shown to the peer (`reason` of close 4400) is the `Display` of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// More bytes than a message of its place may have.
    #[error("{got} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes that there were.
        got: usize,
        /// Bytes that there may be.
        max: usize,
    },
    /// No JSON object with a `type` that is a string.
    #[error("not a JSON object with a type")]
    NoType,
    /// A field of a known type is missing or wrong.
    #[error("{kind}: {field}: {detail}")]
    Field {
        /// The message's type.
        kind: &'static str,
        /// Path of the field, `.` where the message as a whole is meant.
        field: String,
        /// What is wrong.
        detail: String,
    },
}

impl MessageError {
    /// The variant as a word, for vectors and tests: `too_large`, `no_type`, or `field` with its path.
    pub fn kind(&self) -> String {
        match self {
            Self::TooLarge { .. } => "too_large".to_owned(),
            Self::NoType => "no_type".to_owned(),
            Self::Field { field, .. } => format!("field {field}"),
        }
    }
}

#[derive(Deserialize)]
struct Head {
    r#type: String,
}

/// The message's type.
///
/// # Errors
/// [`MessageError::TooLarge`], [`MessageError::NoType`].
pub(crate) fn type_of(text: &str, max: usize) -> Result<String, MessageError> {
    if text.len() > max {
        return Err(MessageError::TooLarge { got: text.len(), max });
    }
    // serde would take `["end"]` for a `Head`, field by field.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(MessageError::NoType);
    }
    serde_json::from_str::<Head>(text).map(|head| head.r#type).map_err(|_| MessageError::NoType)
}

/// The fields of a message whose type is known by now.
///
/// # Errors
/// [`MessageError::Field`].
pub(crate) fn fields<T: DeserializeOwned>(kind: &'static str, text: &str) -> Result<T, MessageError> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let mut field = error.path().to_string();
        let detail = plain_detail(&error.into_inner());
        match (field.as_str(), missing_field(&detail)) {
            (_, None) => {}
            (".", Some(missing)) => field = missing.to_owned(),
            (_, Some(missing)) => field = format!("{field}.{missing}"),
        }
        MessageError::Field { kind, field, detail }
    })
}

/// serde_json's words without the place in the text, which says nothing to somebody who sent one line.
fn plain_detail(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(detail, _)| detail).to_owned()
}

fn missing_field(detail: &str) -> Option<&str> {
    detail.strip_prefix("missing field `")?.strip_suffix('`')
}

pub(crate) fn unknown<T>(kind: &str) -> Heard<T> {
    Heard::Unknown(kind.chars().take(64).collect())
}

/// Makes an enum of messages tagged by `type`, with `encode` and `decode`.
macro_rules! messages {
    ($(#[$meta:meta])* pub enum $name:ident at most $max:expr; { $($(#[$vmeta:meta])* $variant:ident($body:ty) = $tag:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
        #[serde(tag = "type")]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $tag)] $variant($body),)+ }

        impl $name {
            /// Every `type` of this direction.
            pub const TYPES: &'static [&'static str] = &[$($tag,)+];

            /// The message's `type`.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $tag,)+ }
            }

            /// The message as text.
            pub fn encode(&self) -> String {
                serde_json::to_string(self).expect("messages have string keys and no values that JSON lacks")
            }

            /// Reads a message.
            ///
            /// # Errors
            /// [`crate::message::MessageError`]: text that is too large or no message, or a known type with a wrong or missing field.
            pub fn decode(text: &str) -> Result<crate::message::Heard<Self>, crate::message::MessageError> {
                let kind = crate::message::type_of(text, $max)?;
                match kind.as_str() {
                    $($tag => crate::message::fields::<$body>($tag, text).map(|body| crate::message::Heard::Known(Self::$variant(body))),)+
                    other => Ok(crate::message::unknown(other)),
                }
            }
        }

        $(impl From<$body> for $name {
            fn from(body: $body) -> Self {
                Self::$variant(body)
            }
        })+
    };
}
pub(crate) use messages;
