//! How problems are attempted.

use super::attempt::Query;
use crate::base::error::usage;
use crate::base::rng;
use crate::engine::check_temperature;
use crate::tasks::Sampling;
use anyhow::Result;

/// Far more rollouts, tokens and sequences than anybody asks for.
const MOST: usize = 1 << 20;

/// How problems are attempted.
#[derive(Debug, Clone)]
pub struct AttemptSettings {
    /// Rollouts for each problem.
    pub num_samples: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Longest response, in tokens; prompt and response never exceed what the model was made for.
    pub max_new_tokens: usize,
    /// Longest prompt that may come, where that is known before: GPUs then take the same memory each time.
    pub max_prompt_tokens: Option<usize>,
    /// Sequences that each rank generates at the same time.
    pub max_sequences: usize,
    /// Positions in each rank's key-value cache; where not given, as many as `max_sequences` of the
    /// longest need, within half of the free memory.
    pub kv_cache_tokens: Option<usize>,
    /// Tokens that end a response, beside those of the model.
    pub stop_ids: Vec<u32>,
    /// Key of the randomness; the problem's place in the list is mixed in.
    pub key: u64,
}

impl Default for AttemptSettings {
    /// Those of Table 8 of the paper.
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

    /// Asks for responses to a task's problem `problem`, which is at `place` of the list that is asked.
    pub fn query(&self, place: usize, problem: usize) -> Query {
        let key = rng::key(self.key, &[place as u64]);
        Query { problem, num_samples: self.num_samples, key }
    }

    /// Asks for responses to all of so many problems, in order.
    pub fn queries(&self, num_problems: usize) -> Vec<Query> {
        (0..num_problems).map(|problem| self.query(problem, problem)).collect()
    }
}
