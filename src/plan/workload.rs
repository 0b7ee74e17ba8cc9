//! What a run asks of the machine: the numbers that decide its memory and its time.
//!
//! Each loop makes these numbers from its own settings, so a plan knows no loop.

use super::PlanConfig;
use crate::engine::EngineConfig;
use crate::model::{BatchSize, ModelConfig, Recompute};
use crate::trainer::device::{DeviceKind, GpuConfig};
use serde::Serialize;

/// The device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The ranks are threads of a CPU and share its memory.
    Cpu,
    /// Each rank is a GPU. Time is estimated at 40 % of the 989 TFLOP/s that an H100 has in bf16.
    Gpu {
        /// The bytes of one GPU's memory.
        memory_bytes: f64,
    },
}

impl Device {
    /// Returns the device of a run; `config` gives the memory of a GPU.
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
    pub shape: ModelConfig,
    pub device: Device,
    /// The number of ranks that share the work.
    pub ranks: usize,
    /// The number formats in which a GPU holds moments and sums of gradients.
    pub gpu: GpuConfig,
    /// What the backward computes again, instead of keeping it from the forward.
    pub recompute: Recompute,
    /// A packed row has at most this many tokens.
    pub row_tokens: usize,
    /// The number of rows that go through the model together.
    pub rows_at_once: usize,
    /// The tokens of the longest sequence.
    pub longest: usize,
    /// The number of updates.
    pub total_steps: u64,
    /// One update has at most this many tokens.
    pub max_tokens_per_step: usize,
    /// Whether a step scores its rows before it learns from them, which is another forward.
    pub scores_first: bool,
    /// What every step samples, in a run that learns from its own samples.
    pub sampling: Option<Sampling>,
}

/// What a step of reinforcement samples.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// The sizes of each rank's engine.
    pub engine: EngineConfig,
    /// The responses of all ranks in a step.
    pub rollouts_per_step: usize,
    /// Whether a reference model scores the responses.
    pub has_reference: bool,
}

impl Workload {
    /// Returns the largest batch that goes through the model at once.
    pub(crate) fn batch(&self) -> BatchSize {
        let tokens = self.row_tokens * self.rows_at_once;
        BatchSize { tokens, longest: self.longest, targets: tokens }
    }

    /// Returns whether a reference model is held.
    pub(crate) fn has_reference(&self) -> bool {
        self.sampling.as_ref().is_some_and(|sampling| sampling.has_reference)
    }
}
