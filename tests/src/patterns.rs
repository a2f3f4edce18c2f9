//! Byte patterns that differ by stream and by position, so that a lost, swapped or misdirected byte is noticed.

/// Bytes `from..from + count` of the pattern of `seed`. Use another seed for each direction of each stream.
pub fn pattern(seed: u64, from: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 16);
    let mut word = from / 8;
    let skip = usize::try_from(from % 8).expect("less than 8");
    while bytes.len() < count + skip {
        bytes.extend_from_slice(&mix(seed ^ mix(word)).to_le_bytes());
        word += 1;
    }
    bytes.drain(..skip);
    bytes.truncate(count);
    bytes
}

/// SplitMix64, by Sebastiano Vigna: every bit of the input shows in every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Piece sizes from 1 B to 1 MiB that differ by stream and by piece and add up to `total`.
pub fn pieces(seed: u64, total: usize) -> impl Iterator<Item = usize> {
    let (mut left, mut number) = (total, 0);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        number += 1;
        let random = mix(seed ^ mix(number));
        let size = (1_usize << (random % 21)).min(left);
        left -= size;
        Some(size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_however_it_is_cut() {
        let whole = pattern(7, 0, 1000);
        for (from, count) in [(0, 1), (1, 7), (13, 100), (999, 1)] {
            assert_eq!(pattern(7, from, count), whole[usize::try_from(from).unwrap()..][..count]);
        }
        assert_ne!(pattern(8, 0, 1000), whole);
        assert_eq!(pieces(3, 3_000_000).sum::<usize>(), 3_000_000);
    }
}
