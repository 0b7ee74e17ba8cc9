//! What is asked of the engine and what it gives back.

use crate::base::error::usage;
use crate::ops::sample::{Policy, Sampling};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Temperatures other than 0: with lower ones logits overflow, with higher ones nothing is left of them.
const TEMPERATURES: RangeInclusive<f32> = 1e-3..=1e6;

/// Refuses a temperature, named `name`, that is neither 0 nor a number to divide logits by.
pub fn check_temperature(name: &str, temperature: f32) -> Result<()> {
    if temperature == 0.0 || TEMPERATURES.contains(&temperature) {
        return Ok(());
    }
    let (least, most) = (TEMPERATURES.start(), TEMPERATURES.end());
    Err(usage(format!("{name} is {temperature}: it must be 0, or from {least} to {most}")))
}

/// How the tokens of a request are drawn and when its rollouts end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of tokens with at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that the prompt or the rollout
    /// already has (Keskar et al. 2019, as transformers does); 1 changes nothing.
    pub repetition_penalty: f32,
    /// A rollout of this many tokens is cut off.
    pub max_new_tokens: usize,
    /// A rollout ends with one of these tokens, which it includes.
    pub stop_ids: Vec<u32>,
    /// Only tokens below this are drawn: the tokenizer's; the model's embedding may have more rows.
    pub vocab_size: usize,
    /// Each token comes with the log-probabilities of so many most likely tokens in its place.
    pub top_logprobs: usize,
}

impl Default for SamplingParams {
    /// The model's own distribution, without an end.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: usize::MAX,
            stop_ids: Vec::new(),
            vocab_size: usize::MAX,
            top_logprobs: 0,
        }
    }
}

impl SamplingParams {
    /// How each token is drawn.
    pub(crate) fn policy(&self) -> Policy {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, vocab_size, .. } = *self;
        let sampling = Sampling { temperature, top_k, top_p, min_p };
        Policy { sampling, repetition_penalty, vocab_size }
    }
}

/// A request: of an engine the number of those submitted before it, of a queue its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub usize);

/// A prompt and the samples wanted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How each sample is drawn and when it ends.
    pub sampling: SamplingParams,
    /// How many independent rollouts.
    pub num_samples: usize,
    /// Key of this prompt's randomness; sample `i` at position `t` draws number `t` of the key
    /// (`key`, `i`).
    pub key: u64,
}

/// Why a rollout ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// With a stop token, or because the observer said so.
    Stop,
    /// At the token limit; also the reason of one that is still growing.
    #[default]
    Length,
    /// The observer no longer wanted it.
    Cancelled,
}

/// A sampled continuation of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// New tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// Natural log-probability of each new token under softmax(logits / temperature), before any
    /// truncation and penalty and over all rows of the model, padding rows among them, as training
    /// computes it; at temperature 0 that of temperature 1.
    pub logprobs: Vec<f32>,
    /// For each new token the most likely tokens in its place, likeliest first, with their
    /// log-probabilities in the same sense; empty unless [`SamplingParams::top_logprobs`] asks for them.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What becomes of a rollout after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// It goes on.
    Continue,
    /// It ends here, as with a stop token.
    Stop,
    /// It is given up.
    Cancel,
}

/// Watches rollouts grow. Which of several rollouts grows first means nothing.
///
/// A closure of (request, sample, rollout) watches only their ends.
pub trait Observer: Send {
    /// A token was drawn, the last of `rollout`.
    fn token(&mut self, _request: RequestId, _sample: usize, _rollout: &Rollout) -> Next {
        Next::Continue
    }

    /// A rollout ended; called once for each sample of a request that is not cancelled.
    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout);
}

impl<F: FnMut(RequestId, usize, Rollout) + Send> Observer for F {
    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        self(request, sample, rollout);
    }
}
