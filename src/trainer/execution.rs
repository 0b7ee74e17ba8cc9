//! How the work of a run is done: ranks, devices, recomputing, and the loss scale of fp16. None of it
//! changes what is learnt.

use super::device::Gpus;
use crate::model::Recompute;
use crate::optim::LossScaleConfig;

#[derive(Debug, Clone, Copy)]
pub struct Execution {
    /// The number of ranks: threads on a CPU, or GPUs.
    pub ranks: usize,
    /// What the backward computes again, instead of keeping it from the forward.
    pub recompute: Recompute,
    /// The loss scale of fp16; `None` with other number formats.
    pub loss_scale: Option<LossScaling>,
    /// The GPUs that compute; `None` if the CPU does.
    pub gpus: Option<Gpus>,
}

/// How the loss of fp16 is scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    pub config: LossScaleConfig,
    /// The largest number by which a rank's sum of losses in one update is divided. The scale is meant for
    /// the mean, but gradients are of the sum. It is rounded up to a power of two, so that scaling changes
    /// no bit.
    pub divisor: usize,
}

impl Default for Execution {
    fn default() -> Self {
        Self { ranks: 1, recompute: Recompute::default(), loss_scale: None, gpus: None }
    }
}
