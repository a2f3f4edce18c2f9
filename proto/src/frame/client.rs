//! Encodes a client's frames, which are masked, in place: the header is written in front of the payload, in the same buffer.

use super::bits;

/// Bytes to reserve in front of a payload for the longest header.
pub const HEADER_ROOM: usize = 14;

/// The kind of a client's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the stream.
    Bytes,
    /// A text message.
    Text,
    /// A question for a sign of life.
    Ping,
    /// An answer to a ping, or an unsolicited Pong.
    Pong,
    /// A Close: [`close_payload`], or nothing.
    Close,
}

/// Encodes a frame in place. `buffer` is [`HEADER_ROOM`] bytes, followed by the payload, which is masked. Returns the position in `buffer`
/// where the frame begins.
///
/// The mask must be unpredictable for whoever chooses the payload (RFC 6455, 5.3).
///
/// # Panics
/// If `buffer` is shorter than [`HEADER_ROOM`].
pub fn client_frame(kind: Kind, buffer: &mut [u8], mask: [u8; 4]) -> usize {
    let (header, payload) = buffer.split_at_mut(HEADER_ROOM);
    apply(mask, payload);
    let size = payload.len();
    let (marker, length) = match (u8::try_from(size), u16::try_from(size)) {
        (Ok(short @ ..bits::TWO), _) => (short, 0),
        (_, Ok(_)) => (bits::TWO, 2),
        _ => (bits::EIGHT, 8),
    };
    let begins = HEADER_ROOM - 4 - length - 2;
    let opcode = match kind {
        Kind::Bytes => bits::BINARY,
        Kind::Text => bits::TEXT,
        Kind::Ping => bits::PING,
        Kind::Pong => bits::PONG,
        Kind::Close => bits::CLOSE,
    };
    header[begins] = bits::FIN | opcode;
    header[begins + 1] = bits::MASKED | marker;
    header[begins + 2..begins + 2 + length].copy_from_slice(&(size as u64).to_be_bytes()[8 - length..]);
    header[HEADER_ROOM - 4..].copy_from_slice(&mask);
    begins
}

/// The payload of a Close. The reason is truncated to what fits.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(crate::close::truncated_reason(reason).as_bytes());
    payload
}

fn apply([a, b, c, d]: [u8; 4], payload: &mut [u8]) {
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d].into_iter().cycle()) {
        *byte ^= mask;
    }
}
