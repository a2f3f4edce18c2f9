//! A client's frames, which are masked. They are made in place, around the payload that was read to where it is sent from.

use super::bits;

/// The room that a frame's header may need in front of its payload.
pub const HEADER_ROOM: usize = 14;

/// What a side says on its leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the stream.
    Bytes,
    /// A text message.
    Text,
    /// The answer to a ping, or a sign of life.
    Pong,
    /// The end: a code in two bytes and words, or nothing.
    Close,
}

/// Makes one frame of the payload that stands behind [`HEADER_ROOM`] bytes: masks it, and puts the header right before it. Says where in
/// `room` the frame begins.
///
/// RFC 6455 wants a mask that the payload's author cannot foresee.
///
/// # Panics
/// If `room` is shorter than the header's room.
pub fn client_frame(kind: Kind, room: &mut [u8], mask: [u8; 4]) -> usize {
    let (header, payload) = room.split_at_mut(HEADER_ROOM);
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
        Kind::Pong => bits::PONG,
        Kind::Close => bits::CLOSE,
    };
    header[begins] = bits::FIN | opcode;
    header[begins + 1] = bits::MASKED | marker;
    header[begins + 2..begins + 2 + length].copy_from_slice(&(size as u64).to_be_bytes()[8 - length..]);
    header[HEADER_ROOM - 4..].copy_from_slice(&mask);
    begins
}

/// The payload of a Close.
pub fn close_payload(code: u16, words: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(crate::close::truncated_reason(words).as_bytes());
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
