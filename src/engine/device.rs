//! Generation and scoring on a GPU. A build without CUDA has `no_device.rs` in this file's place.

use super::backend::{Backend, check_finite};
use super::{Engine, EngineConfig, Observer, Queue, Sampler, Stats};
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::cuda::{Gpu, device, gemm, nccl};
use crate::model::cuda::{Generation, GenerationSize, half_format};
use crate::model::gpu_shape::check_shape;
use crate::model::{BatchSize, Decoder, Packed, Precision, Recompute, Row, Target};
use crate::ops::sample::{Draw, Drawn};
use anyhow::Result;

pub use crate::model::cuda::DeviceModel;

/// Sequences are scored together up to this many tokens; a longer sequence is scored alone.
const SCORED_TOKENS: usize = 8192;

/// Returns the driver's name for GPU `ordinal`, or `None` if there is no such GPU.
pub fn name(ordinal: usize) -> Option<String> {
    device::properties(ordinal).ok().map(|properties| properties.name)
}

/// Refuses a machine that has fewer than `count` GPUs, one that our kernels do not run on, or no cuBLASLt.
pub fn check(count: usize) -> Result<()> {
    let there = device::count().map_err(refusal)?;
    if there < count {
        return Err(usage(format!(
            "{count} ranks on device cuda are a GPU each, but this machine shows {there} (see \
             CUDA_VISIBLE_DEVICES)"
        )));
    }
    (0..count).try_for_each(|ordinal| device::usable(ordinal).map(drop)).map_err(refusal)?;
    gemm::version().map(drop).map_err(refusal)
}

/// Refuses a machine without NCCL, by which several GPUs train together.
pub fn check_collectives() -> Result<()> {
    nccl::version().map(drop).map_err(refusal)
}

fn refusal(error: anyhow::Error) -> anyhow::Error {
    usage(format!("device cuda: {error:#}"))
}

/// Opens GPU number `ordinal` for a model in bf16 or fp16 and reserves all of the GPU's memory. The
/// parameters have yet to be uploaded.
pub fn open(ordinal: usize, decoder: &Decoder, precision: Precision) -> Result<DeviceModel> {
    check_shape(decoder.config())?;
    let gpu = Gpu::open(ordinal, half_format(precision), None)?;
    let positions = decoder.config().max_position_embeddings;
    DeviceModel::new(gpu, decoder.clone(), positions)
}

impl Backend for Generation<'_> {
    fn decoder(&self) -> &Decoder {
        self.decoder()
    }

    fn extend(&mut self, tables: &[&[u32]], rows: &[Row]) -> Result<()> {
        self.extend(tables, rows)
    }

    fn draw(&mut self, draws: &[Draw<'_>]) -> Result<Vec<Drawn>> {
        self.draw(draws)
    }

    fn logits(&mut self, place: usize) -> Result<Vec<f32>> {
        self.logits(place)
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        self.copy_block(from, to)
    }
}

impl<'m> Engine<'m> {
    /// Creates an engine that reads the parameters on the GPU. It holds the rest of the GPU's memory while
    /// it lives: its cache has fewer blocks than `config` asks for where they do not fit.
    pub fn on_gpu(model: &'m mut DeviceModel, config: EngineConfig) -> Result<Self> {
        let generation = model.generation(GenerationSize {
            rows: config.max_sequences.saturating_add(config.prefill_tokens),
            logits: config.max_logits(),
            length: config.max_length,
            blocks: config.cache_blocks,
        })?;
        let cache_blocks = generation.num_blocks();
        Ok(Self::on(generation, EngineConfig { cache_blocks, ..config }))
    }
}

impl Sampler for DeviceModel {
    fn sample(&mut self, queue: &Queue<'_>, observer: &mut dyn Observer) -> Result<Stats> {
        Engine::on_gpu(self, queue.config().clone())?.work_off(queue, observer)
    }
}

/// Returns what [`super::Scorer::score`] returns, computed by the training graph on the GPU.
pub fn score(
    model: &mut DeviceModel,
    sequences: &[Vec<u32>],
    temperature: f32,
    progress: &Progress,
) -> Result<Vec<Vec<f32>>> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    model.decoder().config().check_length(longest)?;
    let batches = batches(sequences, SCORED_TOKENS.max(longest));
    let tokens = |batch: &&[Vec<u32>]| batch.iter().map(Vec::len).sum::<usize>();
    let tokens = batches.iter().map(tokens).max().unwrap_or(0);
    let size = BatchSize { tokens, longest, targets: tokens };
    let mut training = model.training(size, Recompute::Layer)?;
    let mut scores = Vec::with_capacity(sequences.len());
    for batch in batches {
        let packed = Packed::from_sequences(batch.iter().map(Vec::as_slice));
        let of_sequence = |(sequence, &start): (&Vec<u32>, &usize)| {
            let next = |(i, &token): (usize, &u32)| Target { row: start + i, token };
            sequence.iter().skip(1).enumerate().map(next).collect::<Vec<_>>()
        };
        let targets: Vec<Target> =
            batch.iter().zip(&packed.cu_seqlens).flat_map(of_sequence).collect();
        let found = training.score(&packed, &targets, temperature)?;
        check_finite(found.iter().map(|score| score.logp))?;
        let mut found = found.into_iter();
        progress.inc(targets.len() as u64);
        for sequence in batch {
            let count = sequence.len().saturating_sub(1);
            scores.push(found.by_ref().take(count).map(|score| score.logp).collect());
        }
    }
    Ok(scores)
}

/// Divides `sequences`, each of at most `most` tokens, into groups of neighbours with at most `most` tokens
/// each.
fn batches(sequences: &[Vec<u32>], most: usize) -> Vec<&[Vec<u32>]> {
    let (mut batches, mut first, mut tokens) = (Vec::new(), 0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        if tokens + sequence.len() > most {
            batches.push(&sequences[first..index]);
            (first, tokens) = (index, 0);
        }
        tokens += sequence.len();
    }
    batches.push(&sequences[first..]);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_order_and_hold_no_more_than_they_may() {
        let sequences = [3, 5, 2, 8, 1, 1].map(|len| vec![0; len]);
        let lens: Vec<Vec<usize>> =
            batches(&sequences, 8).iter().map(|b| b.iter().map(Vec::len).collect()).collect();
        assert_eq!(lens, [vec![3, 5], vec![2], vec![8], vec![1, 1]]);
    }
}
