//! AdamW (Loshchilov and Hutter 2019) over flat buffers, in one pass.
//!
//! It is PyTorch's update: the decoupled decay is scaled by the learning rate, the moments are
//! bias-corrected, and epsilon is added after the root. The gradient is multiplied by `gradient_scale`
//! first, so normalising and clipping need no pass of their own. Every element is independent of the
//! others.

use super::simd::{LANES, Simd, load_partial, simd_fn, store_partial};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// The learning rate of this step.
    pub learning_rate: f32,
    /// The decay rate of the first moment.
    pub beta1: f32,
    /// The decay rate of the second moment.
    pub beta2: f32,
    /// Is added to the root of the second moment.
    pub epsilon: f32,
    /// The decoupled weight decay; it applies to the decay ranges only.
    pub weight_decay: f32,
    /// Multiplies the gradient: one over the tokens or sequences, times the clipping factor.
    pub gradient_scale: f32,
    /// The number of this step, from 1.
    pub step: u64,
}

/// The factors that one pass uses.
#[derive(Clone, Copy)]
struct Factors {
    keep: f32,
    step_size: f32,
    inverse_root_correction: f32,
}

/// A task updates this many elements.
const BLOCK: usize = 16 * 1024;

impl AdamW {
    /// Updates `parameters` and both moments from `gradients`, on the pool. `decays` are the ranges of
    /// elements to which weight decay applies, ascending and disjoint.
    pub fn step(
        &self,
        parameters: &mut [f32],
        gradients: &[f32],
        first_moments: &mut [f32],
        second_moments: &mut [f32],
        decays: &[Range<usize>],
    ) {
        assert_eq!(parameters.len(), gradients.len());
        assert_eq!(parameters.len(), first_moments.len());
        assert_eq!(parameters.len(), second_moments.len());
        let correction =
            |beta: f32| 1.0 - f64::from(beta).powi(i32::try_from(self.step).unwrap_or(i32::MAX));
        let factors = |decays: bool| Factors {
            keep: if decays { 1.0 - self.learning_rate * self.weight_decay } else { 1.0 },
            step_size: (f64::from(self.learning_rate) / correction(self.beta1)) as f32,
            inverse_root_correction: (1.0 / correction(self.beta2).sqrt()) as f32,
        };
        let (plain, decayed) = (factors(false), factors(true));
        parameters
            .par_chunks_mut(BLOCK)
            .zip(gradients.par_chunks(BLOCK))
            .zip(first_moments.par_chunks_mut(BLOCK).zip(second_moments.par_chunks_mut(BLOCK)))
            .enumerate()
            .for_each(|(block, ((p, g), (m, v)))| {
                let start = block * BLOCK;
                let mut at = 0;
                while at < p.len() {
                    let (len, decays) = run_at(decays, start + at, p.len() - at);
                    let run = at..at + len;
                    let factors = if decays { decayed } else { plain };
                    let (p, g) = (&mut p[run.clone()], &g[run.clone()]);
                    update(*self, factors, p, g, &mut m[run.clone()], &mut v[run]);
                    at += len;
                }
            });
    }
}

/// Returns how many of the next `most` elements are alike, and whether they decay.
fn run_at(decays: &[Range<usize>], at: usize, most: usize) -> (usize, bool) {
    let next = decays.partition_point(|range| range.end <= at);
    match decays.get(next) {
        Some(range) if range.start <= at => (most.min(range.end - at), true),
        Some(range) => (most.min(range.start - at), false),
        None => (most, false),
    }
}

simd_fn!(
    fn update(
        adamw: AdamW,
        factors: Factors,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) = update_generic
);

/// Each factor in all lanes of a vector.
#[derive(Clone, Copy)]
struct Lanes<V> {
    beta1: V,
    rest1: V,
    beta2: V,
    rest2: V,
    epsilon: V,
    scale: V,
    keep: V,
    minus_step: V,
    root: V,
}

/// Returns parameters and moments of eight elements after the step, from parameters, gradients and moments.
#[inline(always)]
fn update_eight<S: Simd>(s: S, l: &Lanes<S::V>, [p, g, m, v]: [S::V; 4]) -> [S::V; 3] {
    let g = s.mul(g, l.scale);
    let m = s.fma(g, l.rest1, s.mul(m, l.beta1));
    let v = s.fma(s.mul(g, g), l.rest2, s.mul(v, l.beta2));
    let update = s.div(m, s.fma(s.sqrt(v), l.root, l.epsilon));
    [s.fma(update, l.minus_step, s.mul(p, l.keep)), m, v]
}

#[inline(always)]
fn update_generic<S: Simd>(
    s: S,
    adamw: AdamW,
    factors: Factors,
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let lanes = Lanes {
        beta1: s.splat(adamw.beta1),
        rest1: s.splat(1.0 - adamw.beta1),
        beta2: s.splat(adamw.beta2),
        rest2: s.splat(1.0 - adamw.beta2),
        epsilon: s.splat(adamw.epsilon),
        scale: s.splat(adamw.gradient_scale),
        keep: s.splat(factors.keep),
        minus_step: s.splat(-factors.step_size),
        root: s.splat(factors.inverse_root_correction),
    };
    let (ps, p_tail) = p.as_chunks_mut::<LANES>();
    let (gs, g_tail) = g.as_chunks::<LANES>();
    let (ms, m_tail) = m.as_chunks_mut::<LANES>();
    let (vs, v_tail) = v.as_chunks_mut::<LANES>();
    for (((p, g), m), v) in ps.iter_mut().zip(gs).zip(ms).zip(vs) {
        let old = [s.load(p), s.load(g), s.load(m), s.load(v)];
        let [new_p, new_m, new_v] = update_eight(s, &lanes, old);
        s.store(new_p, p);
        s.store(new_m, m);
        s.store(new_v, v);
    }
    let (p, g) = (load_partial(s, p_tail, 1.0), load_partial(s, g_tail, 1.0));
    let (m, v) = (load_partial(s, m_tail, 1.0), load_partial(s, v_tail, 1.0));
    let [new_p, new_m, new_v] = update_eight(s, &lanes, [p, g, m, v]);
    store_partial(s, new_p, p_tail);
    store_partial(s, new_m, m_tail);
    store_partial(s, new_v, v_tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_match_the_formula_in_double_precision() {
        let len = 40_003;
        let decays = [0..11, 17_000..30_000];
        let mut p: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let (mut m, mut v) = (vec![0.0f32; len], vec![0.0f32; len]);
        let mut exact: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
        for step in 1..=3 {
            let g: Vec<f32> = (0..len).map(|i| ((i + step * 7) as f32 * 0.11).cos()).collect();
            let adamw = AdamW {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                weight_decay: 0.1,
                gradient_scale: 0.5,
                step: step as u64,
            };
            adamw.step(&mut p, &g, &mut m, &mut v, &decays);
            for (i, [p, m, v]) in exact.iter_mut().enumerate() {
                let g = f64::from(g[i]) * 0.5;
                if decays.iter().any(|range| range.contains(&i)) {
                    *p *= 1.0 - 0.01 * 0.1;
                }
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                let t = step as i32;
                let root = (*v / (1.0 - 0.95f64.powi(t))).sqrt() + 1e-8;
                *p -= 0.01 * *m / (1.0 - 0.9f64.powi(t)) / root;
            }
        }
        for (i, (a, e)) in p.iter().zip(&exact).enumerate() {
            assert!((f64::from(*a) - e[0]).abs() < 1e-5, "{i}: {a} is not {}", e[0]);
        }
    }
}
