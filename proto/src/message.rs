//! Decoding of text messages and bodies: first the `type`, then the fields of that type. So an unknown type is not an error, and an error
//! in a known type names the field.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::text::{QUOTED_CHARS, printable};

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// A type of this version.
    Known(T),
    /// A type of a later version, to be ignored. Holds at most [`QUOTED_CHARS`] printable characters of its name.
    Unknown(String),
}

/// Why text is not a message. Its `Display` is sent to the peer as the reason of close 4400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Larger than a message of this kind may be.
    #[error("{got} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size in bytes.
        got: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not a JSON object with a `type` that is a string.
    #[error("not a JSON object with a type")]
    NoType,
    /// A field of a known type is missing or invalid.
    #[error("{kind}: {error}")]
    Field {
        /// The message's type.
        kind: &'static str,
        /// The field, and what is wrong with it.
        error: FieldError,
    },
}

/// A field is missing or invalid. Shows at most [`QUOTED_CHARS`] characters of the peer's text, all of them printable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{detail}", if field == "." { String::new() } else { format!("{field}: ") })]
pub struct FieldError {
    /// Path of the field, `.` for the message as a whole.
    pub field: String,
    /// What is wrong.
    pub detail: String,
}

impl MessageError {
    /// The variant as text, for vectors and tests: `too_large`, `no_type`, or `field` with its path.
    pub fn kind(&self) -> String {
        match self {
            Self::TooLarge { .. } => "too_large".to_owned(),
            Self::NoType => "no_type".to_owned(),
            Self::Field { error, .. } => format!("field {}", error.field),
        }
    }
}

#[derive(Deserialize)]
struct Head {
    r#type: String,
}

/// Decodes the message's type.
///
/// # Errors
/// [`MessageError::TooLarge`], [`MessageError::NoType`].
pub(crate) fn type_of(text: &str, max: usize) -> Result<String, MessageError> {
    if text.len() > max {
        return Err(MessageError::TooLarge { got: text.len(), max });
    }
    // serde reads an array as a struct, field by field.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(MessageError::NoType);
    }
    serde_json::from_str::<Head>(text).map(|head| head.r#type).map_err(|_| MessageError::NoType)
}

/// Decodes the fields of a message of this type.
///
/// # Errors
/// [`MessageError::Field`].
pub(crate) fn fields<T: DeserializeOwned>(kind: &'static str, text: &str) -> Result<T, MessageError> {
    decode_body(text.as_bytes()).map_err(|error| MessageError::Field { kind, error })
}

/// Decodes the body of a request or response, which must be one JSON object.
///
/// # Errors
/// [`FieldError`], with the path of the field that is missing or invalid.
pub fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FieldError> {
    // serde reads an array as a struct, field by field.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(FieldError::of_the_whole("not a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let body = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        FieldError::new(field, &error.into_inner())
    })?;
    json.end().map_err(|_| FieldError::of_the_whole("more than one JSON object"))?;
    Ok(body)
}

impl From<&serde_json::Error> for FieldError {
    /// The error of a parser that tells no path.
    fn from(error: &serde_json::Error) -> Self {
        Self::new(".".to_owned(), error)
    }
}

impl FieldError {
    fn of_the_whole(detail: &str) -> Self {
        Self { field: ".".to_owned(), detail: detail.to_owned() }
    }

    /// Converts the parser's error: the words of the protocol take the place of the parser's own.
    fn new(field: String, error: &serde_json::Error) -> Self {
        let detail = error.to_string();
        // Line and column mean nothing for a message.
        let detail = detail.rsplit_once(" at line ").map_or(detail.as_str(), |(detail, _)| detail);
        if !error.is_data() && detail != OUT_OF_RANGE {
            return Self::of_the_whole("not a JSON object");
        }
        let named = |begins: &str| detail.strip_prefix(begins)?.strip_suffix('`');
        let (inside, detail) = match (named("missing field `"), named("duplicate field `")) {
            (Some(missing), _) => (Some(missing), "is missing".into()),
            (None, Some(repeated)) => (Some(repeated), "stands twice".into()),
            (None, None) => (None, in_words(detail)),
        };
        let field = match (field.as_str(), inside) {
            (_, None) => field,
            (".", Some(inside)) => inside.to_owned(),
            (_, Some(inside)) => format!("{field}.{inside}"),
        };
        Self { field: printable(&field, QUOTED_CHARS), detail: printable(&detail, DETAIL_CHARS) }
    }
}

/// Characters of what an error says about a field.
const DETAIL_CHARS: usize = 160;

/// serde_json's error for a number that no `f64` holds: the only one about a value that it does not count as an error of data.
const OUT_OF_RANGE: &str = "number out of range";

/// What is wrong with a field. serde quotes what it found and names types of this program; both are left out. Errors of this crate's own
/// types say what is wrong in the protocol's words, and stay as they are.
fn in_words(detail: &str) -> Cow<'_, str> {
    if detail.starts_with("unknown field `") {
        return "is not known".into();
    }
    let is_mismatch = ["invalid type: ", "invalid value: ", "invalid length "].iter().any(|begins| detail.starts_with(begins));
    match detail.rsplit_once(", expected ") {
        Some((_, expected)) if is_mismatch => format!("not {}", form(expected)).into(),
        _ => detail.into(),
    }
}

/// serde's name for a form, as docs/PROTOCOL.md calls it.
fn form(expected: &str) -> &str {
    match expected {
        "a string" | "string" | "str" | "a borrowed string" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" => "a whole number",
        "f32" | "f64" => "a number",
        other if other.starts_with("struct ") || other.contains("tagged enum ") => "an object",
        other => other,
    }
}

pub(crate) fn unknown<T>(kind: &str) -> Decoded<T> {
    Decoded::Unknown(printable(kind, QUOTED_CHARS))
}

/// Defines an enum of messages tagged by `type`, with `encode` and `decode`.
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

            /// Encodes the message as text.
            pub fn encode(&self) -> String {
                serde_json::to_string(self).expect("messages have string keys and no values that JSON lacks")
            }

            /// Decodes a message.
            ///
            /// # Errors
            /// [`crate::message::MessageError`]: the text is too large or not a message, or a field of a known type is missing or invalid.
            pub fn decode(text: &str) -> Result<crate::message::Decoded<Self>, crate::message::MessageError> {
                let kind = crate::message::type_of(text, $max)?;
                match kind.as_str() {
                    $($tag => crate::message::fields::<$body>($tag, text).map(|body| crate::message::Decoded::Known(Self::$variant(body))),)+
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
