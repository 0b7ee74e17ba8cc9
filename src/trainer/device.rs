//! Where a run computes: `train.device`, and `[train.gpu]`, the number formats in which a GPU holds its
//! state.
//!
//! Fine-tuning and reinforcement share these settings. They decide only how the work is done: a run that
//! stopped on one device can continue on another, from the same files. The GPUs are the first that
//! `CUDA_VISIBLE_DEVICES` shows, as many as this node has of `train.ranks`.

use crate::base::error::usage;
use crate::engine::device;
use crate::model::gpu_sizes::MOST_ROWS;
use crate::model::{BatchSize, Precision};
use anyhow::Result;
use serde::{Deserialize, Serialize};

#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The cores of this machine, in f32; each rank is a thread.
    #[default]
    Cpu,
    /// A GPU for each rank, in bf16 or fp16 with f32 master weights.
    Cuda,
}

/// The number formats in which a GPU holds its state; a CPU holds everything in f32.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields, default)]
pub struct GpuConfig {
    pub moments: Moments,
    /// Which sums of gradients a GPU holds over the micro-batches of an update.
    pub gradient_sums: GradientSums,
}

/// The number format of AdamW's moments.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    #[default]
    F32,
    /// bfloat16 with stochastic rounding, which takes half the memory.
    Bf16,
}

/// Which gradients a GPU sums up over an update, in f32.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum GradientSums {
    /// The gradients of its shard. Those of each micro-batch are summed over the ranks, in 16 bits, while
    /// its backward runs.
    #[default]
    Sharded,
    /// All gradients. They are summed over the ranks once an update, in f32. This takes four bytes more for
    /// each parameter, and less traffic.
    Full,
}

/// What the GPUs of a run need when they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpus {
    pub config: GpuConfig,
    /// The number format of weights and activations: bf16 or fp16.
    pub precision: Precision,
    /// The largest micro-batch that will come; memory is laid out for it.
    pub largest: BatchSize,
}

impl DeviceKind {
    /// Refuses a device if this build or this machine does not have `count` of it.
    pub fn check(self, count: usize) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda => device::check(count),
        }
    }

    /// Returns the number format of weights and activations on this device: the one that was `asked` for,
    /// or the device's own.
    pub fn precision(self, asked: Option<Precision>) -> Precision {
        asked.unwrap_or(match self {
            Self::Cpu => Precision::F32,
            Self::Cuda => Precision::Bf16,
        })
    }

    /// Refuses a number format in which the device does not compute; `key` names the setting in errors.
    pub fn check_precision(self, asked: Option<Precision>, key: &str) -> Result<()> {
        match (self, self.precision(asked)) {
            (Self::Cpu, Precision::F32) | (Self::Cuda, Precision::Bf16 | Precision::Fp16) => Ok(()),
            (Self::Cpu, precision) => Err(usage(format!(
                "{key} is {precision}: a CPU computes in f32; leave it out, or choose the device cuda"
            ))),
            (Self::Cuda, precision) => Err(usage(format!(
                "{key} is {precision}: GPUs compute in bf16 or fp16; leave it out, or choose the device cpu"
            ))),
        }
    }

    /// Refuses to share prompts among responses where only a CPU does; `table` is where that was asked for.
    pub(crate) fn check_share_prompts(self, is_asked: bool, table: &str) -> Result<()> {
        match (self, is_asked) {
            (Self::Cuda, true) => Err(usage(format!(
                "{table}.share_prompts is true, which only a CPU computes: leave it out, or set \
                 {table}.device=\"cpu\""
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a micro-batch of so many `tokens`; `keys` names the settings that make it.
    pub(crate) fn check_tokens(self, tokens: usize, keys: &str) -> Result<()> {
        if self == Self::Cpu || tokens <= MOST_ROWS {
            return Ok(());
        }
        Err(usage(format!(
            "{keys} is {tokens}: a micro-batch on a GPU has at most {MOST_ROWS} tokens"
        )))
    }

    /// Returns the GPUs of a run whose largest micro-batch is `largest`; `None` if the CPU computes.
    pub(crate) fn gpus(
        self,
        config: GpuConfig,
        precision: Precision,
        largest: BatchSize,
    ) -> Option<Gpus> {
        match self {
            Self::Cpu => None,
            Self::Cuda => Some(Gpus { config, precision, largest }),
        }
    }
}

/// Refuses a build or a machine without a GPU for each of `here` ranks. If the run has more than one rank in
/// `all`, refuses a machine without the library with which they exchange numbers.
pub(crate) fn check_gpus(here: usize, all: usize) -> Result<()> {
    device::check(here)?;
    if all > 1 { device::check_collectives() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_is_at_most_as_large_as_kernels_take_it() {
        assert!(DeviceKind::Cuda.check_tokens(MOST_ROWS, "train.seq_len").is_ok());
        let refusal = DeviceKind::Cuda.check_tokens(MOST_ROWS + 1, "train.seq_len").unwrap_err();
        assert!(refusal.to_string().contains("train.seq_len is 65409"), "{refusal}");
    }
}
