//! This file measures the micro-step of training, and one rank's share of the optimizer (`bench
//! step`).
//!
//! Contract: one sequence of `tokens`, each a target of a cross-entropy, runs on one GPU. The GPU
//! holds the moments and master weights of 1/`world` of the parameters, as one of `world` GPUs
//! does; nothing is exchanged. Weights are random. MFU is model FLOPs (`model::flops`) over time and
//! the card's peak of dense bf16 in NVIDIA's data sheet.

use super::clock::{Clock, Repeats, wall};
use super::families::{Family, MicroStep, update};
use super::limits;
use super::measurement::{Breakdown, Line, Measurement};
use super::optimizer::Share;
use super::random::{batch, upload_weights};
use crate::base::human;
use crate::cuda::{DeviceSlice, DeviceSliceMut, Event, Gpu, Half};
use crate::model::cuda::{DeviceModel, TrainingMemory};
use crate::model::flops::ModelFlops;
use crate::model::{BatchSize, Decoder, ModelConfig, Recompute};
use anyhow::Result;

/// The sizes of the measured step.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The micro-batch has so many tokens.
    pub tokens: usize,
    /// So many ranks share the optimizer's state.
    pub world: usize,
    pub recompute: Recompute,
}

/// Measures the step on `gpu` and adds the times to `measurement`.
pub fn run(
    mut gpu: Gpu,
    config: &ModelConfig,
    sizes: Sizes,
    repeats: Repeats,
    measurement: &mut Measurement,
) -> Result<()> {
    let Sizes { tokens, world, recompute } = sizes;
    let decoder = Decoder::new(config.clone());
    let len = decoder.layout().len;
    let clock = Clock::new(&gpu.device, repeats)?;
    limits::add(&mut gpu, config, &clock, measurement)?;
    let mut share = Share::new(&mut gpu, len, world)?;
    let mut grads = gpu.arena.lasting::<Half>("gradients", len)?;
    let mut model = DeviceModel::new(gpu, decoder, tokens)?;
    upload_weights(&mut model)?;
    let lasting: usize = model.split().1.arena.taken().map(|(_, bytes)| bytes).sum();
    let has_cudnn = micro_step(&mut model, grads.slice_mut(), sizes, repeats, measurement)?;
    optimizer(&mut model, grads.slice(), &mut share, &clock, measurement)?;
    let size = BatchSize { tokens, longest: tokens, targets: tokens };
    let plan = TrainingMemory::new(model.decoder(), size, recompute, has_cudnn);
    let peak = model.split().1.arena.peak_bytes();
    measurement.fact("peak memory", human::bytes(peak as u64));
    measurement.fact("the same by plan", human::bytes((lasting + plan.total()) as u64));
    Ok(())
}

/// Measures forward and backward, and the forward alone. Returns whether cuDNN computed attention.
fn micro_step(
    model: &mut DeviceModel,
    mut grads: DeviceSliceMut<'_, Half>,
    sizes: Sizes,
    repeats: Repeats,
    measurement: &mut Measurement,
) -> Result<bool> {
    let Sizes { tokens, recompute, .. } = sizes;
    let config = model.decoder().config().clone();
    let done = Event::new(&model.split().1.device)?;
    let (packed, targets) = batch(config.vocab_size, tokens);
    let size = BatchSize { tokens, longest: tokens, targets: tokens };
    let mut training = model.training(size, recompute)?;
    let (has_cudnn, stream) = (training.has_cudnn(), training.stream());
    let mut queue = || {
        training.forward_backward(
            &packed,
            &targets,
            1.0,
            &mut |_, _, gradients| gradients.iter_mut().for_each(|g| g.logp = -1.0),
            grads.reborrow(),
            &mut |_, _, stream| done.record(stream),
        )
    };
    let milliseconds = wall(repeats, || {
        queue()?;
        done.synchronize()
    })?;
    let operations = stream.profile(queue)?;
    let forward = wall(repeats, || training.score(&packed, &targets, 1.0).map(drop))?;

    let flops = ModelFlops::new(&config).training(tokens);
    let name = "micro-step: forward and backward".to_owned();
    measurement.lines.push(Line { name, milliseconds, bytes: 0.0, flops });
    let (name, flops_forward) = ("scoring: forward".to_owned(), flops / 3.0);
    measurement.lines.push(Line { name, milliseconds: forward, bytes: 0.0, flops: flops_forward });
    let step = MicroStep { config: &config, tokens, recompute, has_cudnn };
    let breakdown = Breakdown::new("micro-step", milliseconds, &operations, |f| step.work(f));
    measurement.breakdowns.push(breakdown);
    let per_second = tokens as f64 / milliseconds * 1e3;
    measurement.fact("tokens of a micro-step", tokens);
    measurement.fact("tokens per second", format!("{per_second:.0}"));
    measurement.add_mfu("MFU", flops, milliseconds);
    measurement.fact(
        "attention",
        if has_cudnn { "cuDNN" } else { "our own kernels (cuDNN is missing here)" },
    );
    measurement.fact("recompute", format!("{recompute:?}").to_lowercase());
    Ok(has_cudnn)
}

/// Measures adding a micro-step's gradients to their sums, and the update with these sums.
fn optimizer(
    model: &mut DeviceModel,
    grads: DeviceSlice<'_, Half>,
    share: &mut Share,
    clock: &Clock,
    measurement: &mut Measurement,
) -> Result<()> {
    let len = share.len();
    let (mut params, gpu) = model.split();
    let gpu = &*gpu;
    let mut queue = || {
        share.add(&gpu.stream, grads)?;
        share.step(gpu, params.reborrow())
    };
    let milliseconds = clock.time(&gpu.stream, &mut queue)?;
    let operations = gpu.stream.profile(queue)?;
    let bytes = Family::ALL.iter().map(|&family| update(family, len).bytes).sum();
    let name = "optimizer: add gradients and update".to_owned();
    measurement.lines.push(Line { name, milliseconds, bytes, flops: 0.0 });
    let breakdown = Breakdown::new("optimizer", milliseconds, &operations, |f| update(f, len));
    measurement.breakdowns.push(breakdown);
    Ok(())
}
