//! Durations in messages: a JSON number of milliseconds with up to three decimals.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::whole::Whole;

/// A duration in whole microseconds, from zero to 24 hours; written in milliseconds: `12`, `1.4`, `0.08`.
///
/// Longer durations are clamped to 24 hours, also when they are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis {
    micros: u64,
}

/// The largest number that is accepted, which is [`Whole::MAX`].
#[expect(clippy::cast_precision_loss, reason = "2^53 - 1 is an f64")]
const LAST_READ: f64 = Whole::MAX.get() as f64;

impl Millis {
    /// 24 hours.
    pub const MAX: Self = Self { micros: 24 * 60 * 60 * 1_000_000 };

    /// From a duration, rounded down to microseconds.
    pub fn from_duration(span: Duration) -> Self {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        Self { micros: micros.min(Self::MAX.micros) }
    }

    /// From whole milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        if ms > Self::MAX.micros / 1_000 { Self::MAX } else { Self { micros: ms * 1_000 } }
    }

    /// As a duration.
    pub const fn as_duration(self) -> Duration {
        Duration::from_micros(self.micros)
    }

    /// From a number of a message, rounded to the nearest microsecond.
    fn from_number(ms: f64) -> Option<Self> {
        if !(0.0..=LAST_READ).contains(&ms) {
            return None;
        }
        let nearest = |span: Duration| Self::from_duration(span + Duration::from_nanos(500));
        Some(Duration::try_from_secs_f64(ms / 1e3).map_or(Self::MAX, nearest))
    }
}

impl fmt::Display for Millis {
    /// Milliseconds without trailing zeros and without the unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.micros / 1_000, self.micros % 1_000);
        f.pad(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.micros.is_multiple_of(1_000) {
            return serializer.serialize_u64(self.micros / 1_000);
        }
        // The division is correctly rounded, so the shortest decimal that is printed for it is the exact one.
        #[expect(clippy::cast_precision_loss, reason = "at most 24 hours, far below 2^53")]
        serializer.serialize_f64(self.micros as f64 / 1e3)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(MillisVisitor)
    }
}

struct MillisVisitor;

impl de::Visitor<'_> for MillisVisitor {
    type Value = Millis;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of milliseconds from 0 to 2^53 - 1")
    }

    fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Millis, E> {
        let whole = Whole::new(ms).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(ms), &self))?;
        Ok(Millis::from_millis(whole.get()))
    }

    fn visit_i64<E: de::Error>(self, ms: i64) -> Result<Millis, E> {
        u64::try_from(ms).map_err(|_| E::invalid_value(de::Unexpected::Signed(ms), &self)).and_then(|ms| self.visit_u64(ms))
    }

    fn visit_f64<E: de::Error>(self, ms: f64) -> Result<Millis, E> {
        Millis::from_number(ms).ok_or_else(|| E::invalid_value(de::Unexpected::Float(ms), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Duration> {
        serde_json::from_str::<Millis>(text).ok().map(Millis::as_duration)
    }

    #[test]
    fn spans_are_printed_as_milliseconds_without_trailing_zeros() {
        for (micros, text) in [(0, "0"), (1, "0.001"), (80, "0.08"), (999, "0.999"), (1_400, "1.4"), (12_000, "12"), (100_010, "100.01")] {
            let span = Millis::from_duration(Duration::from_micros(micros));
            assert_eq!(span.to_string(), text);
            assert_eq!(serde_json::to_string(&span).unwrap(), text);
        }
        assert_eq!(format!("{:>6}|{:<4}|", Millis::from_millis(2), Millis::from_millis(3)), "     2|3   |");
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_microsecond() {
        for (text, micros) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0", 0),
            ("41", 41_000),
            ("1.4", 1_400),
            ("0.0004", 0),
            ("0.0006", 1),
            ("1.0015", 1_002),
            ("2e2", 200_000),
            ("1e-320", 0),
        ] {
            assert_eq!(read(text), Some(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn spans_above_a_day_are_clamped_and_invalid_spans_are_refused() {
        let day = Duration::from_secs(24 * 60 * 60);
        for text in ["86400000", "86400000.001", "86400001", "9007199254740991", "9007199254740991.0", "1e15"] {
            assert_eq!(read(text), Some(day), "{text}");
        }
        for text in ["-1", "-0.001", "9007199254740992", "18446744073709551615", "1e300", "\"1\"", "null", "true", "[]"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(Millis::from_duration(Duration::MAX), Millis::MAX);
        assert_eq!(Millis::from_millis(u64::MAX), Millis::MAX);
    }

    #[test]
    fn every_microsecond_of_a_span_survives_the_wire() {
        let steps = (0..2_000_000).step_by(7).chain((0..1_000).map(|n| Millis::MAX.micros - 1 - n * 86_399_999));
        for micros in steps {
            let span = Millis { micros };
            let text = serde_json::to_string(&span).unwrap();
            assert_eq!(text, span.to_string());
            assert_eq!(serde_json::from_str::<Millis>(&text).unwrap(), span);
        }
    }
}
