//! One page of the device list, and the opaque cursor that asks for the next one.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use moorline_proto::bounds::DEVICE_ID_CHARS;
use moorline_proto::claims::Pattern;
use moorline_proto::id::DeviceId;

use crate::store::{DeviceRecord, Registry, StoreError};

/// First byte of an encoded cursor. A cursor of another version is refused.
const VERSION: u8 = 1;
/// Longest encoded cursor, in characters.
const MAX_CHARS: usize = (1 + DEVICE_ID_CHARS).div_ceil(3) * 4;

/// Some of the devices that match a filter, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The devices, in the order of their ids.
    pub devices: Vec<DeviceRecord>,
    /// The cursor of the next page, if another device matches the filter.
    pub next: Option<Cursor>,
}

impl Page {
    /// Reads the first `max` devices behind `after` whose id matches one of the patterns of `filter`.
    ///
    /// # Errors
    /// [`StoreError::Backend`].
    ///
    /// # Cancel safety
    /// Only reads; may be dropped at any time.
    pub async fn read(registry: &dyn Registry, filter: &[Pattern], after: Option<&Cursor>, max: usize) -> Result<Self, StoreError> {
        // One more than fits: a last page that is exactly full has no successor.
        let mut devices = registry.devices(filter, after.map(|cursor| &cursor.0), max.saturating_add(1)).await?;
        let has_more = devices.len() > max;
        devices.truncate(max);
        let next = devices.last().filter(|_| has_more).map(|last| Cursor(last.device.clone()));
        Ok(Self { devices, next })
    }
}

/// Where a page ended. Opaque to callers: its text is base64url, with a version byte.
///
/// A cursor names the last device that its page showed, so it contains nothing that its caller has not seen. It grants nothing
/// either: the filter applies to every page anew. A made-up cursor only chooses where the listing starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(DeviceId);

/// Text that is not a cursor of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor that this relay returned as `next`")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&[&[VERSION], self.0.as_str().as_bytes()].concat()))
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        if text.len() > MAX_CHARS {
            return Err(InvalidCursor);
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| InvalidCursor)?;
        let Some((&VERSION, device)) = bytes.split_first() else { return Err(InvalidCursor) };
        let device = std::str::from_utf8(device).map_err(|_| InvalidCursor)?;
        device.parse().map(Self).map_err(|_| InvalidCursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        for name in ["a".to_owned(), "lamp-1".to_owned(), "x".repeat(DEVICE_ID_CHARS)] {
            let cursor = Cursor(name.parse().unwrap());
            let text = cursor.to_string();
            assert!(!text.contains(&name) && text.len() <= MAX_CHARS, "{text}");
            assert_eq!(text.parse(), Ok(cursor));
        }
    }

    #[test]
    fn an_invalid_cursor_is_refused() {
        let encoded = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let long = encoded(&[&[VERSION][..], &[b'a'; DEVICE_ID_CHARS + 1]].concat());
        for text in ["", "lamp-1", "====", &encoded(b"\x02lamp-1"), &encoded(b"\x01"), &encoded(b"\x01\xff"), &encoded(b"\x01A B"), &long] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text}");
        }
    }
}
