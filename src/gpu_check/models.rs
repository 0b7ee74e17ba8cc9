//! This file checks whole models: log-probabilities and the gradient of every tensor against the
//! CPU's decoder.
//!
//! Contract: the models are tiny ones of every family, with random weights that the GPU can
//! represent. Each pass runs twice and must give the same bits. Tolerances are those of bf16, the
//! coarser format: 2e-2 for a log-probability and 4e-3 for the mean of their errors, 3e-2 for a
//! gradient relative to its norm.

use super::{Check, Outcome, deterministic};
use crate::base::rng;
use crate::cuda::{Gpu, Half, HalfFormat};
use crate::model::cuda::DeviceModel;
use crate::model::layout::init;
use crate::model::{
    BatchSize, Decoder, ModelConfig, Packed, Recompute, ScoreGradient, Target, TokenScores,
    Workspace,
};
use anyhow::Result;

/// The packed sequences have these lengths: one token, and less and more than a tile of attention.
const LENGTHS: [usize; 4] = [37, 1, 150, 64];
const LONGEST: usize = 150;
const TEMPERATURE: f32 = 0.8;
const VOCAB: usize = 96;

/// Checks all models on GPU `ordinal`.
pub(crate) fn check(ordinal: usize, format: HalfFormat, checks: &mut Vec<Check>) -> Result<()> {
    let families = [
        ("llama", true, 64, 32),
        ("qwen2", false, 232, 64),
        ("llama", false, 136, 128),
        ("qwen3", false, 136, 64),
    ];
    for (kind, is_tied, hidden, dim) in families {
        let text = format!(
            r#"{{"model_type": "{kind}", "vocab_size": {VOCAB}, "hidden_size": {hidden},
            "intermediate_size": 168, "num_hidden_layers": 2, "num_attention_heads": 6,
            "num_key_value_heads": 2, "head_dim": {dim}, "initializer_range": 0.04,
            "tie_word_embeddings": {is_tied}}}"#
        );
        let decoder = Decoder::new(ModelConfig::from_json(&text)?);
        let gpu = Gpu::open(ordinal, format, Some(256 << 20))?;
        model(&format!("{kind}, heads of {dim}, {format:?}"), gpu, decoder, checks)?;
    }
    Ok(())
}

/// The scores and gradients of one pass.
#[derive(PartialEq)]
struct Pass<G> {
    scores: Vec<TokenScores>,
    gradients: Vec<G>,
}

/// Fills in the gradients of a loss that weighs each score of each target differently.
fn objective(first: usize, gradients: &mut [ScoreGradient]) {
    for (index, gradient) in (first..).zip(gradients) {
        let index = index as f32;
        *gradient = ScoreGradient {
            logp: (index * 0.7).sin() + 0.5,
            entropy: 0.2 * (index * 0.3).cos(),
            mean_logp: 0.1 * (index * 1.1).sin(),
        };
    }
}

fn batch() -> (Packed, Vec<Target>) {
    let token = |i: usize| (rng::uniform(4, i as u64) * VOCAB as f32) as u32;
    let tokens: Vec<u32> = (0..LENGTHS.iter().sum::<usize>()).map(token).collect();
    let mut rest = tokens.as_slice();
    let sequences = LENGTHS.map(|len| {
        let (sequence, after) = rest.split_at(len);
        rest = after;
        sequence
    });
    let packed = Packed::from_sequences(sequences);
    let rows = packed.cu_seqlens.windows(2).flat_map(|ends| ends[0]..ends[1] - 1);
    let targets = rows.map(|row| Target { row, token: tokens[row + 1] }).collect();
    (packed, targets)
}

fn model(name: &str, gpu: Gpu, decoder: Decoder, checks: &mut Vec<Check>) -> Result<()> {
    let (format, capability) = (gpu.device.half_format(), gpu.device.properties().capability);
    let params: Vec<f32> =
        init(decoder.config(), 1).iter().map(|&x| format.widen(format.narrow(x))).collect();
    let (packed, targets) = batch();
    let expected = cpu_pass(&decoder, &params, &packed, &targets);
    let mut model = DeviceModel::new(gpu, decoder, LONGEST)?;
    model.upload(0, &params)?;
    let (first, has_cudnn) = device_pass(&mut model, &packed, &targets)?;
    let (second, _) = device_pass(&mut model, &packed, &targets)?;

    let errors = first.scores.iter().zip(&expected.scores).map(|(a, e)| (a.logp - e.logp).abs());
    let (worst, sum) = errors.fold((0.0f32, 0.0), |(worst, sum), x| (worst.max(x), sum + x));
    let mean = sum / targets.len() as f32;
    // These comparisons are false for NaNs.
    checks.push(Check {
        name: format!("{name}: log-probabilities"),
        found: format!("off by at most {worst:.1e}, on average {mean:.1e}"),
        outcome: Outcome::right_if(worst < 2e-2 && mean < 4e-3),
    });
    let gradients: Vec<f32> = first.gradients.iter().map(|&x| format.widen(x)).collect();
    let tensors = &model.decoder().layout().tensors;
    let errors = tensors.iter().map(|tensor| {
        let range = tensor.range.clone();
        (relative_error(&gradients[range.clone()], &expected.gradients[range]), &tensor.name)
    });
    let worst = errors.max_by(|a, b| a.0.total_cmp(&b.0));
    let (error, tensor) = worst.map_or((f32::NAN, ""), |(error, name)| (error, name.as_str()));
    checks.push(Check {
        name: format!("{name}: gradients"),
        found: format!("relative error at most {error:.1e}, of {tensor}"),
        outcome: Outcome::right_if(error < 3e-2),
    });
    let is_equal = first == second;
    checks.push(Check {
        name: format!("{name}: the same pass twice"),
        found: if is_equal { "the same bits" } else { "different bits" }.to_owned(),
        outcome: Outcome::right_if(is_equal || !deterministic(capability, has_cudnn)),
    });
    Ok(())
}

fn cpu_pass(decoder: &Decoder, params: &[f32], packed: &Packed, targets: &[Target]) -> Pass<f32> {
    let mut scores = vec![TokenScores::default(); targets.len()];
    let mut gradients = vec![0.0; params.len()];
    let mut keep = |first: usize, chunk: &[TokenScores], gradients: &mut [ScoreGradient]| {
        scores[first..first + chunk.len()].copy_from_slice(chunk);
        objective(first, gradients);
    };
    let (temperature, mut workspace) = (TEMPERATURE, Workspace::default());
    decoder.forward_backward(
        params,
        packed,
        targets,
        temperature,
        &mut keep,
        &mut gradients,
        &mut workspace,
    );
    Pass { scores, gradients }
}

/// Runs a pass on the GPU, and returns whether cuDNN computed attention.
fn device_pass(
    model: &mut DeviceModel,
    packed: &Packed,
    targets: &[Target],
) -> Result<(Pass<Half>, bool)> {
    let len = model.decoder().layout().len;
    let tokens = packed.tokens.len();
    let size = BatchSize { tokens, longest: LONGEST, targets: targets.len() };
    let gpu = model.split().1;
    let mut grads = gpu.arena.lasting::<Half>("gradients", len)?;
    gpu.stream.fill(grads.slice_mut(), 0xff)?;
    let mut scores = vec![TokenScores::default(); targets.len()];
    let mut keep = |first: usize, chunk: &[TokenScores], gradients: &mut [ScoreGradient]| {
        scores[first..first + chunk.len()].copy_from_slice(chunk);
        objective(first, gradients);
    };
    let mut training = model.training(size, Recompute::Selective)?;
    training.forward_backward(
        packed,
        targets,
        TEMPERATURE,
        &mut keep,
        grads.slice_mut(),
        &mut |_, _, _| Ok(()),
    )?;
    let has_cudnn = training.has_cudnn();
    drop(training);
    let mut gradients = vec![Half::ZERO; len];
    let gpu = model.split().1;
    gpu.tools.transfer.download(&gpu.stream, grads.slice(), &mut gradients)?;
    Ok((Pass { scores, gradients }, has_cudnn))
}

/// Returns the norm of the difference over that of `expected`; it is NaN where either has a NaN.
fn relative_error(actual: &[f32], expected: &[f32]) -> f32 {
    let difference: f64 = actual.iter().zip(expected).map(|(a, e)| f64::from(a - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|&e| f64::from(e).powi(2)).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt() as f32
}
