//! Root-mean-square normalisation of rows (Zhang and Sennrich 2019).
//!
//! `y = x * rsqrt(mean(x²) + eps) * weight`. The backward computes the scale again from `x`, adds the input
//! gradient to the gradient of the residual stream, and adds the weight's gradient to a partial sum of the
//! caller. The residual addition itself is part of the matrix product before the norm.

use super::simd::{LANES, Simd, load_partial, simd_fn, store_partial, sum_lanes};

/// Returns 1 / rms of a row.
#[inline(always)]
pub(crate) fn scale<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut sum = s.splat(0.0);
    for chunk in chunks {
        let v = s.load(chunk);
        sum = s.fma(v, v, sum);
    }
    let v = load_partial(s, tail, 0.0);
    sum = s.fma(v, v, sum);
    1.0 / (sum_lanes(s, sum) / x.len() as f32 + eps).sqrt()
}

simd_fn!(
    /// Normalises each row of `x`, which is as wide as `weight`, into `out`.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = forward_generic
);

#[inline(always)]
fn forward_generic<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = s.splat(scale(s, x, eps));
        let (xs, x_tail) = x.as_chunks::<LANES>();
        let (weights, weight_tail) = weight.as_chunks::<LANES>();
        let (outs, out_tail) = out.as_chunks_mut::<LANES>();
        for ((x, w), out) in xs.iter().zip(weights).zip(outs) {
            s.store(s.mul(s.mul(s.load(x), scale), s.load(w)), out);
        }
        let y = s.mul(load_partial(s, x_tail, 0.0), scale);
        store_partial(s, s.mul(y, load_partial(s, weight_tail, 0.0)), out_tail);
    }
}

/// Returns the output of eight elements, and adds their input gradient and weight gradient to `sums`.
#[inline(always)]
fn backward_eight<S: Simd>(
    s: S,
    [x, w, dy]: [S::V; 3],
    [dx, gradient]: [S::V; 2],
    (scale, correction): (S::V, S::V),
) -> [S::V; 3] {
    let normal = s.mul(x, scale);
    let inner = s.fma(dy, w, s.mul(x, correction));
    [s.mul(normal, w), s.fma(inner, scale, dx), s.fma(dy, normal, gradient)]
}

simd_fn!(
    /// Adds, for each row, the gradient with respect to `x` to `dx` and that with respect to the weight to
    /// `weight_gradient`. It then overwrites `dy` with the output of the forward.
    pub fn rms_norm_backward(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        dy: &mut [f32],
        dx: &mut [f32],
        weight_gradient: &mut [f32],
    ) = backward_generic
);

#[inline(always)]
fn backward_generic<S: Simd>(
    s: S,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &mut [f32],
    dx: &mut [f32],
    weight_gradient: &mut [f32],
) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact_mut(width));
    for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
        let scale = scale(s, x, eps);
        let (xs, x_tail) = x.as_chunks::<LANES>();
        let (weights, weight_tail) = weight.as_chunks::<LANES>();
        let (dys, dy_tail) = dy.as_chunks_mut::<LANES>();
        let mut dot = s.splat(0.0);
        for ((x, w), dy) in xs.iter().zip(weights).zip(&*dys) {
            dot = s.fma(s.mul(s.load(dy), s.load(w)), s.load(x), dot);
        }
        let tails = [
            load_partial(s, x_tail, 0.0),
            load_partial(s, weight_tail, 0.0),
            load_partial(s, dy_tail, 0.0),
        ];
        dot = s.fma(s.mul(tails[2], tails[1]), tails[0], dot);
        // dx = scale * (dy * w - x * scale² * mean(dy * w * x))
        let correction = s.splat(-scale * scale * (sum_lanes(s, dot) / width as f32));
        let scale = s.splat(scale);
        let (dxs, dx_tail) = dx.as_chunks_mut::<LANES>();
        let (gradients, gradient_tail) = weight_gradient.as_chunks_mut::<LANES>();
        for ((((x, w), dy), dx), g) in xs.iter().zip(weights).zip(dys).zip(dxs).zip(gradients) {
            let (row, sums) = ([s.load(x), s.load(w), s.load(dy)], [s.load(dx), s.load(g)]);
            let [y, new_dx, new_g] = backward_eight(s, row, sums, (scale, correction));
            s.store(y, dy);
            s.store(new_dx, dx);
            s.store(new_g, g);
        }
        let sums = [load_partial(s, dx_tail, 0.0), load_partial(s, gradient_tail, 0.0)];
        let [y, new_dx, new_g] = backward_eight(s, tails, sums, (scale, correction));
        store_partial(s, y, dy_tail);
        store_partial(s, new_dx, dx_tail);
        store_partial(s, new_g, gradient_tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
    }

    #[test]
    fn values_and_gradients_match_double_precision_differences() {
        let width = 13;
        let x: Vec<f32> = (0..26).map(|i| (i as f32 * 1.7).sin() * 2.0).collect();
        let weight: Vec<f32> = (0..13).map(|i| 1.0 + (i as f32).cos() * 0.3).collect();
        let dy: Vec<f32> = (0..26).map(|i| (i as f32 * 0.9).cos()).collect();
        let eps = 1e-5;
        let mut y = vec![0.0; 26];
        rms_norm(&x, &weight, eps, &mut y);
        let (mut dx, mut dw, mut again) = (vec![0.5; 26], vec![0.25; 13], dy.clone());
        rms_norm_backward(&x, &weight, eps, &mut again, &mut dx, &mut dw);
        assert_eq!(again, y);
        let double = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            let rows = x.chunks(width).zip(dy.chunks(width));
            rows.map(|(x, dy)| {
                let y = exact(x, w, f64::from(eps));
                y.iter().zip(dy).map(|(y, &d)| y * f64::from(d)).sum::<f64>()
            })
            .sum()
        };
        let h = 1e-5;
        for i in 0..26 {
            let (mut up, mut down) = (double(&x), double(&x));
            up[i] += h;
            down[i] -= h;
            let w = double(&weight);
            let slope = (loss(&up, &w) - loss(&down, &w)) / (2.0 * h);
            assert!((f64::from(dx[i]) - 0.5 - slope).abs() < 1e-5, "dx {i}");
        }
        for i in 0..13 {
            let (mut up, mut down) = (double(&weight), double(&weight));
            up[i] += h;
            down[i] -= h;
            let slope = (loss(&double(&x), &up) - loss(&double(&x), &down)) / (2.0 * h);
            assert!((f64::from(dw[i]) - 0.25 - slope).abs() < 1e-5, "dw {i}");
        }
    }
}
