//! Reading a text message: first its `type`, then the fields of that type, so that an unknown type is no error and a known one's error names the field.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::text::{QUOTED_CHARS, printable};

/// A message as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// A type of this version.
    Known(T),
    /// A type of a later version, to be ignored and counted. Holds at most 64 characters of its name, all of them printable.
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
    #[error("{kind}: {error}")]
    Field {
        /// The message's type.
        kind: &'static str,
        /// Which field, and what is wrong with it.
        error: FieldError,
    },
}

/// A field that is missing or wrong. The text holds at most 64 characters of what the peer sent, all of them printable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{detail}", if field == "." { String::new() } else { format!("{field}: ") })]
pub struct FieldError {
    /// Path of the field, `.` where the message as a whole is meant.
    pub field: String,
    /// What is wrong.
    pub detail: String,
}

impl MessageError {
    /// The variant as a word, for vectors and tests: `too_large`, `no_type`, or `field` with its path.
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
    decode_body(text.as_bytes()).map_err(|error| MessageError::Field { kind, error })
}

/// Reads a JSON object: the body of a request or of an answer.
///
/// # Errors
/// [`FieldError`], with the path of the field that is wrong or missing.
pub fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FieldError> {
    let whole = |detail: &str| FieldError { field: ".".to_owned(), detail: detail.to_owned() };
    // serde would take `["ssh"]` for an object, field by field.
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

/// Makes serde's words fit to be shown: without the place in the text, which says nothing to somebody who sent one line, and with no
/// more of the peer's text than an error may hold.
fn field_error(mut field: String, detail: &str) -> FieldError {
    let detail = detail.rsplit_once(" at line ").map_or(detail, |(detail, _)| detail);
    match (field.as_str(), missing_field(detail)) {
        (_, None) => {}
        (".", Some(missing)) => field = missing.to_owned(),
        (_, Some(missing)) => field = format!("{field}.{missing}"),
    }
    FieldError { field: printable(&field, QUOTED_CHARS), detail: shortened(&without_name(detail)) }
}

/// The name of an unknown field is the peer's text, and stands in the path already.
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

/// The longest text around a quotation: serde's lists of what would be right are cut there.
const AROUND_QUOTED_CHARS: usize = 128;

/// serde quotes what it found, whole: `invalid type: string "…", expected u64`, ``unknown field `…`, expected one of …``. What stands
/// between the first mark and the last one before `expected` is the peer's.
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
