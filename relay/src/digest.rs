//! Sixteen bytes that stand for a longer secret or request where it is remembered.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

/// The first half of a SHA-256. What is digested here is random or belongs to one caller, so that nobody gains from a collision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 16]);

impl Digest {
    /// Of several parts, told apart by their lengths.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let whole: [u8; 32] = hash.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&whole[..16]);
        Self(half)
    }

    /// Compares in constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_separate_their_parts() {
        assert_ne!(Digest::of(&[b"ab", b"c"]), Digest::of(&[b"a", b"bc"]));
        assert_ne!(Digest::of(&[b"ab"]), Digest::of(&[b"ab", b""]));
        assert!(Digest::of(&[b"a"]).is(&Digest::of(&[b"a"])) && !Digest::of(&[b"a"]).is(&Digest::of(&[b"b"])));
    }
}
