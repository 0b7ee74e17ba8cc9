//! The sizes of an engine, and what a workload took of them.

use super::Request;
use crate::base::error::usage;
use crate::model::{BLOCK_TOKENS, KvCache, ModelConfig};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Sizes of the engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineConfig {
    /// Sequences that generate at the same time.
    pub max_sequences: usize,
    /// Longest prompt plus response, in tokens.
    pub max_length: usize,
    /// Tokens of prompts read in one pass beside the running sequences.
    pub prefill_tokens: usize,
    /// Blocks of the cache, of [`crate::model::BLOCK_TOKENS`] positions each.
    pub cache_blocks: usize,
}

impl EngineConfig {
    /// A cache in which `max_sequences` sequences of `max_length` tokens never wait for memory.
    pub fn roomy(max_sequences: usize, max_length: usize) -> Self {
        let most = max_sequences + max_prompts(max_sequences);
        let cache_blocks = most * KvCache::blocks_for(max_length) + 1;
        Self { max_sequences, max_length, prefill_tokens: 256, cache_blocks }
    }

    /// Prompt and response rows whose logits exist at the same time, at most.
    pub fn max_logits(&self) -> usize {
        self.max_sequences + max_prompts(self.max_sequences)
    }

    /// Refuses sizes with which no request of a model of this shape could finish.
    pub(crate) fn check(&self, model: &ModelConfig) -> Result<()> {
        let Self { max_sequences, max_length, prefill_tokens, cache_blocks } = *self;
        model.check_length(max_length)?;
        let sizes = [("max_sequences", max_sequences), ("prefill_tokens", prefill_tokens)];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(usage(format!("{name} is 0: generation needs at least 1")));
        }
        let least = Self::least_cache_tokens(max_length) / BLOCK_TOKENS;
        if cache_blocks < least {
            return Err(usage(format!(
                "the key-value cache has {cache_blocks} blocks, but one sequence of {max_length} tokens \
                 (max_length) needs {least}"
            )));
        }
        Ok(())
    }

    /// Refuses a request that could never finish within these sizes.
    pub(crate) fn check_request(&self, request: &Request) -> Result<()> {
        let (length, max_length) = (request.prompt.len(), self.max_length);
        if length == 0 {
            return Err(usage("the prompt is empty: give it at least one token"));
        }
        if length >= max_length {
            return Err(usage(format!(
                "the prompt has {length} tokens: no room for a response within {max_length} (max_length)"
            )));
        }
        if request.sampling.max_new_tokens == 0 {
            return Err(usage("max_new_tokens is 0: generation needs at least 1"));
        }
        Ok(())
    }

    /// Bytes of the key-value cache for a model of this shape.
    pub fn cache_bytes(&self, model: &ModelConfig) -> u64 {
        KvCache::bytes_for(model, self.cache_blocks)
    }

    /// The same with a cache of at most `cache_tokens` positions.
    pub fn within(self, cache_tokens: usize) -> Self {
        let most = cache_tokens / BLOCK_TOKENS;
        Self { cache_blocks: self.cache_blocks.min(most), ..self }
    }

    /// Positions of the smallest cache in which sequences of `max_length` tokens can be sampled: one,
    /// and a block more, since samples of a prompt differ in its last one.
    pub fn least_cache_tokens(max_length: usize) -> usize {
        (KvCache::blocks_for(max_length) + 1) * BLOCK_TOKENS
    }
}

/// Prompts read or waiting at the same time.
pub(crate) fn max_prompts(max_sequences: usize) -> usize {
    (max_sequences / 8).max(2)
}

/// What a workload took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Sampled tokens, also of what was cancelled.
    pub generated_tokens: usize,
    /// Prompt tokens read, again after a preemption; those shared with an earlier prompt not.
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the cache from an earlier prompt.
    pub shared_tokens: usize,
    /// Forward passes.
    pub passes: usize,
    /// Mean share of the `max_sequences` places in use, from 0 to 1.
    pub occupancy: f64,
    /// Largest share of the cache in use, from 0 to 1.
    pub peak_cache_use: f64,
    /// Times that a sequence or prompt had to give up its blocks.
    pub preemptions: usize,
}

impl Stats {
    /// All of it in a line, for a workload that took `elapsed`.
    pub fn summary(&self, elapsed: Duration) -> String {
        let Self { generated_tokens, prompt_tokens, shared_tokens, preemptions, .. } = *self;
        format!(
            "{generated_tokens} tokens generated, {:.0} a second, after {prompt_tokens} of prompts \
             ({shared_tokens} more were known); {:.0} % of places in use, at most {:.0} % of the cache; \
             {preemptions} preemptions",
            generated_tokens as f64 / elapsed.as_secs_f64(),
            100.0 * self.occupancy,
            100.0 * self.peak_cache_use
        )
    }

    /// Adds what another engine did meanwhile, or the same one later.
    pub fn merge(&mut self, other: &Self) {
        let passes = self.passes + other.passes;
        let in_use = |stats: &Self| stats.occupancy * stats.passes as f64;
        self.occupancy = (in_use(self) + in_use(other)) / passes.max(1) as f64;
        self.generated_tokens += other.generated_tokens;
        self.prompt_tokens += other.prompt_tokens;
        self.shared_tokens += other.shared_tokens;
        self.passes = passes;
        self.peak_cache_use = self.peak_cache_use.max(other.peak_cache_use);
        self.preemptions += other.preemptions;
    }
}
