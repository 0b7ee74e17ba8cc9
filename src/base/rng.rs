//! Keyed randomness: a value depends on its key and index, never on time or arrival order.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
//! counter-based generator that is the same few integer operations on every device.

use rand::RngCore;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Computes the Philox4x32-10 block of `counter` under `key`.
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let mut k = [key as u32, (key >> 32) as u32];
    let mut c = counter;
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
    }
    c
}

/// Mixes labels such as (step, prompt, sample) into `seed`; different labels, different keys.
pub fn key(seed: u64, labels: &[u64]) -> u64 {
    labels.iter().fold(seed, |key, &label| {
        let block = philox(key, [label as u32, (label >> 32) as u32, 0x6b65_7973, 0]);
        u64::from(block[0]) | u64::from(block[1]) << 32
    })
}

/// Draws the `index`-th uniform number of `key`, in [0, 1) with 24 random bits.
pub fn uniform(key: u64, index: u64) -> f32 {
    let block = philox(key, [index as u32, (index >> 32) as u32, 0x756e_6966, 0]);
    (block[0] >> 8) as f32 / (1u32 << 24) as f32
}

/// The stream of random numbers of a key, for the distributions and shuffles of `rand`.
pub struct Stream {
    key: u64,
    block: u64,
    buffer: [u32; 4],
    used: usize,
}

impl Stream {
    /// Opens the stream of `seed` and `labels`; equal arguments give equal streams.
    pub fn new(seed: u64, labels: &[u64]) -> Self {
        Self { key: key(seed, labels), block: 0, buffer: [0; 4], used: 4 }
    }
}

impl RngCore for Stream {
    fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.buffer = philox(self.key, [self.block as u32, (self.block >> 32) as u32, 0, 0]);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(4) {
            chunk.copy_from_slice(&self.next_u32().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox(u64::MAX, [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn labels_change_the_stream_and_equal_labels_repeat_it() {
        let draw = |labels: &[u64]| Stream::new(7, labels).next_u64();
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        assert_ne!(draw(&[1, 2]), draw(&[2, 1]));
        assert_ne!(draw(&[1]), draw(&[1, 0]));
    }

    #[test]
    fn uniform_stays_below_one_and_averages_a_half() {
        let draws: Vec<f32> = (0..10_000).map(|i| uniform(3, i)).collect();
        assert!(draws.iter().all(|&u| (0.0..1.0).contains(&u)));
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
