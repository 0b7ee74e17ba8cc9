//! This file makes random inputs and compares outputs.

use crate::cuda::half::{Half, HalfFormat};
use crate::emulation::{Gpu, Library, ORDERS};
use codeseq::base::rng;

pub(crate) const FORMATS: [HalfFormat; 2] = [HalfFormat::Bf16, HalfFormat::Fp16];

/// The largest relative error of fp32 outputs.
pub(crate) const WIDE: f64 = 1e-5;

/// Runs `test` with threads in every order, expects the same bits from all, and gives the outputs
/// to `check`. A format other than the first runs in one order, because orders do not depend on it.
/// Without a compiler it does nothing.
pub(crate) fn on_every_order<T: PartialEq>(
    format: HalfFormat,
    test: impl Fn(&Gpu) -> T,
    check: impl Fn(T),
) {
    let Some(library) = Library::get() else { return };
    let orders = if format == FORMATS[0] { &ORDERS[..] } else { &ORDERS[..1] };
    let output = |&order: &u32| test(&Gpu::new(library, format, order));
    let first = output(&orders[0]);
    for order in &orders[1..] {
        assert!(output(order) == first, "other bits with order {order}");
    }
    check(first);
}

impl HalfFormat {
    /// Returns normally distributed numbers times `scale`, rounded.
    pub(crate) fn normal(self, seed: u64, len: usize, scale: f32) -> Vec<Half> {
        let uniform = |index: usize| rng::uniform(seed, index as u64);
        let number = |i: usize| {
            let (a, b) = (1.0 - uniform(2 * i), uniform(2 * i + 1));
            (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
        };
        (0..len).map(|i| self.narrow(number(i) * scale)).collect()
    }

    pub(crate) fn widen_all(self, x: &[Half]) -> Vec<f32> {
        x.iter().map(|&x| self.widen(x)).collect()
    }

    pub(crate) fn narrow_all(self, x: &[f32]) -> Vec<Half> {
        x.iter().map(|&x| self.narrow(x)).collect()
    }

    /// Does the same as [`assert_close`] with the tolerance of the format.
    #[track_caller]
    pub(crate) fn assert_close(self, what: &str, actual: &[Half], expected: &[f32]) {
        let tolerance = if self == HalfFormat::Bf16 { 1e-2 } else { 2e-3 };
        assert_close(what, &self.widen_all(actual), expected, tolerance);
    }
}

/// Returns the bits, because a NaN is not equal to itself.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Fails where `actual` is further from `expected` than `tolerance` times the larger of the
/// expected number and the root mean square of all.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: as many");
    let squares: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
    let floor = (squares / expected.len().max(1) as f64).sqrt();
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let (a, e) = (f64::from(a), f64::from(e));
        let error = (a - e).abs();
        assert!(error <= tolerance * e.abs().max(floor), "{what}[{i}] is {a}, not {e}");
    }
}
