//! SwiGLU (Shazeer 2020): `silu(gate) * up`, on rows that hold gate and up side by side.
//!
//! A row of `gate_up` is `[gate, up]`, each of `width` floats. The backward computes the product again,
//! since the gradient of the next matrix needs it, and writes the gradients over gate and up.

use super::simd::{LANES, Simd, exp, load_partial, simd_fn, store_partial};

simd_fn!(
    /// Computes `out = silu(gate) * up` for each row.
    pub fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) = swiglu_generic
);

#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

#[inline(always)]
fn swiglu_generic<S: Simd>(s: S, gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        let (gates, gate_tail) = gate.as_chunks::<LANES>();
        let (ups, up_tail) = up.as_chunks::<LANES>();
        let (outs, out_tail) = out.as_chunks_mut::<LANES>();
        for ((g, u), out) in gates.iter().zip(ups).zip(outs) {
            let g = s.load(g);
            let y = s.mul(s.mul(g, sigmoid(s, g)), s.load(u));
            s.store(y, out);
        }
        let g = load_partial(s, gate_tail, 0.0);
        let y = s.mul(s.mul(g, sigmoid(s, g)), load_partial(s, up_tail, 0.0));
        store_partial(s, y, out_tail);
    }
}

simd_fn!(
    /// Overwrites `gate_up` with the gradients of gate and up, and `dy` with the product of the forward.
    pub fn swiglu_backward(gate_up: &mut [f32], width: usize, dy: &mut [f32]) = backward_generic
);

#[inline(always)]
fn backward_eight<S: Simd>(s: S, g: S::V, u: S::V, d: S::V) -> [S::V; 3] {
    let sigmoid = sigmoid(s, g);
    let silu = s.mul(g, sigmoid);
    // silu' = sigmoid + silu * (1 - sigmoid)
    let slope = s.fma(silu, s.sub(s.splat(1.0), sigmoid), sigmoid);
    [s.mul(s.mul(d, u), slope), s.mul(d, silu), s.mul(silu, u)]
}

#[inline(always)]
fn backward_generic<S: Simd>(s: S, gate_up: &mut [f32], width: usize, dy: &mut [f32]) {
    for (row, dy) in gate_up.chunks_exact_mut(2 * width).zip(dy.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at_mut(width);
        let (gates, gate_tail) = gate.as_chunks_mut::<LANES>();
        let (ups, up_tail) = up.as_chunks_mut::<LANES>();
        let (dys, dy_tail) = dy.as_chunks_mut::<LANES>();
        for ((g, u), d) in gates.iter_mut().zip(ups).zip(dys) {
            let [dg, du, product] = backward_eight(s, s.load(g), s.load(u), s.load(d));
            s.store(dg, g);
            s.store(du, u);
            s.store(product, d);
        }
        let (g, u) = (load_partial(s, gate_tail, 0.0), load_partial(s, up_tail, 0.0));
        let [dg, du, product] = backward_eight(s, g, u, load_partial(s, dy_tail, 0.0));
        store_partial(s, dg, gate_tail);
        store_partial(s, du, up_tail);
        store_partial(s, product, dy_tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(gate: f64, up: f64) -> f64 {
        gate / (1.0 + (-gate).exp()) * up
    }

    #[test]
    fn values_and_gradients_match_double_precision_differences() {
        let width = 11;
        let gate_up: Vec<f32> = (0..44).map(|i| (i as f32 * 1.3).sin() * 4.0).collect();
        let mut y = vec![0.0; 22];
        swiglu(&gate_up, width, &mut y);
        let mut gradients = gate_up.clone();
        let dy: Vec<f32> = (0..22).map(|i| (i as f32 * 0.9).cos()).collect();
        let mut product = dy.clone();
        swiglu_backward(&mut gradients, width, &mut product);
        for i in 0..22 {
            let (row, column) = (i / width, i % width);
            let at = row * 2 * width + column;
            let (g, u) = (f64::from(gate_up[at]), f64::from(gate_up[at + width]));
            let d = f64::from(dy[i]);
            assert!((f64::from(y[i]) - exact(g, u)).abs() < 1e-6);
            assert_eq!(y[i], product[i]);
            let h = 1e-5;
            let dg = d * (exact(g + h, u) - exact(g - h, u)) / (2.0 * h);
            let du = d * (exact(g, u + h) - exact(g, u - h)) / (2.0 * h);
            assert!((f64::from(gradients[at]) - dg).abs() < 1e-5);
            assert!((f64::from(gradients[at + width]) - du).abs() < 1e-5);
        }
    }
}
