//! Labels for keyed randomness: each decision of the generator draws from a stream of its own.

use crate::base::rng::Stream;

/// Opens the stream of a named decision about a named thing.
pub(crate) fn stream(seed: u64, decision: &str, about: &str, index: u64) -> Stream {
    Stream::new(seed, &[label(decision), label(about), index])
}

/// Hashes a name by FNV-1a (Fowler, Noll and Vo).
fn label(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn the_label_is_the_published_hash() {
        assert_eq!(label("foobar"), 0x8594_4171_f739_67e8);
        assert_ne!(stream(1, "a", "b", 0).next_u64(), stream(1, "b", "a", 0).next_u64());
    }
}
