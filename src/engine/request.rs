//! What an engine is asked for, and what it returns.

use crate::base::error::usage;
use crate::base::rng;
use crate::ops::sample::{Drawn, Edits, Policy, Sampling};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Temperatures other than 0 lie in this range: below it logits overflow, above it all tokens become
/// equally likely.
const TEMPERATURES: RangeInclusive<f32> = 1e-3..=1e6;

/// Refuses a temperature that is neither 0 nor in the range that divides logits safely; the error calls it
/// `name`.
pub fn check_temperature(name: &str, temperature: f32) -> Result<()> {
    if temperature == 0.0 || TEMPERATURES.contains(&temperature) {
        return Ok(());
    }
    let (least, most) = (TEMPERATURES.start(), TEMPERATURES.end());
    Err(usage(format!("{name} is {temperature}: it must be 0, or from {least} to {most}")))
}

/// How the tokens of a request are drawn, and when its rollouts end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens are drawn; 0 keeps all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are drawn; 1 keeps all.
    pub top_p: f32,
    /// Only tokens with at least this share of the largest probability are drawn; 0 keeps all.
    pub min_p: f32,
    /// Positive logits of tokens that stand in the prompt or the rollout are divided by this and negative
    /// ones multiplied (Keskar et al. 2019, as in transformers); 1 changes nothing.
    pub repetition_penalty: f32,
    /// This is subtracted from the logits of tokens that stand in the rollout; 0 changes nothing.
    pub presence_penalty: f32,
    /// This is subtracted once for each time that a token stands in the rollout; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Each of these tokens has this number added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
    /// A rollout ends after this many tokens.
    pub max_new_tokens: usize,
    /// Stop tokens are not drawn before a rollout has this many tokens.
    pub min_new_tokens: usize,
    /// A rollout ends with any of these tokens, which belongs to it.
    pub stop_ids: Vec<u32>,
    /// Only tokens below this are drawn. It is the tokenizer's size: the model may have more rows of
    /// logits.
    pub vocab_size: usize,
    /// Each token is returned with the log-probabilities of this many most likely tokens.
    pub top_logprobs: usize,
    /// Log-probabilities are those of temperature 1, whatever tokens are drawn with.
    pub raw_logprobs: bool,
    /// The observer is told the prompt's log-probabilities ([`Observer::prompt`]), with this many most
    /// likely tokens at each position.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    /// Returns the model's own distribution, without a stop token or a limit.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            max_new_tokens: usize::MAX,
            min_new_tokens: 0,
            stop_ids: Vec::new(),
            vocab_size: usize::MAX,
            top_logprobs: 0,
            raw_logprobs: false,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    pub(crate) fn policy(&self) -> Policy {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, vocab_size, .. } = *self;
        let sampling = Sampling { temperature, top_k, top_p, min_p };
        Policy { sampling, repetition_penalty, vocab_size, raw_logprobs: self.raw_logprobs }
    }

    /// Returns the changes of logits of the token that comes after `num_drawn` others.
    pub(crate) fn edits(&self, num_drawn: usize) -> Edits<'_> {
        Edits {
            bias: &self.logit_bias,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            banned: if num_drawn < self.min_new_tokens { &self.stop_ids } else { &[] },
        }
    }
}

/// Names a request. An engine counts the requests submitted before it; a queue gives its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub usize);

/// A prompt, and the samples wanted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Token ids; there is at least one.
    pub prompt: Vec<u32>,
    pub sampling: SamplingParams,
    /// The number of independent rollouts.
    pub num_samples: usize,
    /// The key of this prompt's randomness. The token at position `t` of sample `i` uses random number `t`
    /// of the key (`key`, `i`).
    pub key: u64,
}

impl Request {
    /// Returns the key of a prompt's randomness under a seed. It depends on the prompt's tokens and not on
    /// its place, so that a prompt has the same responses in any company.
    pub fn key_of(seed: u64, prompt: &[u32]) -> u64 {
        let labels: Vec<u64> = prompt.iter().map(|&token| token.into()).collect();
        rng::key(seed, &labels)
    }
}

/// Why a rollout ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It drew a stop token, or its observer said [`Next::Stop`].
    Stop,
    /// It reached a limit of tokens. A rollout that still grows has this reason too.
    #[default]
    Length,
    /// Its observer said [`Next::Cancel`].
    Cancelled,
}

/// A sampled response to a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The new tokens; a stop token belongs to them.
    pub tokens: Vec<u32>,
    /// The natural logarithm of each new token's probability under softmax(logits / temperature), or
    /// softmax(logits) at temperature 0 and with [`SamplingParams::raw_logprobs`]. It is the probability
    /// that training computes: over all of the model's rows of logits, padding rows too, before any
    /// truncation and change of logits.
    pub logprobs: Vec<f32>,
    /// For each new token, the most likely tokens at its position, likeliest first, with their
    /// log-probabilities in the same sense. It is empty unless [`SamplingParams::top_logprobs`] asks for
    /// them.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    pub finish_reason: FinishReason,
}

/// What an observer wants of a rollout after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// It goes on.
    Continue,
    /// It ends here, as with a stop token.
    Stop,
    /// It ends here, and nobody will use it.
    Cancel,
}

/// An observer watches rollouts grow. The order in which several rollouts grow has no meaning.
///
/// A closure of (request, sample, rollout) is an observer that is told only of their ends.
pub trait Observer: Send {
    /// Tells the log-probabilities of a prompt's tokens from the second on, at temperature 1, where
    /// [`SamplingParams::prompt_logprobs`] asks for them. It is called once, before any token of the
    /// prompt's rollouts. Samplers on other machines do not call it.
    fn prompt(&mut self, _request: RequestId, _tokens: Vec<Drawn>) {}

    /// Tells of a new token, which is the last of `rollout`, and asks whether the rollout goes on.
    fn token(&mut self, _request: RequestId, _sample: usize, _rollout: &Rollout) -> Next {
        Next::Continue
    }

    /// Tells that a rollout ended. It is called once for each sample, unless [`super::Engine::cancel`] gave
    /// up the request.
    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout);
}

impl<F: FnMut(RequestId, usize, Rollout) + Send> Observer for F {
    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        self(request, sample, rollout);
    }
}
