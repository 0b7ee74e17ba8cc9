//! What a run will need, known before it starts: parameters, memory by buffer, work.
//!
//! Needs the model's `config.json` only. Left out: activations, which depend on how samples pack,
//! and the memory of the data itself.

use super::{ModelSource, Origin, grpo, sft};
use crate::checkpoint::LanguageModel;
use crate::model::{Layout, ModelConfig};
use anyhow::Result;
use serde::Serialize;

/// The plan of a training run.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Trained parameters.
    pub num_parameters: usize,
    /// Bytes of weights, gradients and the two moments of AdamW (f32).
    pub state_bytes: usize,
    /// Bytes of the key-value cache, where rollouts are made.
    pub kv_cache_bytes: usize,
    /// Updates.
    pub total_steps: u64,
    /// Most tokens in one update.
    pub max_tokens_per_step: usize,
    /// Rollouts in one step.
    pub rollouts_per_step: usize,
}

impl Plan {
    /// The plan of a fine-tuning run.
    pub fn of_sft(config: &sft::Config) -> Result<Self> {
        config.check()?;
        let shape = shape(&config.model)?;
        Ok(Self {
            kv_cache_bytes: 0,
            total_steps: config.train.total_steps,
            max_tokens_per_step: config.train.seq_len * config.train.gradient_accumulation,
            rollouts_per_step: 0,
            ..Self::of_model(&shape)
        })
    }

    /// The plan of a reinforcement run.
    pub fn of_grpo(config: &grpo::Config) -> Result<Self> {
        config.check()?;
        let shape = shape(&config.model)?;
        let rollout = &config.rollout;
        let max_length = config.data.max_prompt_tokens + rollout.max_new_tokens;
        let bytes_per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * 4;
        let rollouts_per_step = rollout.num_prompts * rollout.n;
        Ok(Self {
            kv_cache_bytes: rollout.max_sequences * max_length * bytes_per_token,
            total_steps: config.train.total_steps,
            max_tokens_per_step: rollouts_per_step * max_length,
            rollouts_per_step,
            ..Self::of_model(&shape)
        })
    }

    fn of_model(shape: &ModelConfig) -> Self {
        let num_parameters = Layout::new(shape).len;
        Self {
            num_parameters,
            state_bytes: 4 * 4 * num_parameters,
            kv_cache_bytes: 0,
            total_steps: 0,
            max_tokens_per_step: 0,
            rollouts_per_step: 0,
        }
    }

    /// Label and value of each line of the plan's table.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let mut lines = vec![
            ("parameters", self.num_parameters.to_string()),
            ("weights, gradients, moments", mib(self.state_bytes)),
            ("updates", self.total_steps.to_string()),
            ("tokens in an update, at most", self.max_tokens_per_step.to_string()),
        ];
        if self.rollouts_per_step > 0 {
            lines.push(("rollouts in a step", self.rollouts_per_step.to_string()));
            lines.push(("key-value cache, at most", mib(self.kv_cache_bytes)));
        }
        lines
    }
}

fn shape(model: &ModelSource) -> Result<ModelConfig> {
    match model.origin()? {
        Origin::Directory(dir) => LanguageModel::shape(dir),
        Origin::Random { config, .. } => LanguageModel::read_config(config),
    }
}
