//! Estimates how long a run takes: it does the real work for a few seconds and scales the time.
//!
//! It measures training and generation with the real model and data, and assumes that responses are as long
//! as those of the training samples. Nothing that it computes is kept.

use super::{rl, sft};
use crate::data::loader::Cursor;
use crate::engine::{Engine, EngineConfig, Request, RequestId, Rollout, SamplingParams};
use crate::objective::sft::NegativeLogLikelihood;
use crate::tokenizer::Tokenized;
use crate::trainer::{Execution, MicroBatch, Trainer};
use anyhow::Result;
use std::time::Instant;

/// The time to judge a program on 7 short cases, measured on two cores.
const JUDGING_SECS: f64 = 0.0025;
/// The assumed share of responses that are learnt from. A group that is all right or all wrong teaches
/// nothing and is not computed.
const SHARE_LEARNT: f64 = 0.8;

/// Returns the seconds that SFT, GRPO and `num_scored` scored rollouts will take together.
pub fn estimate(sft: &sft::Config, grpo: &rl::Config, num_scored: usize) -> Result<f64> {
    let model = sft.model.open(sft.seed)?;
    let dataset = sft.data.open(&model.tokenizer)?;
    let samples: Vec<Tokenized> =
        dataset.sources.iter().flat_map(|source| source.samples.iter()).collect();
    let mean = |total: usize| total as f64 / samples.len() as f64;
    let response_tokens = mean(samples.iter().map(|s| s.learnt()).sum());
    let sequence_tokens = mean(samples.iter().map(|s| s.input_ids.len()).sum());
    let prompts: Vec<Vec<u32>> = samples
        .iter()
        .take(16)
        .map(|s| s.input_ids[..s.input_ids.len() - s.learnt()].to_vec())
        .collect();

    let mut loader = dataset.loader(sft.train.seq_len, sft.seed, Cursor::default())?;
    let (steps, execution) = (sft.train.total_steps, Execution::default());
    let mut trainer = Trainer::new(model, sft.optim, sft.schedule, steps, execution)?;
    let mut training_rate = 0.0;
    for _warm_up_then_measure in 0..2 {
        let batch = loader.next_batch();
        let started = Instant::now();
        let row = [MicroBatch::join(std::slice::from_ref(&batch))];
        trainer.accumulate(&row, 1.0, &NegativeLogLikelihood::new(0.0, row.len()))?;
        training_rate = batch.tokens.len() as f64 / started.elapsed().as_secs_f64();
    }
    let generation_rate = generation_rate(&trainer, prompts)?;

    let rows = sft.train.total_steps as f64 * sft.train.gradient_accumulation as f64;
    let rollouts =
        (grpo.train.total_steps as usize * grpo.rollout.num_prompts * grpo.rollout.n) as f64;
    let sampled = num_scored as f64 + rollouts;
    Ok(rows * sft.train.seq_len as f64 / training_rate
        + sampled * (response_tokens / generation_rate + JUDGING_SECS)
        + rollouts * SHARE_LEARNT * sequence_tokens / training_rate)
}

/// Returns the tokens a second over a short burst of 64 sequences.
fn generation_rate(trainer: &Trainer, prompts: Vec<Vec<u32>>) -> Result<f64> {
    let max_new_tokens = 48;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let config = EngineConfig::roomy(64, longest + max_new_tokens);
    let model = &trainer.model;
    let sampling = SamplingParams {
        max_new_tokens,
        vocab_size: model.tokenizer.vocab_size(),
        ..SamplingParams::default()
    };
    let requests: Vec<Request> = prompts
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| Request {
            prompt,
            sampling: sampling.clone(),
            num_samples: 8,
            key: i as u64,
        })
        .collect();
    let started = Instant::now();
    let stats = Engine::new(&model.decoder, &model.params, config)
        .generate(&requests, &mut |_: RequestId, _: usize, _: Rollout| {})?;
    Ok(stats.generated_tokens as f64 / started.elapsed().as_secs_f64())
}
