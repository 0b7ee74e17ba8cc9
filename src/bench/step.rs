//! `bench step`: the micro-step of training, and one rank's share of the optimizer's.
//!
//! Contract: one sequence of `tokens`, each of them a target of a cross-entropy, on one GPU that holds
//! the moments and master weights of 1/`world` of the parameters, as one of `world` GPUs does; nothing
//! is exchanged. Weights are random. MFU is model FLOPs (`train::flops`) over time and the peak of
//! dense bf16 that NVIDIA states for an H100.

use super::ADAMW;
use super::clock::{Clock, Repeats, wall};
use super::report::{Limits, Line, Report};
use crate::base::human;
use crate::base::rng;
use crate::cuda::kernels::adamw::{DecayRange, Shard, StepInputs};
use crate::cuda::{Arena, DeviceBuffer, DeviceSliceMut, Event, Gpu, Half};
use crate::dist::piece;
use crate::model::cuda::{DeviceModel, TrainingMemory};
use crate::model::{BatchSize, Decoder, ModelConfig, Packed, Recompute, Target};
use crate::train::flops::ModelFlops;
use anyhow::Result;

/// Operations of dense bf16 in a second.
const PEAK: f64 = Limits::H100.flops_per_second;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Tokens of the micro-batch.
    pub tokens: usize,
    /// Ranks that share the optimizer state.
    pub world: usize,
    /// What the backward computes again.
    pub recompute: Recompute,
}

/// Measures it on `gpu` and adds it to `report`.
pub fn run(
    mut gpu: Gpu,
    config: &ModelConfig,
    sizes: Sizes,
    repeats: Repeats,
    report: &mut Report,
) -> Result<()> {
    let Sizes { tokens, world, recompute } = sizes;
    let decoder = Decoder::new(config.clone());
    let len = decoder.layout().len;
    let mut state = State::new(&mut gpu.arena, len, world)?;
    state.clear(&mut gpu)?;
    let mut grads = gpu.arena.lasting::<Half>("gradients", len)?;
    let clock = Clock::new(&gpu.device, repeats)?;
    let done = Event::new(&gpu.device)?;
    let size = BatchSize { tokens, longest: tokens, targets: tokens };
    let mut model = DeviceModel::new(gpu, decoder, tokens)?;
    upload_random(&mut model)?;
    let (packed, targets) = batch(config, tokens);

    let mut training = model.training(size, recompute)?;
    let has_cudnn = training.has_cudnn();
    let micro_step = wall(repeats, || {
        training.forward_backward(
            &packed,
            &targets,
            1.0,
            &mut |_, _, gradients| gradients.iter_mut().for_each(|g| g.logp = -1.0),
            grads.slice_mut(),
            &mut |_, _, stream| done.record(stream),
        )?;
        done.synchronize()
    })?;
    let forward = wall(repeats, || training.score(&packed, &targets, 1.0).map(drop))?;
    drop(training);

    let (mut params, gpu) = model.split();
    let own = piece(len, world, 0);
    let optimizer = clock.time(&gpu.stream, || {
        let grads = grads.slice().range(own.clone());
        let kernels = &gpu.tools.kernels;
        kernels.flat.accumulate(&gpu.stream, grads, state.sum.slice_mut())?;
        state.step(gpu, params.reborrow().into_range(own.clone()))
    })?;

    let flops = ModelFlops::new(config).training(tokens);
    let line = |name: &str, milliseconds, flops| Line {
        name: name.to_owned(),
        milliseconds,
        bytes: 0.0,
        flops,
    };
    report.lines.push(line("micro-step: forward and backward", micro_step, flops));
    report.lines.push(line("scoring: forward", forward, flops / 3.0));
    let bytes = 40.0 * own.len() as f64;
    report.lines.push(Line { bytes, ..line("optimizer: accumulate and step", optimizer, 0.0) });
    report.limits = Some(Limits::H100);
    let plan = TrainingMemory::new(model.decoder(), size, recompute, has_cudnn);
    let peak = model.split().1.arena.peak_bytes();
    report.fact("tokens of a micro-step", tokens);
    report.fact("tokens per second", format!("{:.0}", tokens as f64 / micro_step * 1e3));
    report.fact("MFU", format!("{:.1} % of {:.1} TFLOP/s", mfu(flops, micro_step), PEAK / 1e12));
    report.fact("attention", if has_cudnn { "cuDNN" } else { "own kernels (no cuDNN here)" });
    report.fact("recompute", format!("{recompute:?}").to_lowercase());
    report.fact("peak memory", human::bytes(peak as u64));
    report.fact("of it a phase of training, by plan", human::bytes(plan.total() as u64));
    Ok(())
}

/// Percent of the peak.
fn mfu(flops: f64, milliseconds: f64) -> f64 {
    100.0 * flops / (milliseconds / 1e3) / PEAK
}

/// One rank's share of the optimizer.
struct State {
    master: DeviceBuffer<'static, f32>,
    first_moments: DeviceBuffer<'static, f32>,
    second_moments: DeviceBuffer<'static, f32>,
    sum: DeviceBuffer<'static, f32>,
    decays: DeviceBuffer<'static, DecayRange>,
    not_finite: DeviceBuffer<'static, u32>,
}

impl State {
    fn new(arena: &mut Arena, parameters: usize, world: usize) -> Result<Self> {
        let len = piece(parameters, world, 0).len();
        let mut floats = |name| arena.lasting::<f32>(name, len);
        Ok(Self {
            master: floats("master weights")?,
            first_moments: floats("first moments")?,
            second_moments: floats("second moments")?,
            sum: floats("sums of gradients")?,
            decays: arena.lasting("decays", 1)?,
            not_finite: arena.lasting("flag", 1)?,
        })
    }

    /// Zeros everything.
    fn clear(&mut self, gpu: &mut Gpu) -> Result<()> {
        let (stream, transfer) = (&gpu.stream, &mut gpu.tools.transfer);
        let floats =
            [&mut self.master, &mut self.first_moments, &mut self.second_moments, &mut self.sum];
        for buffer in floats {
            stream.fill(buffer.slice_mut(), 0)?;
        }
        stream.fill(self.not_finite.slice_mut(), 0)?;
        let all = DecayRange { start: 0, end: self.master.len() as u64 };
        transfer.upload(stream, &[all], self.decays.slice_mut())
    }

    /// One step of AdamW with the gradients in `sum`.
    fn step(&mut self, gpu: &Gpu, parameters: DeviceSliceMut<'_, Half>) -> Result<()> {
        let mut shard = Shard {
            start: 0,
            master: self.master.slice_mut(),
            first_moments: self.first_moments.slice_mut(),
            second_moments: self.second_moments.slice_mut(),
            parameters,
        };
        let inputs = StepInputs {
            gradients: self.sum.slice(),
            decays: self.decays.slice(),
            not_finite: self.not_finite.slice(),
        };
        gpu.tools.kernels.adamw.step(&gpu.stream, ADAMW, &mut shard, inputs, 0)
    }
}

/// Fills a model with random weights of the size of fresh ones, and norms of ones: the same numbers
/// again and again, since eight billion different ones take minutes to make.
pub(super) fn upload_random(model: &mut DeviceModel) -> Result<()> {
    const NUMBERS: usize = 1 << 20;
    let size = 2.0 * model.decoder().config().initializer_range;
    let numbers: Vec<f32> =
        (0..NUMBERS as u64).map(|i| size * (rng::uniform(3, i) - 0.5) * 1.73).collect();
    let ones = vec![1.0f32; NUMBERS];
    let tensors = model.decoder().layout().tensors.clone();
    for tensor in tensors {
        let source = if tensor.decays() { &numbers } else { &ones };
        for start in tensor.range.clone().step_by(NUMBERS) {
            let end = tensor.range.end.min(start + NUMBERS);
            model.upload(start, &source[..end - start])?;
        }
    }
    Ok(())
}

/// One sequence of random tokens, each of which predicts the next.
pub(super) fn batch(config: &ModelConfig, tokens: usize) -> (Packed, Vec<Target>) {
    let token = |i: usize| (rng::uniform(4, i as u64) * config.vocab_size as f32) as u32;
    let sequence: Vec<u32> = (0..tokens).map(token).collect();
    let target = |row: usize| Target { row, token: sequence[(row + 1) % tokens] };
    let targets = (0..tokens).map(target).collect();
    (Packed::from_sequences([sequence.as_slice()]), targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mfu_is_model_flops_over_time_and_peak() {
        assert!((mfu(PEAK, 2000.0) - 50.0).abs() < 1e-9);
    }
}
