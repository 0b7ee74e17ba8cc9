//! This file checks the products of linear layers.

use super::rig::Numbers;
use super::{Comparison, EXACT, Expected, SUMS, expected};
use crate::cuda::Half;
use crate::cuda::gemm::{Linear, Start};
use anyhow::Result;
use rayon::prelude::*;

/// Checks forward, both gradients, a bias, and accumulation.
pub(crate) fn check(to: &mut Comparison<'_>) -> Result<()> {
    let linear = |(rows, inputs, outputs)| Linear { rows, inputs, outputs };
    // The large shapes are those of queries, keys and values, of the feed-forward network, and of a
    // part of the head.
    let shapes = to.shapes.choose(
        &[(1, 8, 8), (17, 64, 96), (128, 136, 40)],
        &[
            (1, 4096, 6144),
            (17, 3584, 4608),
            (64, 4096, 4096),
            (256, 4096, 6144),
            (256, 18_944, 3584),
            (128, 3584, 16_384),
            (5120, 512, 1024),
        ],
    );
    shapes.into_iter().map(linear).try_for_each(|sizes| products(to, sizes))
}

fn products(to: &mut Comparison<'_>, sizes: Linear) -> Result<()> {
    let format = to.format;
    let Linear { rows, inputs, outputs } = sizes;
    let (x, weight) =
        (format.normal(70, rows * inputs, 1.0), format.normal(71, outputs * inputs, 0.5));
    let (dy, bias) = (format.normal(72, rows * outputs, 1.0), format.normal(73, outputs, 2.0));
    let before = format.normal(74, rows * outputs, 3.0);
    let (x_wide, weight_wide) = (format.widen_all(&x), format.widen_all(&weight));
    let dy_wide = format.widen_all(&dy);
    let y = product(&x_wide, &weight_wide, inputs);
    let bias_wide = format.widen_all(&bias);
    let with_bias = y.chunks_exact(outputs).flat_map(|row| sum(row, &bias_wide)).collect();
    let dx = product(&dy_wide, &transposed(&weight_wide, inputs), outputs);
    let dw = product(&transposed(&dy_wide, outputs), &transposed(&x_wide, inputs), rows);
    let short = |what, numbers| expected(what, numbers, format.tolerance());
    let wide = |what, numbers: &[f32]| -> Expected { expected(what, numbers.to_vec(), SUMS) };
    let all = [
        short("y", y.clone()),
        wide("in f32", &y),
        short("with bias", with_bias),
        short("added", sum(&y, &format.widen_all(&before))),
        short("dx", dx.clone()),
        wide("in f32", &dx),
        short("dw", dw.clone()),
        wide("in f32", &dw),
        expected("depth 0", vec![0.0; rows * outputs], EXACT),
    ];
    to.compare(format!("products {rows} x {inputs} x {outputs}"), &all, |rig| {
        let (mut gemm, stream) = (rig.gemm(), rig.stream);
        let (x, weight, dy) = (rig.put(&x)?, rig.put(&weight)?, rig.put(&dy)?);
        let (bias, mut added) = (rig.put(&bias)?, rig.put(&before)?);
        let take = |len| rig.poisoned::<Half>(len);
        let take_wide = |len| rig.poisoned::<f32>(len);
        let (mut y, mut y_wide) = (take(rows * outputs)?, take_wide(rows * outputs)?);
        let (mut with_bias, mut empty) = (take(rows * outputs)?, take(rows * outputs)?);
        let (mut dx, mut dx_wide) = (take(rows * inputs)?, take_wide(rows * inputs)?);
        let (mut dw, mut dw_wide) = (take(outputs * inputs)?, take_wide(outputs * inputs)?);
        let (x, weight, dy, zero) = (x.slice(), weight.slice(), dy.slice(), Start::Zero);
        gemm.forward(stream, sizes, x, weight, zero, y.slice_mut())?;
        gemm.forward(stream, sizes, x, weight, Start::Zero, y_wide.slice_mut())?;
        let start = Start::Bias(bias.slice());
        gemm.forward(stream, sizes, x, weight, start, with_bias.slice_mut())?;
        gemm.forward(stream, sizes, x, weight, Start::Accumulate, added.slice_mut())?;
        gemm.input_gradient(stream, sizes, dy, weight, Start::Zero, dx.slice_mut())?;
        gemm.input_gradient(stream, sizes, dy, weight, Start::Zero, dx_wide.slice_mut())?;
        gemm.weight_gradient(stream, sizes, dy, x, Start::Zero, dw.slice_mut())?;
        gemm.weight_gradient(stream, sizes, dy, x, Start::Zero, dw_wide.slice_mut())?;
        let nothing = Linear { inputs: 0, ..sizes };
        let (none, no_weight) = (x.range(0..0), weight.range(0..0));
        gemm.forward(stream, nothing, none, no_weight, Start::Zero, empty.slice_mut())?;
        Ok(vec![
            rig.read(&y)?,
            rig.read(&y_wide)?,
            rig.read(&with_bias)?,
            rig.read(&added)?,
            rig.read(&dx)?,
            rig.read(&dx_wide)?,
            rig.read(&dw)?,
            rig.read(&dw_wide)?,
            rig.read(&empty)?,
        ])
    })
}

/// Returns `a · bᵀ`, both with rows of `depth` numbers.
fn product(a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    let row = |a| b.chunks_exact(depth).map(move |b| dot(a, b)).collect::<Vec<f32>>();
    a.par_chunks_exact(depth).flat_map(row).collect()
}

/// Sums in f64 and in several lanes, so that the compiler can vectorise it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    let mut sums = [0.0f64; LANES];
    for (a, b) in a.zip(b) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    sums.iter().sum::<f64>() as f32
}

/// Returns the transpose of rows of `width` numbers.
fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
    let count = rows.len() / width;
    (0..rows.len()).into_par_iter().map(|i| rows[i % count * width + i / count]).collect()
}

fn sum(numbers: &[f32], others: &[f32]) -> Vec<f32> {
    numbers.iter().zip(others).map(|(number, other)| number + other).collect()
}
