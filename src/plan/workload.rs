//! What a run asks of the machine: all that its memory and time depend on.
//!
//! Contract: numbers alone, which each loop takes from its own settings, so that a plan knows of no loop.

use super::PlanConfig;
use crate::engine::EngineConfig;
use crate::model::{BatchSize, ModelConfig, Recompute};
use crate::trainer::device::{DeviceKind, GpuConfig};
use serde::Serialize;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// All ranks share its memory, whose size is the machine's business.
    Cpu,
    /// One for each rank; time is estimated at 40 % of the 989 TFLOP/s that an H100 has in bf16.
    Gpu {
        /// Bytes of its memory.
        memory_bytes: f64,
    },
}

impl Device {
    /// The device of a run whose plan is measured against `config`.
    pub fn new(kind: DeviceKind, config: &PlanConfig) -> Self {
        match kind {
            DeviceKind::Cpu => Self::Cpu,
            DeviceKind::Cuda => {
                Self::Gpu { memory_bytes: config.gpu_memory_gb.unwrap_or(80.0) * 1e9 }
            }
        }
    }
}

/// A training run.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The model.
    pub shape: ModelConfig,
    /// What computes.
    pub device: Device,
    /// Ranks that share the work.
    pub ranks: usize,
    /// What a GPU holds in which numbers.
    pub gpu: GpuConfig,
    /// What the backward computes again instead of keeping it.
    pub recompute: Recompute,
    /// Most tokens of a packed row.
    pub row_tokens: usize,
    /// Rows that go through the model together.
    pub rows_at_once: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Updates.
    pub total_steps: u64,
    /// Most tokens in one update.
    pub max_tokens_per_step: usize,
    /// Whether a step scores its rows before it learns from them: one more forward.
    pub scores_first: bool,
    /// What is sampled in every step, by a run that learns from its own samples.
    pub sampling: Option<Sampling>,
}

/// What a step of reinforcement samples.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// The engine of each rank.
    pub engine: EngineConfig,
    /// Responses of all ranks.
    pub rollouts_per_step: usize,
    /// Whether a reference model scores them.
    pub has_reference: bool,
}

impl Workload {
    /// The largest batch that goes through the model at once.
    pub(crate) fn batch(&self) -> BatchSize {
        let tokens = self.row_tokens * self.rows_at_once;
        BatchSize { tokens, longest: self.longest, targets: tokens }
    }

    /// Whether a reference model is held.
    pub(crate) fn has_reference(&self) -> bool {
        self.sampling.as_ref().is_some_and(|sampling| sampling.has_reference)
    }
}
