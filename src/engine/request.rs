//! What is asked of the engine and what it gives back.

use serde::{Deserialize, Serialize};

/// How tokens are drawn and when a rollout ends.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of tokens with at least this probability; 1 keeps all.
    pub top_p: f32,
    /// A rollout of this many tokens is cut off.
    pub max_new_tokens: usize,
    /// A rollout ends with one of these tokens, which it includes.
    pub stop_ids: Vec<u32>,
    /// Only tokens below this are drawn: the tokenizer's; the model's embedding may have more rows.
    pub vocab_size: usize,
}

/// A prompt and the samples wanted of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How many independent rollouts.
    pub num_samples: usize,
    /// Key of this prompt's randomness; sample `i` at position `t` draws number `t` of the key
    /// (`key`, `i`).
    pub key: u64,
}

/// Why a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// With a stop token.
    Stop,
    /// At the token limit.
    Length,
}

/// A sampled continuation of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// New tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// Natural log-probability of each new token under softmax(logits / temperature), before any
    /// truncation by top-k or top-p and over all rows of the model, padding rows among them, as
    /// training computes it; at temperature 0 that of temperature 1.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}
