//! A small stable hash: content identities, duplicates and hold-outs must not change between runs, platforms
//! or compiler releases, which the standard library's hashers do not promise. Not cryptographic.

/// Streaming 64-bit hash with a seed: 8 bytes at a time, multiply and rotate, with a strong finish.
///
/// ```
/// use swav_data::StableHash;
/// let mut a = StableHash::new(0);
/// a.bytes(b"swav");
/// let mut b = StableHash::new(0);
/// b.bytes(b"swaw");
/// assert_ne!(a.finish(), b.finish());
/// ```
#[derive(Clone, Debug)]
pub struct StableHash {
    state: u64,
    words: u64,
}

impl StableHash {
    /// A hash of nothing yet; other seeds give independent hashes.
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed ^ 0x9e37_79b9_7f4a_7c15), words: 0 }
    }

    /// Adds a number.
    pub fn number(&mut self, value: u64) {
        self.words = self.words.wrapping_add(1);
        self.state = (self.state.rotate_left(23) ^ value).wrapping_mul(0x9fb2_1c65_1e98_df25);
        self.state ^= self.state >> 32;
    }

    /// Adds bytes, with their number, so that `ab` + `c` and `a` + `bc` differ.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.number(u64::from_le_bytes(chunk.try_into().expect("chunks_exact gives 8 bytes")));
        }
        let rest = chunks.remainder();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.number(u64::from_le_bytes(last));
        self.number(bytes.len() as u64);
    }

    /// The hash of everything added so far.
    pub fn finish(&self) -> u64 {
        mix(self.state ^ mix(self.words))
    }
}

/// The hash of one byte string under a seed.
pub(crate) fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = StableHash::new(seed);
    hash.bytes(bytes);
    hash.finish()
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn hashes_are_pinned_because_checkpoints_store_them() {
        assert_eq!(hash_bytes(0, b""), hash_bytes(0, b""));
        let pinned = [hash_bytes(0, b"swav"), hash_bytes(7, b"swav")];
        assert_eq!(pinned, PINNED, "the hash changed: checkpoints of earlier versions would be refused");
    }

    const PINNED: [u64; 2] = [18_287_955_134_393_066_223, 5_674_437_015_262_631_353];

    #[test]
    fn near_inputs_do_not_collide_and_spread_evenly() {
        let hashes: HashSet<u64> = (0..100_000_u32).map(|i| hash_bytes(1, &i.to_le_bytes())).collect();
        assert_eq!(hashes.len(), 100_000);
        let low = hashes.iter().filter(|&&h| h < u64::MAX / 10).count();
        assert!((9_500..10_500).contains(&low), "a tenth of the range holds {low} of 100000");
    }

    #[test]
    fn boundaries_between_parts_count() {
        let parts = |a: &[u8], b: &[u8]| {
            let mut hash = StableHash::new(0);
            hash.bytes(a);
            hash.bytes(b);
            hash.finish()
        };
        assert_ne!(parts(b"ab", b"c"), parts(b"a", b"bc"));
        assert_ne!(parts(b"", b"a"), parts(b"a", b""));
        assert_ne!(parts(b"\0", b""), parts(b"\0\0", b""));
    }
}
