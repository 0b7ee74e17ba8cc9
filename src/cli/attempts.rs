//! The arguments of every command that has a model attempt problems.

use super::judge::JudgeArgs;
use crate::eval::attempts::AttemptSettings;
use crate::sandbox::Judge;
use anyhow::Result;
use std::path::PathBuf;

/// Which model, which problems, how they are attempted and judged.
#[derive(Debug, clap::Args)]
pub struct AttemptArgs {
    /// A model directory in Hugging Face layout, or the name of a model on the Hub
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// Problems (JSON Lines)
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Rollouts for each problem
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub rollouts: usize,
    /// Sampling temperature
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Longest response, in tokens
    #[arg(long, value_name = "N", default_value_t = 10_240)]
    max_new_tokens: usize,
    /// Sequences generated at the same time
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_sequences: usize,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    judge: JudgeArgs,
}

impl AttemptArgs {
    /// How problems are attempted.
    pub fn settings(&self) -> AttemptSettings {
        AttemptSettings {
            num_samples: self.rollouts,
            temperature: self.temperature,
            max_new_tokens: self.max_new_tokens,
            max_sequences: self.max_sequences,
            key: self.seed,
        }
    }

    /// Starts the judge of the answers.
    pub fn start_judge(&self) -> Result<Judge> {
        Judge::start(self.judge.options())
    }
}
