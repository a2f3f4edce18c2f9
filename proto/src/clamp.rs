//! Numbers that a peer gives, clamped where they are read: nothing behind the decoder has to expect absurd values.

use serde::{Deserialize, Deserializer};

/// Reads a whole number and clamps it to `MIN..=MAX`; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// No whole number, or one that is negative or above 2^64 - 1.
pub(crate) fn between<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<u64, D::Error> {
    u64::deserialize(deserializer).map(|number| number.clamp(MIN, MAX))
}
