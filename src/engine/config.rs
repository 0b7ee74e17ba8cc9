//! The sizes of an engine, and the statistics of what it did.

use super::{Request, SamplingParams};
use crate::base::error::usage;
use crate::model::{BLOCK_TOKENS, KvCache, ModelConfig};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The sizes of an engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineConfig {
    /// At most this many sequences generate at the same time.
    pub max_sequences: usize,
    /// A prompt and its response have at most this many tokens together.
    pub max_length: usize,
    /// A pass reads at most this many tokens of prompts beside the running sequences.
    pub prefill_tokens: usize,
    /// The key-value cache has this many blocks of [`crate::model::BLOCK_TOKENS`] positions each.
    pub cache_blocks: usize,
}

impl EngineConfig {
    /// Returns sizes with which `max_sequences` sequences of `max_length` tokens never wait for a block.
    pub fn roomy(max_sequences: usize, max_length: usize) -> Self {
        let most = max_sequences + max_prompts(max_sequences);
        let cache_blocks = most * KvCache::blocks_for(max_length) + 1;
        Self { max_sequences, max_length, prefill_tokens: 256, cache_blocks }
    }

    /// Returns the most rows of one pass whose logits are kept.
    pub fn max_logits(&self) -> usize {
        self.max_sequences + max_prompts(self.max_sequences)
    }

    /// Refuses sizes with which no request to `model` could finish.
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

    /// Refuses a request that could never finish within these sizes, or that names tokens beyond the
    /// `vocab_size` of the model.
    pub(crate) fn check_request(&self, request: &Request, vocab_size: usize) -> Result<()> {
        let (length, max_length) = (request.prompt.len(), self.max_length);
        if length == 0 {
            return Err(usage("the prompt is empty: give it at least one token"));
        }
        if length >= max_length {
            return Err(usage(format!(
                "the prompt has {length} tokens: no room for a response within {max_length} (max_length)"
            )));
        }
        let SamplingParams { max_new_tokens, min_new_tokens, stop_ids, logit_bias, .. } =
            &request.sampling;
        if *max_new_tokens == 0 {
            return Err(usage("max_new_tokens is 0: generation needs at least 1"));
        }
        if min_new_tokens > max_new_tokens {
            return Err(usage(format!(
                "min_new_tokens is {min_new_tokens}: it must be at most max_new_tokens, {max_new_tokens}"
            )));
        }
        let biased = logit_bias.iter().map(|(token, _)| token);
        match request.prompt.iter().chain(stop_ids).chain(biased).max() {
            Some(&id) if id as usize >= vocab_size => Err(usage(format!(
                "token {id} is not in the model's vocabulary: its ids are below {vocab_size}"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the bytes of the key-value cache for a model of this shape.
    pub fn cache_bytes(&self, model: &ModelConfig) -> u64 {
        KvCache::bytes_for(model, self.cache_blocks)
    }

    /// Returns the same sizes with a cache of at most `cache_tokens` positions.
    pub fn within(self, cache_tokens: usize) -> Self {
        let most = cache_tokens / BLOCK_TOKENS;
        Self { cache_blocks: self.cache_blocks.min(most), ..self }
    }

    /// Returns the positions of the smallest cache that can sample a sequence of `max_length` tokens. It
    /// has one block more than the sequence fills, since the samples of a prompt do not share its last
    /// block.
    pub fn least_cache_tokens(max_length: usize) -> usize {
        (KvCache::blocks_for(max_length) + 1) * BLOCK_TOKENS
    }
}

/// Returns how many prompts are read, or wait to be read, at the same time.
pub(crate) fn max_prompts(max_sequences: usize) -> usize {
    (max_sequences / 8).max(2)
}

/// Statistics of an engine's work.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Tokens were sampled so many times; those of cancelled samples count.
    pub generated_tokens: usize,
    /// So many tokens of prompts were computed. Tokens that are computed again after a preemption count
    /// again; tokens found in the cache do not count.
    pub prompt_tokens: usize,
    /// So many tokens of prompts were found in the cache, computed for an earlier prompt.
    pub shared_tokens: usize,
    /// The number of forward passes.
    pub passes: usize,
    /// The share of the `max_sequences` places that was in use, from 0 to 1, as a mean over passes.
    pub occupancy: f64,
    /// The largest share of the cache's blocks that was in use, from 0 to 1.
    pub peak_cache_use: f64,
    /// So many times a sequence or a prompt had to give up its blocks.
    pub preemptions: usize,
}

impl Stats {
    /// Describes the statistics in one line, for work that took `elapsed`.
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

    /// Adds the statistics of other work, done by another engine or later by the same one.
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
