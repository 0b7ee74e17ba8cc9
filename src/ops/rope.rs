//! Rotary position embedding in the half-split layout of Llama and Qwen2.
//!
//! Contract: element `i` of a head turns together with element `i + head_dim / 2` by the angle
//! `position * theta^(-2i / head_dim)`, computed in f32 as transformers does. The backward turns
//! back. Left out: scaled frequencies.

use super::simd::{LANES, Simd, load_partial, simd_fn, store_partial};

/// Cosines and sines of every position seen so far; grows, never shrinks.
pub struct Rope {
    half: usize,
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// The table for heads of `head_dim` elements, still without positions.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let frequencies = (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                1.0 / (theta as f32).powf(exponent)
            })
            .collect();
        Self { half: head_dim / 2, frequencies, cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes positions below `positions` available.
    pub fn grow(&mut self, positions: usize) {
        for position in self.cos.len() / self.half..positions {
            for &frequency in &self.frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        size_of_val(self.cos.as_slice()) + size_of_val(self.sin.as_slice())
    }

    /// Turns the `heads` heads at the start of `row` to `position`.
    pub fn forward(&self, row: &mut [f32], heads: usize, position: usize) {
        let at = position * self.half..(position + 1) * self.half;
        turn(&mut row[..heads * self.half * 2], &self.cos[at.clone()], &self.sin[at], 1.0);
    }

    /// Turns the gradient of `heads` heads at the start of `row` back from `position`.
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
        let mut rope = Rope::new(8, 10_000.0);
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
}
