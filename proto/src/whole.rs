//! Whole numbers of the protocol, in messages, headers and queries: 0 to 2^53 - 1, and clamped to a range where their form names one, so
//! that no other code has to expect absurd values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A whole number from 0 to 2^53 - 1, which every JSON library represents exactly. In JSON a number without fraction and exponent, in
/// headers and queries digits and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whole(u64);

/// The text is not a [`Whole`] number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {WHOLE}")]
pub struct NotWhole;

const WHOLE: &str = "a whole number from 0 to 2^53 - 1";

impl Whole {
    /// The largest one.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number, if it is one.
    pub(crate) fn new(number: u64) -> Result<Self, NotWhole> {
        if number > Self::MAX.0 { Err(NotWhole) } else { Ok(Self(number)) }
    }

    /// Clamped to a range that fits a `u32`.
    fn clamped(self, min: u32, max: u32) -> u32 {
        u32::try_from(self.0).unwrap_or(max).clamp(min, max)
    }
}

impl FromStr for Whole {
    type Err = NotWhole;

    fn from_str(text: &str) -> Result<Self, NotWhole> {
        // `u64::from_str` accepts a sign, too.
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotWhole);
        }
        text.parse().map_err(|_| NotWhole).and_then(Self::new)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(WholeVisitor)
    }
}

struct WholeVisitor;

impl de::Visitor<'_> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WHOLE)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
        Whole::new(number).map_err(|NotWhole| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
        u64::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self)).and_then(|number| self.visit_u64(number))
    }
}

/// Deserializes a whole number; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// Not a [`Whole`] number.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Whole::deserialize(deserializer).map(Whole::get)
}

/// As [`whole`], clamped to `MIN..=MAX`.
pub(crate) fn between<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<u64, D::Error> {
    whole(deserializer).map(|number| number.clamp(MIN, MAX))
}

/// As [`between`], for an `Option`.
pub(crate) fn between_if_any<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Whole>::deserialize(deserializer)?.map(|number| number.get().clamp(MIN, MAX)))
}

/// As [`between`], for a `u32`.
pub(crate) fn count<'de, D: Deserializer<'de>, const MIN: u32, const MAX: u32>(deserializer: D) -> Result<u32, D::Error> {
    Whole::deserialize(deserializer).map(|number| number.clamped(MIN, MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_is_refused_in_json_and_as_text() {
        for (text, number) in [("0", 0), ("7", 7), ("9007199254740991", (1 << 53) - 1)] {
            assert_eq!(text.parse::<Whole>().map(Whole::get), Ok(number));
            assert_eq!(serde_json::from_str::<Whole>(text).unwrap().get(), number);
        }
        for text in ["9007199254740992", "18446744073709551615", "18446744073709551616", "-1", "-0", "1.0", "1e3", "", "+1", "null"] {
            assert_eq!(text.parse::<Whole>(), Err(NotWhole), "{text}");
            assert!(serde_json::from_str::<Whole>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_clamps_what_is_a_whole_number() {
        let read = |text: &str| count::<_, 3, 9>(&mut serde_json::Deserializer::from_str(text)).ok();
        let clamped = [("0", Some(3)), ("4", Some(4)), ("4294967296", Some(9)), ("9007199254740991", Some(9)), ("9007199254740992", None)];
        for (text, number) in clamped {
            assert_eq!(read(text), number, "{text}");
        }
    }
}
