//! Root-mean-square normalisation of every query head and every key head, as in Qwen3.
//!
//! A row holds query heads, key heads and value heads. Each query head and each key head is normalised by
//! itself, in place; values stay as they are. `weight` is `[2, dim]`: the factors of query heads, then
//! those of key heads. The backward reads the rows as they were before the forward, turns the gradient of
//! the output into that of the input in place, and adds the weight's gradient to a partial sum of the
//! caller.

use super::attention::Heads;
use super::rms_norm::scale;
use super::simd::{LANES, Simd, load_partial, simd_fn, store_partial, sum_lanes};
use std::ops::Range;

/// Returns for each query head, then each key head, where it lies in a row and where its factors lie in
/// `weight`.
#[inline(always)]
fn places(heads: Heads) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let Heads { queries, keys, dim } = heads;
    (0..queries + keys).map(move |head| {
        let weight = if head < queries { 0 } else { dim };
        (head * dim..(head + 1) * dim, weight..weight + dim)
    })
}

simd_fn!(
    /// Normalises the query heads and key heads in the rows of `qkv`.
    pub fn head_norm(heads: Heads, weight: &[f32], eps: f32, qkv: &mut [f32]) = forward_generic
);

#[inline(always)]
fn forward_generic<S: Simd>(s: S, heads: Heads, weight: &[f32], eps: f32, qkv: &mut [f32]) {
    for row in qkv.chunks_exact_mut(heads.row()) {
        for (head, own) in places(heads) {
            let (x, weight) = (&mut row[head], &weight[own]);
            let scale = s.splat(scale(s, x, eps));
            let (xs, x_tail) = x.as_chunks_mut::<LANES>();
            let (weights, weight_tail) = weight.as_chunks::<LANES>();
            for (x, w) in xs.iter_mut().zip(weights) {
                s.store(s.mul(s.mul(s.load(x), scale), s.load(w)), x);
            }
            let y = s.mul(load_partial(s, x_tail, 0.0), scale);
            store_partial(s, s.mul(y, load_partial(s, weight_tail, 0.0)), x_tail);
        }
    }
}

simd_fn!(
    /// Turns `d_qkv` from the gradient of the output into that of the input, and adds the gradient of the
    /// weight to `weight_gradient`. `before` holds the rows as they were before the forward.
    pub fn head_norm_backward(
        heads: Heads,
        weight: &[f32],
        eps: f32,
        before: &[f32],
        d_qkv: &mut [f32],
        weight_gradient: &mut [f32],
    ) = backward_generic
);

#[inline(always)]
fn backward_generic<S: Simd>(
    s: S,
    heads: Heads,
    weight: &[f32],
    eps: f32,
    before: &[f32],
    d_qkv: &mut [f32],
    weight_gradient: &mut [f32],
) {
    let rows = before.chunks_exact(heads.row()).zip(d_qkv.chunks_exact_mut(heads.row()));
    for (before, d_row) in rows {
        for (head, own) in places(heads) {
            let (x, d) = (&before[head.clone()], &mut d_row[head]);
            let (weight, gradient) = (&weight[own.clone()], &mut weight_gradient[own]);
            head_backward(s, x, weight, eps, d, gradient);
        }
    }
}

#[inline(always)]
fn head_backward<S: Simd>(
    s: S,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    d: &mut [f32],
    gradient: &mut [f32],
) {
    let scale = scale(s, x, eps);
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (weights, weight_tail) = weight.as_chunks::<LANES>();
    let (ds, d_tail) = d.as_chunks_mut::<LANES>();
    let (gradients, gradient_tail) = gradient.as_chunks_mut::<LANES>();
    let mut dot = s.splat(0.0);
    for ((x, w), d) in xs.iter().zip(weights).zip(&*ds) {
        dot = s.fma(s.mul(s.load(d), s.load(w)), s.load(x), dot);
    }
    let (x_last, w_last) = (load_partial(s, x_tail, 0.0), load_partial(s, weight_tail, 0.0));
    let d_last = load_partial(s, d_tail, 0.0);
    dot = s.fma(s.mul(d_last, w_last), x_last, dot);
    // dx = scale * (dy * w - x * scale² * mean(dy * w * x))
    let correction = s.splat(-scale * scale * (sum_lanes(s, dot) / x.len() as f32));
    let scale = s.splat(scale);
    for (((x, w), d), g) in xs.iter().zip(weights).zip(ds).zip(gradients) {
        let (x, dy) = (s.load(x), s.load(d));
        s.store(s.fma(dy, s.mul(x, scale), s.load(g)), g);
        s.store(s.mul(s.fma(dy, s.load(w), s.mul(x, correction)), scale), d);
    }
    let sum = load_partial(s, gradient_tail, 0.0);
    store_partial(s, s.fma(d_last, s.mul(x_last, scale), sum), gradient_tail);
    let dx = s.mul(s.fma(d_last, w_last, s.mul(x_last, correction)), scale);
    store_partial(s, dx, d_tail);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rms_norm::{rms_norm, rms_norm_backward};

    /// The dimension of a head is no multiple of a vector's lanes.
    const HEADS: Heads = Heads { queries: 4, keys: 2, dim: 11 };
    const EPS: f32 = 1e-5;

    fn numbers(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() * 2.0).collect()
    }

    #[test]
    fn every_head_is_normalised_as_a_row_of_its_own_and_values_stay() {
        let Heads { queries, keys, dim } = HEADS;
        let (before, weight) = (numbers(3 * HEADS.row(), 1.7), numbers(2 * dim, 0.3));
        let d_out = numbers(before.len(), 0.9);
        let (mut qkv, mut d_qkv) = (before.clone(), d_out.clone());
        let mut gradient = vec![0.25; 2 * dim];
        head_norm(HEADS, &weight, EPS, &mut qkv);
        head_norm_backward(HEADS, &weight, EPS, &before, &mut d_qkv, &mut gradient);
        let mut expected_gradient = vec![0.25; 2 * dim];
        for (head, x) in before.chunks(dim).enumerate() {
            let own = match head % (queries + 2 * keys) {
                head if head < queries => 0..dim,
                head if head < queries + keys => dim..2 * dim,
                _ => {
                    let at = head * dim..(head + 1) * dim;
                    assert_eq!((&qkv[at.clone()], &d_qkv[at.clone()]), (x, &d_out[at]));
                    continue;
                }
            };
            let at = head * dim..(head + 1) * dim;
            let (mut y, mut dx) = (vec![0.0; dim], vec![0.0; dim]);
            rms_norm(x, &weight[own.clone()], EPS, &mut y);
            assert_eq!(qkv[at.clone()], y);
            let mut dy = d_out[at.clone()].to_vec();
            let sum = &mut expected_gradient[own.clone()];
            rms_norm_backward(x, &weight[own], EPS, &mut dy, &mut dx, sum);
            assert_eq!(d_qkv[at], dx);
        }
        assert_eq!(gradient, expected_gradient);
    }
}
