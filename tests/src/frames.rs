//! Turns any bytes into a client's WebSocket frames, most of them valid, for property tests and fuzzers.

/// First bytes of valid frames, the common ones more than once.
const FIRST: [u8; 14] = [0x82, 0x82, 0x82, 0x02, 0x02, 0x00, 0x00, 0x80, 0x80, 0x81, 0x01, 0x89, 0x8a, 0x88];

/// Reads `bytes` as instructions: a first byte, a length, a mask, and as much payload as there is. Most fragments are in valid order.
pub fn script(mut bytes: &[u8]) -> Vec<u8> {
    let (mut frames, mut inside) = (Vec::new(), false);
    while let [kind, size, a, b, rest @ ..] = bytes {
        let (payload, after) = rest.split_at(usize::from(size % 40).min(rest.len()));
        bytes = after;
        let mut first = FIRST.get(usize::from(kind % 16)).copied().unwrap_or(*kind);
        if *kind < 240 && first & 0x0f < 3 {
            first = match (inside, first & 0x0f) {
                (true, _) => first & 0x80,
                (false, 0) => first | 2,
                (false, _) => first,
            };
            inside = first & 0x80 == 0;
        }
        // Some have a longer header, most text is valid UTF-8, and a few are not masked.
        let mut payload = if b % 8 == 0 { payload.repeat(5) } else { payload.to_vec() };
        if b % 8 != 1 {
            payload.iter_mut().for_each(|byte| *byte %= 128);
        }
        if first == 0x88 && b % 4 != 0 && !payload.is_empty() {
            payload.splice(..0, [3, 0xe8 + a % 16]);
        }
        let is_masked = *a != 0;
        frames.extend(header(first, is_masked, payload.len()));
        let mask = if is_masked { [*a, *b, *kind, *size] } else { [0; 4] };
        frames.extend(is_masked.then_some(mask).into_iter().flatten());
        frames.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    frames
}

fn header(first: u8, is_masked: bool, size: usize) -> Vec<u8> {
    let bit = if is_masked { 0x80 } else { 0 };
    match u8::try_from(size) {
        Ok(short @ ..126) => vec![first, bit | short],
        _ => [&[first, bit | 126][..], &u16::try_from(size).expect("it is short").to_be_bytes()].concat(),
    }
}
