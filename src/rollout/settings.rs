//! The settings of attempts at problems, and the queries that they make.

use super::attempt::Query;
use crate::base::error::usage;
use crate::base::rng;
use crate::engine::check_temperature;
use crate::tasks::Sampling;
use anyhow::Result;

/// The most rollouts, tokens or sequences that settings accept: far more than anybody uses.
const MOST: usize = 1 << 20;

/// How problems are attempted.
#[derive(Debug, Clone)]
pub struct AttemptSettings {
    /// The number of rollouts for each problem.
    pub num_samples: usize,
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// The longest response, in tokens. Prompt and response together never exceed the model's positions.
    pub max_new_tokens: usize,
    /// The longest prompt that may come, in tokens, if it is known in advance: then GPUs take the same
    /// memory each time.
    pub max_prompt_tokens: Option<usize>,
    /// The number of sequences that each rank generates at the same time.
    pub max_sequences: usize,
    /// The positions in each rank's key-value cache. By default it is as many as `max_sequences` of the
    /// longest sequences need, within half of the free memory.
    pub kv_cache_tokens: Option<usize>,
    /// Tokens that end a response, besides those of the model.
    pub stop_ids: Vec<u32>,
    /// The key of the randomness; the problem's place in the list is mixed in.
    pub key: u64,
}

impl Default for AttemptSettings {
    /// Returns the settings of the paper (Table 8).
    fn default() -> Self {
        let Sampling { rollouts, temperature, max_new_tokens } = Sampling::default();
        Self {
            num_samples: rollouts,
            temperature,
            max_new_tokens,
            max_prompt_tokens: None,
            max_sequences: 64,
            kv_cache_tokens: None,
            stop_ids: Vec::new(),
            key: 0,
        }
    }
}

impl AttemptSettings {
    /// Refuses numbers with which nothing could be sampled.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("num_samples (rollouts)", self.num_samples),
            ("max_new_tokens", self.max_new_tokens),
            ("max_sequences", self.max_sequences),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=MOST).contains(size)) {
            return Err(usage(format!("{name} is {size}: it must be from 1 to {MOST}")));
        }
        check_temperature("temperature", self.temperature)
    }

    /// Asks for responses to the task's problem number `problem`, which is at `place` in the list of
    /// queries.
    pub fn query(&self, place: usize, problem: usize) -> Query {
        let key = rng::key(self.key, &[place as u64]);
        Query { problem, num_samples: self.num_samples, key }
    }

    /// Asks for responses to problems 0 to `num_problems` - 1, in order.
    pub fn queries(&self, num_problems: usize) -> Vec<Query> {
        (0..num_problems).map(|problem| self.query(problem, problem)).collect()
    }
}
