//! Rejects weak and non-canonical Ed25519 public keys by comparison. Does not check that a point is on the curve: the relay does that with
//! its cryptographic library.

/// Why a key must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakness {
    /// A point of small order.
    SmallOrder,
    /// y is not less than p.
    NotCanonical,
}

/// p = 2^255 - 19, little-endian. A canonical y is less than p (RFC 8032, 5.1.3).
const P: [u8; 32] = {
    let mut p = [0xff; 32];
    p[0] = 0xed;
    p[31] = 0x7f;
    p
};

/// The y coordinates of all points of small order, little-endian, for either sign of x. Anybody can make signatures that verify with them.
///
/// The list is that of libsodium (`ge25519_has_small_order`). p and p + 1 are non-canonical encodings of 0 and 1.
const SMALL_ORDER_Y: [[u8; 32]; 7] = [
    // 0, order 4
    [0; 32],
    // 1, order 1
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    // order 8
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6,
        0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    // order 8
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39,
        0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    // p - 1, order 2
    low_byte(0xec),
    // p, order 4
    low_byte(0xed),
    // p + 1, order 1
    low_byte(0xee),
];

/// p with another lowest byte.
const fn low_byte(byte: u8) -> [u8; 32] {
    let mut y = P;
    y[0] = byte;
    y
}

/// Rejects keys of small order, and non-canonical encodings, which would give one key two thumbprints.
pub(crate) fn check(key: &[u8; 32]) -> Result<(), Weakness> {
    let mut y = *key;
    y[31] &= 0x7f; // the highest bit is the sign of x
    if SMALL_ORDER_Y.contains(&y) {
        return Err(Weakness::SmallOrder);
    }
    if y.iter().rev().ge(P.iter().rev()) {
        return Err(Weakness::NotCanonical);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_small_order_are_refused_with_either_sign() {
        for y in SMALL_ORDER_Y {
            let mut negative = y;
            negative[31] |= 0x80;
            for key in [y, negative] {
                assert_eq!(check(&key), Err(Weakness::SmallOrder), "{key:02x?}");
            }
        }
    }

    #[test]
    fn a_y_coordinate_that_is_not_reduced_is_refused_with_either_sign() {
        // p + 2 to 2^255 - 1: all values except p and p + 1.
        for byte in 0xef..=0xff {
            let mut key = low_byte(byte);
            assert_eq!(check(&key), Err(Weakness::NotCanonical), "{byte:02x}");
            key[31] |= 0x80;
            assert_eq!(check(&key), Err(Weakness::NotCanonical), "{byte:02x}");
        }
    }

    #[test]
    fn keys_next_to_points_of_small_order_are_accepted() {
        let mut two = [0; 32];
        two[0] = 2;
        let mut below = low_byte(0xff);
        below[30] = 0xfe;
        for key in [two, low_byte(0xeb), below, [1; 32]] {
            assert_eq!(check(&key), Ok(()), "{key:02x?}");
        }
    }
}
