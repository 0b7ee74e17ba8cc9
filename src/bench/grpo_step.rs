//! This file measures one GPU's share of a step of GRPO, from prompts to updated weights (`bench
//! grpo-step`).
//!
//! Contract: there are `prompts` of one length, each with `samples` responses of another length,
//! which end there and nowhere else, so that the work is known. The engine generates with the
//! weights that are trained. The update goes over the responses in rows of a micro-batch, as a run
//! packs them, with a run's loss, and ends with AdamW on 1/`world` of the parameters. Advantages
//! alternate between 1 and -1. A short step comes first, in which libraries load code. MFU of the
//! update is model FLOPs (`model::flops`) of prompts and responses over its time and the card's peak
//! of dense bf16 in NVIDIA's data sheet. Left out: judging, which a run does while it generates; the
//! exchange with other GPUs; a reference model.

use super::clock::{Clock, Repeats};
use super::limits;
use super::measurement::{Line, Measurement};
use super::optimizer::Share;
use super::random::{tokens, upload_weights};
use crate::base::{human, rng};
use crate::cuda::Gpu;
use crate::engine::{Engine, EngineConfig, Request, RequestId, Rollout, SamplingParams, Stats};
use crate::model::cuda::{DeviceModel, TrainingMemory};
use crate::model::flops::ModelFlops;
use crate::model::{BatchSize, Decoder, ModelConfig, Recompute};
use crate::objective::policy::{LossConfig, Mismatch, PolicyObjective, SampledTokens};
use crate::objective::{Chunk, Objective};
use crate::trainer::MicroBatch;
use anyhow::Result;
use std::time::Instant;

/// The limits are the medians of so many runs.
const LIMIT_RUNS: usize = 5;

/// Responses have so many tokens in the step that only warms up.
const WARM_UP: usize = 4;

/// A pass reads so many tokens of prompts beside the running sequences.
const PREFILL: usize = 512;

/// The sizes of the measured step.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// This GPU has so many prompts.
    pub prompts: usize,
    /// Each prompt gets so many responses.
    pub samples: usize,
    /// A prompt has so many tokens.
    pub prompt: usize,
    /// A response has so many tokens.
    pub response: usize,
    /// A micro-batch is one row of so many prompts with their responses.
    pub micro_batch: usize,
    /// So many ranks share the optimizer's state.
    pub world: usize,
    pub recompute: Recompute,
}

impl Sizes {
    /// Returns the tokens of a prompt with its response.
    fn length(&self) -> usize {
        self.prompt + self.response
    }

    fn rollouts(&self) -> usize {
        self.prompts * self.samples
    }

    /// Returns the size of the largest row.
    fn row(&self) -> BatchSize {
        let responses = self.micro_batch.min(self.rollouts());
        let tokens = responses * self.length();
        BatchSize { tokens, longest: self.length(), targets: responses * self.response }
    }

    fn engine(&self) -> EngineConfig {
        let roomy = EngineConfig::roomy(self.rollouts(), self.length());
        EngineConfig { prefill_tokens: PREFILL, ..roomy }
    }
}

/// One GPU's model and its share of the optimizer.
struct Step<'c> {
    config: &'c ModelConfig,
    sizes: Sizes,
    model: DeviceModel,
    share: Share,
}

/// The seconds of each phase of a step, and its statistics.
struct Times {
    generation: f64,
    gradients: f64,
    optimizer: f64,
    stats: Stats,
    mismatch: Mismatch,
    /// This is the peak of the arena up to the end of the generation.
    generation_peak: usize,
    has_cudnn: bool,
}

/// Measures a step on `gpu` and adds the times to `measurement`.
pub fn run(
    mut gpu: Gpu,
    config: &ModelConfig,
    sizes: Sizes,
    measurement: &mut Measurement,
) -> Result<()> {
    let clock = Clock::new(&gpu.device, Repeats::new(LIMIT_RUNS))?;
    limits::add(&mut gpu, config, &clock, measurement)?;
    let decoder = Decoder::new(config.clone());
    let share = Share::new(&mut gpu, decoder.layout().len, sizes.world)?;
    let mut model = DeviceModel::new(gpu, decoder, sizes.length())?;
    upload_weights(&mut model)?;
    let lasting: usize = model.split().1.arena.taken().map(|(_, bytes)| bytes).sum();
    let mut step = Step { config, sizes, model, share };
    // The arena keeps its peak, so it is the generation's only before anything has been trained.
    let generation_peak = step.take(sizes.response.min(WARM_UP))?.generation_peak;
    let times = step.take(sizes.response)?;
    let gradients = 2 * step.model.decoder().layout().len;
    let training =
        TrainingMemory::new(step.model.decoder(), sizes.row(), sizes.recompute, times.has_cudnn);
    let peak = step.model.split().1.arena.peak_bytes();
    describe(measurement, config, sizes, &times);
    measurement.fact("peak memory of generation", human::bytes(generation_peak as u64));
    measurement.fact("peak memory", human::bytes(peak as u64));
    let planned = generation_peak.max(lasting + gradients + training.total());
    measurement.fact("the same by plan", human::bytes(planned as u64));
    Ok(())
}

impl Step<'_> {
    /// Runs the whole step with responses of `response` tokens.
    fn take(&mut self, response: usize) -> Result<Times> {
        let requests = self.requests(response);
        let start = Instant::now();
        let (rollouts, stats) = self.generate(&requests)?;
        let generation = start.elapsed().as_secs_f64();
        let generation_peak = self.model.split().1.arena.peak_bytes();
        let start = Instant::now();
        let (mismatch, has_cudnn) = self.accumulate(&requests, &rollouts)?;
        let gradients = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let (params, gpu) = self.model.split();
        self.share.step(gpu, params)?;
        gpu.stream.synchronize()?;
        let optimizer = start.elapsed().as_secs_f64();
        Ok(Times { generation, gradients, optimizer, stats, mismatch, generation_peak, has_cudnn })
    }

    fn requests(&self, response: usize) -> Vec<Request> {
        let sampling = SamplingParams { max_new_tokens: response, ..SamplingParams::default() };
        let request = |index: u64| Request {
            prompt: tokens(rng::key(5, &[index]), self.config.vocab_size, self.sizes.prompt),
            sampling: sampling.clone(),
            num_samples: self.sizes.samples,
            key: rng::key(6, &[index]),
        };
        (0..self.sizes.prompts as u64).map(request).collect()
    }

    /// Generates all rollouts and orders them by prompt and sample.
    fn generate(&mut self, requests: &[Request]) -> Result<(Vec<Rollout>, Stats)> {
        let mut engine = Engine::on_gpu(&mut self.model, self.sizes.engine())?;
        let mut rollouts = Vec::with_capacity(self.sizes.rollouts());
        let mut keep = |request: RequestId, sample: usize, rollout: Rollout| {
            rollouts.push((request, sample, rollout));
        };
        let stats = engine.generate(requests, &mut keep)?;
        rollouts.sort_by_key(|&(request, sample, _)| (request, sample));
        Ok((rollouts.into_iter().map(|(_, _, rollout)| rollout).collect(), stats))
    }

    /// Adds the gradients of all rollouts to the sums. Returns how far the trainer's
    /// log-probabilities are from the sampler's, and whether cuDNN computed attention.
    fn accumulate(
        &mut self,
        requests: &[Request],
        rollouts: &[Rollout],
    ) -> Result<(Mismatch, bool)> {
        let Self { sizes, model, share, .. } = self;
        let (mut training, mut gradients) =
            model.training_with_gradients(sizes.row(), sizes.recompute)?;
        let members: Vec<(usize, &Rollout)> = rollouts.iter().enumerate().collect();
        let micro_batches: Vec<_> = members.chunks(sizes.micro_batch).collect();
        let sampled: Vec<_> = micro_batches.iter().map(|members| sampled_tokens(members)).collect();
        let config = LossConfig::default();
        let objective = PolicyObjective::new(&config, &sampled);
        for (batch, members) in micro_batches.into_iter().enumerate() {
            let mut row = MicroBatch::empty();
            for &(index, rollout) in members {
                row.push(&requests[index / sizes.samples].prompt, &[&rollout.tokens]);
            }
            training.forward_backward(
                &row.packed,
                &row.targets,
                1.0,
                &mut |first, scores, gradients| {
                    objective.learn(Chunk { batch, first, scores }, gradients);
                },
                gradients.slice_mut(),
                &mut |_, _, _| Ok(()),
            )?;
            share.add(training.stream(), gradients.slice())?;
        }
        training.stream().synchronize()?;
        Ok((objective.into_sums().mismatch, training.has_cudnn()))
    }
}

/// Returns the tokens of rollouts with advantages that alternate between 1 and -1.
fn sampled_tokens(members: &[(usize, &Rollout)]) -> SampledTokens {
    let sampler_logp: Vec<f32> =
        members.iter().flat_map(|(_, rollout)| &rollout.logprobs).copied().collect();
    let advantage = members.iter().flat_map(|(index, rollout)| {
        let sign = if index % 2 == 0 { 1.0 } else { -1.0 };
        std::iter::repeat_n(sign, rollout.tokens.len())
    });
    SampledTokens {
        advantage: advantage.collect(),
        weight: vec![1.0; sampler_logp.len()],
        sampler_logp,
        ..SampledTokens::default()
    }
}

/// Adds the lines and facts of a step to `measurement`.
fn describe(measurement: &mut Measurement, config: &ModelConfig, sizes: Sizes, times: &Times) {
    let Times { generation, gradients, optimizer, stats, mismatch, .. } = times;
    let update = gradients + optimizer;
    let flops = sizes.rollouts() as f64 * ModelFlops::new(config).training(sizes.length());
    let line = |name: &str, seconds: f64, flops| Line {
        name: name.to_owned(),
        milliseconds: seconds * 1e3,
        bytes: 0.0,
        flops,
    };
    measurement.lines.extend([
        line("generation", *generation, 0.0),
        line("update: forward and backward", *gradients, flops),
        line("update: optimizer", *optimizer, 0.0),
        line("step", generation + update, 0.0),
    ]);
    let tokens = sizes.rollouts() * sizes.length();
    let per_second = |count: usize, seconds: f64| format!("{:.0}", count as f64 / seconds);
    let rollouts = format!("{} x {}", sizes.prompts, sizes.samples);
    measurement.fact("prompts x responses", rollouts);
    measurement.fact("tokens of each", format!("{} + {}", sizes.prompt, sizes.response));
    measurement
        .fact("generated tokens per second", per_second(stats.generated_tokens, *generation));
    measurement.fact("occupancy of decoding", format!("{:.1} %", 100.0 * stats.occupancy));
    measurement.fact("passes, preemptions", format!("{}, {}", stats.passes, stats.preemptions));
    measurement.fact("trained tokens per second", per_second(tokens, update));
    measurement.add_mfu("MFU of the update", flops, update * 1e3);
    let rate = sizes.rollouts() as f64 / (generation + update);
    measurement.fact("rollouts per second", format!("{rate:.2}"));
    let mean = mismatch.distance / mismatch.tokens.max(1) as f64;
    let distance = format!("{mean:.1e} on average, {:.1e} at most", mismatch.max_distance);
    measurement.fact("sampler against trainer, log-probabilities", distance);
    measurement.fact("judging", "not measured: a run judges while it generates");
    measurement.fact("recompute", format!("{:?}", sizes.recompute).to_lowercase());
    measurement.fact(
        "attention",
        if times.has_cudnn { "cuDNN" } else { "our own kernels (cuDNN is missing here)" },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_paper_is_64_rollouts_in_rows_of_four() {
        let sizes = Sizes {
            prompts: 8,
            samples: 8,
            prompt: 2048,
            response: 2048,
            micro_batch: 4,
            world: 8,
            recompute: Recompute::Layer,
        };
        assert_eq!(sizes.rollouts(), 64);
        assert_eq!(sizes.row(), BatchSize { tokens: 16_384, longest: 4096, targets: 8192 });
        assert_eq!(Sizes { prompts: 1, samples: 1, ..sizes }.row().tokens, 4096);
    }
}
