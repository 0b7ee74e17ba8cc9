//! This module checks single operations: the outputs of a launcher on the GPU against `ops`, or
//! against plain sums in f64, on the CPU.
//!
//! Contract: inputs are random numbers that the GPU can represent. Outputs begin as NaNs, and the
//! memory behind them must stay as it is. Each operation runs twice in fresh memory, and both runs
//! must give the same bits. An error is relative to the larger of the expected number and the root
//! mean square of all expected numbers. It may be at most 1e-2 for bf16, 2e-3 for fp16, [`WIDE`]
//! for f32, and [`SUMS`] for sums of tensor cores. Attention on tensor cores rounds to 16 bits on
//! the way: prompts may be off twice as far, cuDNN's attention three times. `tests/kernels` runs
//! the same operations without a GPU; it watches every access to memory and runs threads in several
//! orders. Its cases are its own, because it compares variants of an operation bit for bit.

mod attention;
mod cached;
mod elementwise;
mod optimizer;
mod products;
mod rig;
mod rows;
mod sampling;

use super::{Check, Outcome, Shapes, deterministic};
use crate::cuda::{Gpu, HalfFormat, cudnn};
use anyhow::{Context, Result};
use rayon::prelude::*;
use rig::Rig;

/// The largest error of f32 outputs.
const WIDE: f64 = 1e-5;
/// The largest error of f32 sums of tensor cores. They cut off instead of rounding, by up to a unit
/// in the last place for each 16 of as many as 18,944 products.
const SUMS: f64 = 2e-4;
const EXACT: f64 = 0.0;

pub(crate) fn check(gpu: &mut Gpu, shapes: Shapes) -> Result<Vec<Check>> {
    let format = gpu.device.half_format();
    let mut comparison = Comparison { gpu, format, shapes, checks: Vec::new() };
    rows::check(&mut comparison)?;
    elementwise::check(&mut comparison)?;
    attention::check(&mut comparison)?;
    products::check(&mut comparison)?;
    optimizer::check(&mut comparison)?;
    sampling::check(&mut comparison)?;
    Ok(comparison.checks)
}

/// The checks of one GPU so far.
struct Comparison<'g> {
    gpu: &'g mut Gpu,
    format: HalfFormat,
    shapes: Shapes,
    checks: Vec<Check>,
}

/// The numbers that an output should have, within `tolerance`.
struct Expected {
    what: &'static str,
    numbers: Vec<f32>,
    tolerance: f64,
}

/// Makes an [`Expected`].
fn expected(what: &'static str, numbers: Vec<f32>, tolerance: f64) -> Expected {
    Expected { what, numbers, tolerance }
}

impl Comparison<'_> {
    /// Runs `operation` twice and compares its outputs with `expected`, in order.
    fn compare(
        &mut self,
        name: impl Into<String>,
        expected: &[Expected],
        operation: impl Fn(&Rig<'_>) -> Result<Vec<Vec<f32>>>,
    ) -> Result<()> {
        self.compare_repeats(name, expected, true, operation)
    }

    /// Does the same; both runs must give the same bits only if `is_deterministic`.
    fn compare_repeats(
        &mut self,
        name: impl Into<String>,
        expected: &[Expected],
        is_deterministic: bool,
        operation: impl Fn(&Rig<'_>) -> Result<Vec<Vec<f32>>>,
    ) -> Result<()> {
        let name = format!("{}, {:?}", name.into(), self.format);
        let mut run = || operation(&Rig::on(self.gpu)).with_context(|| name.clone());
        let (first, second) = (run()?, run()?);
        let is_same =
            first.iter().zip(&second).all(|(first, second)| have_same_bits(first, second));
        let (mut is_right, mut found) = (first.len() == expected.len(), Vec::new());
        for (Expected { what, numbers, tolerance }, actual) in expected.iter().zip(&first) {
            let error = error(actual, numbers);
            is_right &= error <= *tolerance;
            found.push(format!("{what} {error:.1e}"));
        }
        if !is_same {
            found.push("different bits the second time".to_owned());
            is_right &= !is_deterministic;
        }
        self.checks.push(Check {
            name,
            found: found.join(", "),
            outcome: Outcome::right_if(is_right),
        });
        Ok(())
    }

    /// Records why cuDNN did not start. That is wrong where the library lies beside a real GPU.
    fn cudnn_did_not_start(&mut self, name: &str, reason: &anyhow::Error) {
        let is_emulated = self.gpu.device.properties().is_emulated();
        let outcome = match cudnn::version() {
            Ok(_) if !is_emulated => Outcome::Wrong,
            _ => Outcome::Skipped,
        };
        let name = format!("{name}, {:?}", self.format);
        self.checks.push(Check { name, found: format!("{reason:#}"), outcome });
    }
}

/// Returns the largest error; it is infinite where lengths differ or a number is NaN.
fn error(actual: &[f32], expected: &[f32]) -> f64 {
    if actual.len() != expected.len() {
        return f64::INFINITY;
    }
    let squares: f64 = expected.par_iter().map(|&x| f64::from(x).powi(2)).sum();
    let floor = (squares / expected.len().max(1) as f64).sqrt();
    let of_one = |(&actual, &expected): (&f32, &f32)| {
        let (actual, expected) = (f64::from(actual), f64::from(expected));
        let error = (actual - expected).abs();
        match error {
            0.0 => 0.0,
            _ if error.is_nan() => f64::INFINITY,
            _ => error / expected.abs().max(floor),
        }
    };
    actual.par_iter().zip(expected).map(of_one).reduce(|| 0.0, f64::max)
}

/// Compares bits, because a NaN is not equal to itself.
fn have_same_bits(first: &[f32], second: &[f32]) -> bool {
    let is_same = |(first, second): (&f32, &f32)| first.to_bits() == second.to_bits();
    first.len() == second.len() && first.par_iter().zip(second).all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_relative_to_the_number_or_the_mean_and_a_nan_is_wrong() {
        assert_eq!(error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((error(&[1.1, 7.0], &[1.0, 7.0]) - 0.1 / 5.0).abs() < 1e-6);
        assert!((error(&[1.0, 7.7], &[1.0, 7.0]) - 0.1).abs() < 1e-6);
        assert_eq!(error(&[f32::NAN, 7.0], &[1.0, 7.0]), f64::INFINITY);
        assert_eq!(error(&[1.0], &[1.0, 7.0]), f64::INFINITY);
        assert_eq!(error(&[], &[]), 0.0);
    }
}
