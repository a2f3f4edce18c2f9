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
    let whole = |detail: &str| FieldError { field: ".".to_owned(), detail: detail.to_owned() };
    // serde reads an array as a struct, field by field.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(whole("not a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let body = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        field_error(field, &error.into_inner().to_string())
    })?;
    json.end().map_err(|_| whole("more than one JSON object"))?;
    Ok(body)
}

/// Converts serde's error. Drops the line and column, which mean nothing for a message, and bounds what is quoted of the peer's text.
fn field_error(mut field: String, detail: &str) -> FieldError {
    let detail = detail.rsplit_once(" at line ").map_or(detail, |(detail, _)| detail);
    match (field.as_str(), missing_field(detail)) {
        (_, None) => {}
        (".", Some(missing)) => field = missing.to_owned(),
        (_, Some(missing)) => field = format!("{field}.{missing}"),
    }
    FieldError { field: printable(&field, QUOTED_CHARS), detail: shortened(&without_name(detail)) }
}

/// Drops the name of an unknown field: it is the peer's text, and the path has it already.
fn without_name(detail: &str) -> Cow<'_, str> {
    if !detail.starts_with("unknown field `") {
        return Cow::Borrowed(detail);
    }
    let expected = detail.rfind("`, expected ").map_or("", |at| &detail[at + 1..]);
    Cow::Owned(format!("unknown field{expected}"))
}

fn missing_field(detail: &str) -> Option<&str> {
    detail.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Limit for the text around a quotation, such as serde's list of expected fields.
const AROUND_QUOTED_CHARS: usize = 128;

/// serde quotes the whole value that it found: `invalid type: string "…", expected u64`. Everything between the first quotation mark and
/// the last one before `expected` is taken as the peer's text and truncated.
fn shortened(detail: &str) -> String {
    let (found, expected) = detail.rsplit_once(", expected ").map_or((detail, None), |(found, expected)| (found, Some(expected)));
    let quoted = found.find(['"', '`']).map(|at| (at + 1, found.rfind(['"', '`']).unwrap_or(at)));
    let mut text = match quoted {
        Some((from, to)) if from <= to => {
            let (before, inside, after) = (&found[..from], &found[from..to], &found[to..]);
            let cut = if inside.chars().nth(QUOTED_CHARS).is_some() { "…" } else { "" };
            format!("{}{}{cut}{}", printable(before, AROUND_QUOTED_CHARS), printable(inside, QUOTED_CHARS), printable(after, 1))
        }
        _ => printable(found, AROUND_QUOTED_CHARS),
    };
    if let Some(expected) = expected {
        text.push_str(", expected ");
        text.push_str(&printable(expected, AROUND_QUOTED_CHARS));
    }
    text
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
