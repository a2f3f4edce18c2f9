//! Texts and lists with a bound, and opaque data: the small shapes that messages are made of.

use std::fmt;

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::bounds::DATA_BYTES;

/// A word that is not in the list it should be from. Shows at most 64 characters of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown word {0:?}")]
pub struct UnknownWord(pub String);

/// Text of at most `MAX` characters. Longer text is refused when it is read, and cut by [`Text::cut`] when it is made here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Text<const MAX: usize>(String);

/// A text had more characters than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} characters, at most {max} are allowed")]
pub struct TooLong {
    /// How many characters there were.
    pub got: usize,
    /// How many there may be.
    pub max: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// The text, if it is short enough.
    ///
    /// # Errors
    /// [`TooLong`] with both lengths.
    pub fn new(text: impl Into<String>) -> Result<Self, TooLong> {
        let text = text.into();
        match text.chars().count() {
            got if got > MAX => Err(TooLong { got, max: MAX }),
            _ => Ok(Self(text)),
        }
    }

    /// The first `MAX` characters of the text.
    pub fn cut(text: &str) -> Self {
        Self(text.chars().take(MAX).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Reads a list of at most `MAX` items; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// More items than that, or an item that is none.
pub fn list_of_at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::<T>::deserialize(deserializer)?;
    if list.len() > MAX {
        return Err(D::Error::custom(format_args!("{} items, at most {MAX} are allowed", list.len())));
    }
    Ok(list)
}

/// Opaque bytes that one side has for the other: at most 4 KiB, standard padded base64 in messages and headers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Data(Vec<u8>);

/// Why text or bytes are no [`Data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Not standard base64 with padding (RFC 4648, section 4).
    #[error("not standard base64 with padding")]
    NotBase64,
    /// More bytes than may be sent.
    #[error("{got} bytes, at most {DATA_BYTES} are allowed")]
    TooLong {
        /// How many there were.
        got: usize,
    },
}

impl Data {
    /// The bytes, if they are few enough.
    ///
    /// # Errors
    /// [`DataError::TooLong`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, DataError> {
        let bytes = bytes.into();
        if bytes.len() > DATA_BYTES { Err(DataError::TooLong { got: bytes.len() }) } else { Ok(Self(bytes)) }
    }

    /// Reads standard padded base64.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn from_base64(text: &str) -> Result<Self, DataError> {
        Self::new(BASE64.decode(text.as_bytes()).map_err(|_| DataError::NotBase64)?)
    }

    /// As it stands in messages and headers.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} bytes)", self.0.len())
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_base64(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
