//! This file checks norms, sums over rows, and the scores of rows of logits.

use super::rig::{Number, Numbers, Rig};
use super::{Comparison, EXACT, WIDE, expected};
use crate::cuda::Half;
use crate::cuda::kernels::Float;
use crate::cuda::kernels::column_sums::{PARTS, SumOverRows, parts};
use crate::cuda::kernels::logprob::{ScoreGradient, Shape, Statistics};
use crate::cuda::kernels::rms_norm::{Norm, NormBackward};
use crate::cuda::kernels::rope::Heads;
use crate::ops;
use anyhow::Result;

const EPS: f32 = 1e-5;

pub(crate) fn check(to: &mut Comparison<'_>) -> Result<()> {
    let norms = to.shapes.choose(
        &[(8, 3), (192, 17), (4096, 1), (3584, 2), (64, PARTS + 37)],
        &[(4096, 5120), (3584, 5120), (8192, 17)],
    );
    for (width, rows) in norms {
        norm(to, width, rows)?;
        norm_backward(to, width, rows)?;
    }
    let heads = to.shapes.choose(
        &[(6, 2, 32, 17), (3, 1, 64, PARTS + 37), (32, 8, 128, 3)],
        &[(32, 8, 128, 5120), (16, 8, 128, 5120)],
    );
    for (queries, keys, dim, rows) in heads {
        head_norm(to, Heads { queries, keys, dim }, rows)?;
    }
    let sums = to
        .shapes
        .choose(&[(40, PARTS + 37), (6144, 1), (4608, 17), (8, 0)], &[(4608, 5120), (6144, 300)]);
    for (width, rows) in sums {
        column_sums(to, width, rows)?;
    }
    let logits = to.shapes.choose(
        &[(1, 8, 2, 1.0, 1.0), (70, 72, 17, 1.3, 2.0), (8195, 8200, 3, 1.0, 4.0)],
        &[(128_256, 128_256, 64, 1.0, 3.0), (152_064, 152_064, 64, 0.7, 6.0)],
    );
    for (vocab, stride, rows, temperature, scale) in logits {
        scores(to, Shape { vocab, stride, temperature }, rows, scale)?;
    }
    Ok(())
}

/// Checks a norm alone, and norms of a sum that is stored rounded, in another place and in place.
fn norm(to: &mut Comparison<'_>, width: usize, rows: usize) -> Result<()> {
    let format = to.format;
    let (x, residual) =
        (format.normal(11, rows * width, 2.0), format.normal(12, rows * width, 1.0));
    let weight = format.normal(13, width, 1.0);
    let sum: Vec<f32> =
        x.iter().zip(&residual).map(|(&x, &r)| format.widen(x) + format.widen(r)).collect();
    let sum = format.widen_all(&format.narrow_all(&sum));
    let norm_of = |x: &[f32]| {
        let mut y = vec![0.0; x.len()];
        ops::rms_norm::rms_norm(x, &format.widen_all(&weight), EPS, &mut y);
        y
    };
    let (plain, of_sum) = (norm_of(&format.widen_all(&x)), norm_of(&sum));
    let outputs = [
        expected("y", plain, format.tolerance()),
        expected("sum", sum.clone(), EXACT),
        expected("of the sum", of_sum.clone(), format.tolerance()),
        expected("sum in place", sum, EXACT),
        expected("of it", of_sum, format.tolerance()),
    ];
    to.compare(format!("rms_norm {rows} x {width}"), &outputs, |rig| {
        let (kernels, stream) = (&rig.kernels.rms_norm, rig.stream);
        let weight = rig.put(&weight)?;
        let norm = Norm { weight: weight.slice(), eps: EPS };
        let (mut source, residual) = (rig.put(&x)?, rig.put(&residual)?);
        let take = || rig.poisoned::<Half>(rows * width);
        let (mut plain, mut sum, mut y, mut again) = (take()?, take()?, take()?, take()?);
        kernels.forward(stream, norm, source.slice(), plain.slice_mut())?;
        let (x, residual) = (source.slice(), residual.slice());
        kernels.forward_sum(stream, norm, x, residual, sum.slice_mut(), y.slice_mut())?;
        let to = source.slice_mut();
        kernels.forward_add(stream, norm, to, residual, again.slice_mut())?;
        [&plain, &sum, &y, &source, &again].into_iter().map(|output| rig.read(output)).collect()
    })
}

/// Checks both gradients and the output, with and without an earlier gradient to add to.
fn norm_backward(to: &mut Comparison<'_>, width: usize, rows: usize) -> Result<()> {
    let format = to.format;
    let (x, dy) = (format.normal(14, rows * width, 2.0), format.normal(15, rows * width, 1.0));
    let (weight, before) = (format.normal(16, width, 1.0), format.normal(17, rows * width, 1.0));
    let of_weight = format.normal(18, width, 1.0);
    for adds in [true, false] {
        let (mut y, mut gradient) = (format.widen_all(&dy), format.widen_all(&of_weight));
        let mut dx = if adds { format.widen_all(&before) } else { vec![0.0; rows * width] };
        let weights = format.widen_all(&weight);
        let x_wide = format.widen_all(&x);
        ops::rms_norm::rms_norm_backward(&x_wide, &weights, EPS, &mut y, &mut dx, &mut gradient);
        let outputs = [
            expected("y", y, format.tolerance()),
            expected("dx", dx, format.tolerance()),
            expected("d weight", gradient.clone(), format.tolerance()),
            expected("in f32", gradient, WIDE),
        ];
        let name = if adds { "rms_norm backward, added" } else { "rms_norm backward" };
        let before = adds.then_some(before.as_slice());
        let backward = NormInputs { x: &x, weight: &weight, dy: &dy, before };
        to.compare(format!("{name} {rows} x {width}"), &outputs, |rig| {
            let [y, dx, short] = backward.run(rig, &of_weight)?;
            let [_, _, long] = backward.run(rig, &format.widen_all(&of_weight))?;
            Ok(vec![y, dx, short, long])
        })?;
    }
    Ok(())
}

/// The inputs of a norm's backward; `before` is the gradient that it adds to.
struct NormInputs<'i> {
    x: &'i [Half],
    weight: &'i [Half],
    dy: &'i [Half],
    before: Option<&'i [Half]>,
}

impl NormInputs<'_> {
    /// Returns the output, the gradient of the input, and that of the weight, which is added to
    /// `of_weight`.
    fn run<G: Float + Number>(&self, rig: &Rig<'_>, of_weight: &[G]) -> Result<[Vec<f32>; 3]> {
        let (x, weight) = (rig.put(self.x)?, rig.put(self.weight)?);
        let norm = Norm { weight: weight.slice(), eps: EPS };
        let (mut y, mut gradient) = (rig.put(self.dy)?, rig.put(of_weight)?);
        let mut dx = match self.before {
            Some(before) => rig.put(before)?,
            None => rig.poisoned(self.x.len())?,
        };
        let mut partials = rig.poisoned(PARTS * self.weight.len())?;
        let rows = NormBackward {
            x: x.slice(),
            dy: y.slice_mut(),
            dx: dx.slice_mut(),
            adds: self.before.is_some(),
        };
        let weight = SumOverRows {
            kernels: &rig.kernels.column_sums,
            partials: partials.slice_mut(),
            gradient: gradient.slice_mut(),
        };
        rig.kernels.rms_norm.backward(rig.stream, norm, rows, weight)?;
        Ok([rig.read(&y)?, rig.read(&dx)?, rig.read(&gradient)?])
    }
}

/// Checks a norm of heads, to another place and in place, and its gradients.
fn head_norm(to: &mut Comparison<'_>, heads: Heads, rows: usize) -> Result<()> {
    let format = to.format;
    let Heads { queries, keys, dim } = heads;
    let (x, d_out) =
        (format.normal(24, rows * heads.row(), 2.0), format.normal(25, rows * heads.row(), 1.0));
    let (weight, of_weight) = (format.normal(26, 2 * dim, 1.0), format.normal(27, 2 * dim, 1.0));
    let shape = ops::attention::Heads { queries, keys, dim };
    let (before, weights) = (format.widen_all(&x), format.widen_all(&weight));
    let (mut y, mut d_qkv) = (before.clone(), format.widen_all(&d_out));
    let mut gradient = format.widen_all(&of_weight);
    ops::head_norm::head_norm(shape, &weights, EPS, &mut y);
    ops::head_norm::head_norm_backward(shape, &weights, EPS, &before, &mut d_qkv, &mut gradient);
    let outputs = [
        expected("y", y.clone(), format.tolerance()),
        expected("in place", y, format.tolerance()),
        expected("d qkv", d_qkv, format.tolerance()),
        expected("d weight", gradient, WIDE),
    ];
    let name = format!("head_norm {rows} x {queries} and {keys} heads of {dim}");
    to.compare(name, &outputs, |rig| {
        let (kernels, stream) = (&rig.kernels.head_norm, rig.stream);
        let weight = rig.put(&weight)?;
        let norm = Norm { weight: weight.slice(), eps: EPS };
        let (mut source, mut y) = (rig.put(&x)?, rig.poisoned::<Half>(x.len())?);
        kernels.forward(stream, heads, norm, source.slice(), y.slice_mut())?;
        let (mut d_qkv, mut gradient) = (rig.put(&d_out)?, rig.put(&format.widen_all(&of_weight))?);
        let mut partials = rig.poisoned(PARTS * 2 * dim)?;
        let sum = SumOverRows {
            kernels: &rig.kernels.column_sums,
            partials: partials.slice_mut(),
            gradient: gradient.slice_mut(),
        };
        kernels.backward(stream, heads, norm, source.slice(), d_qkv.slice_mut(), sum)?;
        kernels.forward_in_place(stream, heads, norm, source.slice_mut())?;
        Ok(vec![rig.read(&y)?, rig.read(&source)?, rig.read(&d_qkv)?, rig.read(&gradient)?])
    })
}

fn column_sums(to: &mut Comparison<'_>, width: usize, rows: usize) -> Result<()> {
    let format = to.format;
    let (x, before) = (format.normal(19, rows * width, 1.0), format.normal(20, width, 1.0));
    let mut sums = format.widen_all(&before);
    ops::reduce::add_rows(&format.widen_all(&x), &mut sums);
    let outputs =
        [expected("sums", sums.clone(), format.tolerance()), expected("in f32", sums, WIDE)];
    to.compare(format!("sums over rows {rows} x {width}"), &outputs, |rig| {
        let (sums, stream, x) = (&rig.kernels.column_sums, rig.stream, rig.put(&x)?);
        let mut partials = rig.poisoned(parts(rows) * width)?;
        let (mut short, mut long) = (rig.put(&before)?, rig.put(&format.widen_all(&before))?);
        sums.add_sums_of(stream, x.slice(), partials.slice_mut(), short.slice_mut())?;
        sums.add_sums_of(stream, x.slice(), partials.slice_mut(), long.slice_mut())?;
        Ok(vec![rig.read(&short)?, rig.read(&long)?])
    })
}

/// Checks scores of logits in both formats and their gradients; elements behind a row must not
/// count.
fn scores(to: &mut Comparison<'_>, shape: Shape, rows: usize, scale: f32) -> Result<()> {
    let format = to.format;
    let Shape { vocab, stride, temperature } = shape;
    let mut logits = format.normal(21, rows * stride, scale);
    for row in logits.chunks_exact_mut(stride) {
        row[vocab..].fill(format.narrow(1000.0));
    }
    let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919 + 5) % vocab) as u32).collect();
    let gradient =
        |row: usize| ScoreGradient { logp: -1.0, entropy: 0.1 * row as f32, mean_logp: 0.2 };
    let gradients: Vec<ScoreGradient> = (0..rows).map(gradient).collect();
    let (mut by_row, mut d_logits) = (Vec::new(), vec![0.0; rows * stride]);
    for (row, d_logits) in d_logits.chunks_exact_mut(stride).enumerate() {
        let own = &mut d_logits[..vocab];
        own.copy_from_slice(&format.widen_all(&logits[row * stride..][..vocab]));
        let statistics = ops::logprob::statistics(own, temperature);
        let logp = statistics.logp(own[targets[row] as usize]);
        by_row.push([statistics.log_sum, statistics.entropy, statistics.mean_logp, logp]);
        let ScoreGradient { logp, entropy, mean_logp } = gradients[row];
        let by_scores = ops::logprob::ScoreGradient { logp, entropy, mean_logp };
        ops::logprob::statistics_backward(own, statistics, targets[row], by_scores);
    }
    let column = |index: usize| by_row.iter().map(|scores| scores[index]).collect::<Vec<f32>>();
    let outputs = [
        expected("log-sum", column(0), WIDE),
        expected("entropy", column(1), WIDE),
        expected("mean", column(2), WIDE),
        expected("logp", column(3), WIDE),
        expected("of 16 bits", column(3), WIDE),
        expected("d logits", d_logits.clone(), format.tolerance()),
        expected("in place", d_logits, format.tolerance()),
    ];
    let name = format!("logprob {rows} x {vocab} of {stride}, temperature {temperature}");
    to.compare(name, &outputs, |rig| {
        let (kernels, stream) = (&rig.kernels.logprob, rig.stream);
        let (mut short, long) = (rig.put(&logits)?, rig.put(&format.widen_all(&logits))?);
        let (targets, gradients) = (rig.put(&targets)?, rig.put(&gradients)?);
        let (targets, gradients) = (targets.slice(), gradients.slice());
        let mut statistics = rig.poisoned::<Statistics>(rows)?;
        let (mut of_short, mut of_long) = (rig.poisoned::<f32>(rows)?, rig.poisoned::<f32>(rows)?);
        let (to, logp) = (statistics.slice_mut(), of_short.slice_mut());
        kernels.forward(stream, shape, short.slice(), targets, to, logp)?;
        let (to, logp) = (statistics.slice_mut(), of_long.slice_mut());
        kernels.forward(stream, shape, long.slice(), targets, to, logp)?;
        let mut d_logits = rig.poisoned::<Half>(rows * stride)?;
        let (long, d, by_row) = (long.slice(), d_logits.slice_mut(), statistics.slice());
        kernels.backward(stream, shape, long, d, targets, by_row, gradients)?;
        let own = short.slice_mut();
        kernels.backward_in_place(stream, shape, own, targets, by_row, gradients)?;
        let rows = rig.get(&statistics)?;
        let column = |of: fn(&Statistics) -> f32| rows.iter().map(of).collect::<Vec<f32>>();
        Ok(vec![
            column(|row| row.log_sum),
            column(|row| row.entropy),
            column(|row| row.mean_logp),
            rig.read(&of_long)?,
            rig.read(&of_short)?,
            rig.read(&d_logits)?,
            rig.read(&short)?,
        ])
    })
}
