//! Clamps a peer's numbers when they are decoded, so that no other code has to expect absurd values.

use serde::{Deserialize, Deserializer};

/// Deserializes a whole number and clamps it to `MIN..=MAX`; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// Not a whole number, or one that is negative or above 2^64 - 1.
pub(crate) fn between<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<u64, D::Error> {
    u64::deserialize(deserializer).map(|number| number.clamp(MIN, MAX))
}

/// As [`between`], for an `Option`.
pub(crate) fn between_if_any<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(|number| number.clamp(MIN, MAX)))
}

/// As [`between`], for a `u32`. Larger numbers are clamped, too.
pub(crate) fn count<'de, D: Deserializer<'de>, const MIN: u32, const MAX: u32>(deserializer: D) -> Result<u32, D::Error> {
    let number = u64::deserialize(deserializer)?;
    Ok(u32::try_from(number).unwrap_or(MAX).clamp(MIN, MAX))
}
