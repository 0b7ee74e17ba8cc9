//! Rotary position embedding (Su et al. 2021) in the half-split layout of Llama and Qwen2.
//!
//! Element `i` of a head is rotated together with element `i + head_dim / 2` by the angle `position *
//! theta^(-2i / head_dim)`, computed in f32 as transformers does. The frequencies may be those of Llama
//! 3.1, stretched for longer contexts. The backward rotates back. Frequencies that depend on the length of
//! the sequence (dynamic NTK, YaRN) are not supported.

use super::simd::{LANES, Simd, load_partial, simd_fn, store_partial};

/// How Llama 3.1 and later stretch the frequencies of a model trained on shorter sequences (`rope_type:
/// llama3`, transformers' `_compute_llama3_parameters`). Long wavelengths are slowed down, short ones are
/// kept, and those in between are interpolated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// Divides the frequencies of long wavelengths.
    pub factor: f32,
    /// Wavelengths longer than the original context divided by this are long.
    pub low_freq_factor: f32,
    /// Wavelengths shorter than the original context divided by this are kept.
    pub high_freq_factor: f32,
    /// The original context, in tokens.
    pub original_max_position_embeddings: f32,
}

impl Llama3Scaling {
    fn scale(&self, frequency: f32) -> f32 {
        let context = self.original_max_position_embeddings;
        let wavelength = std::f32::consts::TAU / frequency;
        if wavelength > context / self.low_freq_factor {
            frequency / self.factor
        } else if wavelength < context / self.high_freq_factor {
            frequency
        } else {
            let smooth = (context / wavelength - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

/// The cosines and sines of all positions asked for so far.
pub struct Rope {
    half: usize,
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Creates the table for heads of `head_dim` elements, without any positions.
    pub fn new(head_dim: usize, theta: f64, scaling: Option<Llama3Scaling>) -> Self {
        let frequencies = (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                let frequency = 1.0 / (theta as f32).powf(exponent);
                scaling.map_or(frequency, |scaling| scaling.scale(frequency))
            })
            .collect();
        Self { half: head_dim / 2, frequencies, cos: Vec::new(), sin: Vec::new() }
    }

    /// Returns the angle of each pair of elements at position 1, in radians.
    pub(crate) fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Adds the positions below `positions` that are missing.
    pub fn grow(&mut self, positions: usize) {
        for position in self.cos.len() / self.half..positions {
            for &frequency in &self.frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Returns the cosines and the sines, `[positions, head_dim / 2]` each.
    pub fn table(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Returns the bytes of the table.
    pub fn bytes(&self) -> usize {
        size_of_val(self.cos.as_slice()) + size_of_val(self.sin.as_slice())
    }

    /// Rotates the first `heads` heads of `row` by the angles of `position`.
    pub fn forward(&self, row: &mut [f32], heads: usize, position: usize) {
        let at = position * self.half..(position + 1) * self.half;
        turn(&mut row[..heads * self.half * 2], &self.cos[at.clone()], &self.sin[at], 1.0);
    }

    /// Rotates the gradient of the first `heads` heads of `row` back by the angles of `position`.
    pub fn backward(&self, row: &mut [f32], heads: usize, position: usize) {
        let at = position * self.half..(position + 1) * self.half;
        turn(&mut row[..heads * self.half * 2], &self.cos[at.clone()], &self.sin[at], -1.0);
    }
}

simd_fn!(fn turn(row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) = turn_generic);

#[inline(always)]
fn turn_generic<S: Simd>(s: S, row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let half = cos.len();
    let direction = s.splat(direction);
    for head in row.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for first in (0..half).step_by(LANES) {
            let at = first..half.min(first + LANES);
            let (l, h) =
                (load_partial(s, &low[at.clone()], 0.0), load_partial(s, &high[at.clone()], 0.0));
            let c = load_partial(s, &cos[at.clone()], 0.0);
            let d = s.mul(load_partial(s, &sin[at.clone()], 0.0), direction);
            let turned_low = s.sub(s.mul(l, c), s.mul(h, d));
            let turned_high = s.add(s.mul(h, c), s.mul(l, d));
            store_partial(s, turned_low, &mut low[at.clone()]);
            store_partial(s, turned_high, &mut high[at]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_back_restores_the_row_and_angles_follow_the_formula() {
        let mut rope = Rope::new(8, 10_000.0, None);
        rope.grow(20);
        let original: Vec<f32> = (0..16).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut row = original.clone();
        rope.forward(&mut row, 2, 13);
        for i in 0..4 {
            let angle = 13.0 * 10_000f64.powf(-(i as f64) / 4.0);
            let (low, high) = (f64::from(original[8 + i]), f64::from(original[12 + i]));
            assert!(
                (f64::from(row[8 + i]) - (low * angle.cos() - high * angle.sin())).abs() < 1e-5
            );
            assert!(
                (f64::from(row[12 + i]) - (high * angle.cos() + low * angle.sin())).abs() < 1e-5
            );
        }
        rope.backward(&mut row, 2, 13);
        assert!(row.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    /// The expected values are those of transformers' `_compute_llama3_parameters`.
    #[test]
    fn llama3_slows_long_wavelengths_and_leaves_short_ones() {
        let scaling = Llama3Scaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let rope = Rope::new(64, 500_000.0, Some(scaling));
        let llama_3_2_1b = [
            (0, 1.0),
            (13, 4.839_421_2e-3),
            (14, 3.211_446e-3),
            (15, 1.290_548e-3),
            (16, 4.295_567e-4),
            (17, 9.708_286e-5),
            (18, 1.946_163_9e-5),
            (31, 9.418_306_5e-8),
        ];
        for (i, expected) in llama_3_2_1b {
            let error = (rope.frequencies[i] - expected).abs();
            assert!(error < 1e-6 * expected, "{i}: {} is not {expected}", rope.frequencies[i]);
        }
    }
}
