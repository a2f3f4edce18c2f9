//! Bounded texts and lists, and opaque data.
//!
//! A peer's text ends up in logs and on terminals, so it is sanitised when it is decoded: characters that could start a new line, control
//! a terminal or reorder what is shown are replaced. [`Text`] does that; [`printable`] is for any other text.

use std::fmt;
use std::marker::PhantomData;

use data_encoding::BASE64;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bounds::DATA_BYTES;

/// Characters of a peer's text that an error shows at most.
pub const QUOTED_CHARS: usize = 64;

/// Whether a character is replaced in a peer's text: control characters (C0, DEL, C1), the line and paragraph separators, and the
/// bidirectional formatting characters.
pub const fn is_replaced(character: char) -> bool {
    matches!(
        character,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// The first `max_chars` characters of a peer's text, safe to log and print: characters for which [`is_replaced`] is true become U+FFFD.
///
/// For text that is not decoded as [`Text`], such as the reason of a Close frame or the body of an HTTP response.
pub fn printable(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).map(|character| if is_replaced(character) { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

/// A word that is not one of the expected ones. Shows at most [`QUOTED_CHARS`] characters of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown word \"{0}\"")]
pub struct UnknownWord(String);

impl UnknownWord {
    pub(crate) fn new(word: &str) -> Self {
        Self(printable(word, QUOTED_CHARS))
    }
}

/// Text of at most `MAX` characters, all of them printable: others are replaced as by [`printable`].
///
/// Longer text is an error when it is decoded; [`Text::truncated`] truncates it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Text<const MAX: usize>(Box<str>);

/// The text is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} characters, at most {max} are allowed")]
pub struct TooLong {
    /// Its number of characters.
    pub got: usize,
    /// The limit.
    pub max: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// Checks the length of the text.
    ///
    /// # Errors
    /// [`TooLong`] with both lengths.
    pub fn new(text: impl Into<String>) -> Result<Self, TooLong> {
        let text = text.into();
        match text.chars().count() {
            got if got > MAX => Err(TooLong { got, max: MAX }),
            _ if text.contains(is_replaced) => Ok(Self::truncated(&text)),
            _ => Ok(Self(text.into())),
        }
    }

    /// The first `MAX` characters of the text.
    pub fn truncated(text: &str) -> Self {
        Self(printable(text, MAX).into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0.into()
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

/// Deserializes a list of at most `MAX` items; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// Too many items, which is noticed at the first one beyond the limit, or an invalid item.
pub fn list_of_at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format_args!("at most {MAX} items are allowed")));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(ListVisitor::<T, MAX>(PhantomData))
}

/// Deserializes a `String` by the rules of [`Text`]; for `#[serde(deserialize_with)]`.
pub(crate) fn bounded<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<String, D::Error> {
    Text::<MAX>::deserialize(deserializer).map(Into::into)
}

/// As [`bounded`], for an `Option`.
pub(crate) fn bounded_if_any<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Text<MAX>>::deserialize(deserializer)?.map(Into::into))
}

/// Deserializes a `String` that is truncated and sanitised as by [`printable`]; for `#[serde(deserialize_with)]`. For text that must be
/// decoded in any case, such as that of a refusal.
pub(crate) fn printable_text<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| printable(&text, MAX))
}

/// As [`printable_text`], for an `Option`.
pub(crate) fn printable_text_if_any<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| printable(&text, MAX)))
}

/// Opaque data from one end to the other: at most 4 KiB, standard base64 with padding in messages and headers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Data(Vec<u8>);

/// Why text or bytes are not [`Data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Not standard base64 with padding (RFC 4648, section 4).
    #[error("not standard base64 with padding")]
    NotBase64,
    /// Too many bytes.
    #[error("{got} bytes, at most {DATA_BYTES} are allowed")]
    TooLong {
        /// The number of bytes.
        got: usize,
    },
}

impl Data {
    /// Checks the number of bytes.
    ///
    /// # Errors
    /// [`DataError::TooLong`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, DataError> {
        let bytes = bytes.into();
        if bytes.len() > DATA_BYTES { Err(DataError::TooLong { got: bytes.len() }) } else { Ok(Self(bytes)) }
    }

    /// Parses standard base64 with padding.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn from_base64(text: &str) -> Result<Self, DataError> {
        Self::new(BASE64.decode(text.as_bytes()).map_err(|_| DataError::NotBase64)?)
    }

    /// The form used in messages and headers.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_controls_line_breaks_and_bidi_controls_are_replaced() {
        let hostile = "a\0\u{7}\t\n\r\u{1b}[2J\u{7f}\u{85}\u{9b}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}z";
        let shown = printable(hostile, usize::MAX);
        assert_eq!(shown, format!("a{0}{0}{0}{0}{0}{0}[2J{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}z", '\u{fffd}'));
        assert!(!shown.contains(char::is_control));
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in ["", "größe 💡", "日本語", "\u{a0}\u{2027}\u{202f}\u{2065}\u{206a}\u{fffd}", "שלום"] {
            assert_eq!(printable(text, 100), text);
            assert_eq!(Text::<100>::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(printable("ä💡z", 2), "ä💡");
        assert_eq!(printable("z", 0), "");
    }

    #[test]
    fn text_is_sanitised_however_it_is_made() {
        let made = [Text::<9>::new("a\nb").unwrap(), Text::truncated("a\nb"), serde_json::from_str(r#""a\nb""#).unwrap()];
        for text in made {
            assert_eq!(text.as_str(), "a\u{fffd}b");
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_refused_at_the_first_item_too_many() {
        let read =
            |text: &str| list_of_at_most::<_, u8, 2>(&mut serde_json::Deserializer::from_str(text)).map_err(|error| error.to_string());
        assert_eq!(read("[1,2]"), Ok(vec![1, 2]));
        assert!(read("[1,2,3,").unwrap_err().starts_with("at most 2 items are allowed"));
        assert!(read("null").unwrap_err().contains("expected a list of at most 2 items"));
    }

    #[test]
    fn an_unknown_word_is_shown_in_part() {
        let shown = UnknownWord::new(&"\n".repeat(100)).to_string();
        assert_eq!(shown, format!("unknown word \"{}\"", "\u{fffd}".repeat(QUOTED_CHARS)));
    }
}
