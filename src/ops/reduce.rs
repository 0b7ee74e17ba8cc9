//! Sums over whole flat buffers.
//!
//! A buffer is summed in fixed blocks, and the sums of blocks are added in order, in double precision. So
//! the bits do not depend on the number of threads.

use super::simd::{LANES, Simd, load_partial, simd_fn, sum_lanes};
use rayon::prelude::*;

/// The squares of this many elements are summed in single precision.
const BLOCK: usize = 4096;
/// This many partial sums are kept on the stack at a time.
const GROUP: usize = 64;

/// Returns the sum of squares. It is not finite if an element is not or if its square overflows, so the
/// norm also tells whether gradients are usable.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let mut total = 0.0f64;
    for group in x.chunks(BLOCK * GROUP) {
        let mut sums = [0.0f32; GROUP];
        sums.par_iter_mut().zip(group.par_chunks(BLOCK)).for_each(|(sum, block)| {
            *sum = block_sum(block);
        });
        total = sums.iter().fold(total, |total, &sum| total + f64::from(sum));
    }
    total
}

simd_fn!(fn block_sum(x: &[f32]) -> f32 = block_sum_generic);

#[inline(always)]
fn block_sum_generic<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let tail = load_partial(s, tail, 0.0);
    let mut sums = [s.mul(tail, tail), s.splat(0.0)];
    for (i, chunk) in chunks.iter().enumerate() {
        let v = s.load(chunk);
        sums[i % 2] = s.fma(v, v, sums[i % 2]);
    }
    sum_lanes(s, s.add(sums[0], sums[1]))
}

/// Adds the rows of `partials`, each as long as `sum`, to `sum` in order.
pub fn add_rows(partials: &[f32], sum: &mut [f32]) {
    for row in partials.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_right_and_the_same_on_any_number_of_threads() {
        let x: Vec<f32> = (0..1_000_003).map(|i| (i as f32 * 0.01).sin()).collect();
        let exact = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let sums = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_of_squares(&x))
        });
        assert!((sums[0] - exact).abs() < 1e-6 * exact);
        assert!(sums.iter().all(|n| n.to_bits() == sums[0].to_bits()));
    }

    #[test]
    fn a_value_that_is_not_finite_shows_in_the_sum() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 10_000];
            x[7_777] = bad;
            assert!(!sum_of_squares(&x).is_finite());
        }
    }
}
