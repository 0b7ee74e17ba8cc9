//! Random inputs, and what it means that outputs agree.

use crate::emulation::{Gpu, Library, ORDERS};
use codeseq::base::rng;
use half::bf16;

/// The largest relative error of bf16 outputs.
pub(crate) const NARROW: f64 = 1e-2;
/// The largest relative error of fp32 outputs.
pub(crate) const WIDE: f64 = 1e-5;

/// Runs `test` with threads in every order, has the bits agree, and gives the outputs to `check`;
/// does nothing without a compiler.
pub(crate) fn on_every_order<T: PartialEq>(test: impl Fn(&Gpu) -> T, check: impl Fn(T)) {
    let Some(library) = Library::get() else { return };
    let outputs = ORDERS.map(|order| test(&Gpu::new(library, order)));
    for (order, output) in ORDERS.iter().zip(&outputs) {
        assert!(*output == outputs[0], "other bits with order {order}");
    }
    let [first, ..] = outputs;
    check(first);
}

/// Numbers of a standard normal distribution times `scale`, rounded to bf16.
pub(crate) fn normal(seed: u64, len: usize, scale: f32) -> Vec<bf16> {
    let uniform = |index: usize| rng::uniform(seed, index as u64);
    let number = |i: usize| {
        let (a, b) = (1.0 - uniform(2 * i), uniform(2 * i + 1));
        (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    };
    (0..len).map(|i| bf16::from_f32(number(i) * scale)).collect()
}

/// The same as f32.
pub(crate) fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// The nearest bf16 of each.
pub(crate) fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// The bits, which unlike the numbers are equal to themselves.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The bits of each.
pub(crate) fn short_bits(x: &[bf16]) -> Vec<u16> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Fails where `actual` is further from `expected` than `tolerance` times the larger of the number
/// expected and the root mean square of all.
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

/// The same for bf16.
#[track_caller]
pub(crate) fn assert_close_narrow(what: &str, actual: &[bf16], expected: &[f32]) {
    assert_close(what, &widen(actual), expected, NARROW);
}
