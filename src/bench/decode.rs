//! This file measures one step of decoding, for several batches and contexts (`bench decode`).
//!
//! Contract: every sequence of a batch holds the same `context` tokens in blocks of its own and
//! gets one token more. A step is a pass through the decoder and a draw whose tokens are copied to
//! the host, which is what an engine waits for between two steps. The limit counts the weights,
//! read once, and the cache. Weights are random.

use super::clock::{Clock, Repeats, wall};
use super::limits;
use super::measurement::{Line, Measurement};
use super::random::upload_weights;
use crate::base::human;
use crate::cuda::Gpu;
use crate::model::cuda::{DeviceModel, GenerationSize};
use crate::model::{Decoder, KvCache, Layout, ModelConfig, Row};
use crate::ops::sample::{Draw, Edits, Policy, Sampling};
use anyhow::Result;

/// So many tokens of a prompt are read in one pass.
const PROMPT: usize = 512;

/// Measures every batch with every context on `gpu` and adds the times to `measurement`.
pub fn run(
    mut gpu: Gpu,
    config: &ModelConfig,
    (batches, contexts): (&[usize], &[usize]),
    repeats: Repeats,
    measurement: &mut Measurement,
) -> Result<()> {
    let clock = Clock::new(&gpu.device, repeats)?;
    limits::add(&mut gpu, config, &clock, measurement)?;
    let longest = contexts.iter().max().map_or(0, |context| context + 1);
    let mut model = DeviceModel::new(gpu, Decoder::new(config.clone()), longest)?;
    upload_weights(&mut model)?;
    for &batch in batches {
        for &context in contexts {
            let name = format!("batch {batch}, context {context}");
            let Some(milliseconds) = step(&mut model, batch, context, repeats)? else {
                measurement.fact(&name, "the GPU has too little memory for the cache");
                continue;
            };
            let tokens = batch as f64 / milliseconds * 1e3;
            measurement.fact(&format!("{name}: tokens per second"), format!("{tokens:.0}"));
            let (bytes, flops) = work(config, batch, context);
            measurement.lines.push(Line { name, milliseconds, bytes, flops });
        }
    }
    measurement.fact("peak memory", human::bytes(model.split().1.arena.peak_bytes() as u64));
    Ok(())
}

/// Returns the median milliseconds of one step, or `None` if the cache has no room for it.
fn step(
    model: &mut DeviceModel,
    batch: usize,
    context: usize,
    repeats: Repeats,
) -> Result<Option<f64>> {
    let vocab_size = model.decoder().config().vocab_size;
    let each = KvCache::blocks_for(context + 1);
    let size = GenerationSize {
        rows: batch.max(PROMPT),
        logits: batch,
        length: context + 1,
        blocks: batch * each,
    };
    let mut generation = model.generation(size)?;
    if generation.num_blocks() < size.blocks {
        return Ok(None);
    }
    let all: Vec<u32> = (0..size.blocks as u32).collect();
    let tables: Vec<&[u32]> = all.chunks(each).collect();
    let row = |sequence, position: usize| Row {
        token: (position % vocab_size) as u32,
        sequence,
        position: position as u32,
        wants_logits: position == context,
        is_prompt: position < context,
    };
    let prompt: Vec<Row> = (0..context).map(|position| row(0, position)).collect();
    for rows in prompt.chunks(PROMPT) {
        generation.extend(&tables, rows)?;
    }
    for (from, to) in (each..all.len()).map(|block| (block % each, block)) {
        generation.copy_block(from as u32, to as u32)?;
    }
    let rows: Vec<Row> = (0..batch as u32).map(|sequence| row(sequence, context)).collect();
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let policy = Policy { sampling, repetition_penalty: 1.0, vocab_size, raw_logprobs: false };
    let edits = Edits::default();
    let draw = |key| Draw { key, prompt: &[], response: &[], policy, edits, num_top: 0 };
    let draws: Vec<Draw<'_>> = (0..batch as u64).map(draw).collect();
    let milliseconds = wall(repeats, || {
        generation.extend(&tables, &rows)?;
        generation.draw(&draws).map(drop)
    })?;
    Ok(Some(milliseconds))
}

/// Returns the bytes that a step must read, and its floating-point operations.
fn work(config: &ModelConfig, batch: usize, context: usize) -> (f64, f64) {
    let embedding = config.vocab_size * config.hidden_size;
    let tied = if config.tie_word_embeddings { 0 } else { embedding };
    let weights = (Layout::new(config).len - tied) as f64;
    let (batch, context) = (batch as f64, context as f64);
    let layers = (config.num_layers * config.head_dim) as f64;
    let cached = 2.0 * batch * context * layers * config.num_kv_heads as f64;
    let attention = 4.0 * batch * context * layers * config.num_heads as f64;
    (2.0 * weights + 2.0 * cached, 2.0 * batch * weights + attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes;

    #[test]
    fn a_step_reads_the_weights_once_and_the_cache_of_every_sequence() {
        let config = shapes::find("llama3-8b").unwrap();
        let (bytes, flops) = work(&config, 64, 1024);
        // There are 15.0 GB of weights, and 128 KiB of cache for each of 65,536 tokens.
        assert!((bytes / 1e9 - 23.6).abs() < 0.1, "{bytes}");
        assert!((flops / 1e12 - 0.995).abs() < 0.01, "{flops}");
    }
}
