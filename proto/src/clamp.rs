//! Numbers that a peer gives, clamped where they are read: nothing behind the decoder has to expect absurd values.

use serde::{Deserialize, Deserializer};

/// Reads a whole number and clamps it to `MIN..=MAX`; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// No whole number, or one that is negative or above 2^64 - 1.
pub(crate) fn between<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<u64, D::Error> {
    u64::deserialize(deserializer).map(|number| number.clamp(MIN, MAX))
}

/// As [`between`], where there may be none.
pub(crate) fn between_if_any<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(|number| number.clamp(MIN, MAX)))
}

/// As [`between`], for a count: it fits 32 bits once it is clamped.
pub(crate) fn count<'de, D: Deserializer<'de>, const MIN: u32, const MAX: u32>(deserializer: D) -> Result<u32, D::Error> {
    let number = u64::deserialize(deserializer)?;
    Ok(u32::try_from(number).unwrap_or(MAX).clamp(MIN, MAX))
}
