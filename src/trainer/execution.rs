//! How the work of a run is laid out: ranks, devices, recomputing, and the loss scale of fp16. None of it
//! changes what is learnt.

use super::device::Gpus;
use crate::model::Recompute;
use crate::optim::LossScaleConfig;

#[derive(Debug, Clone, Copy)]
pub struct Execution {
    /// Threads on a CPU, or GPUs.
    pub ranks: usize,
    /// What the backward computes again instead of keeping it.
    pub recompute: Recompute,
    /// The loss scale of fp16; none with other precisions.
    pub loss_scale: Option<LossScaling>,
    /// The GPUs that compute; none where the CPU does.
    pub gpus: Option<Gpus>,
}

/// How the loss of fp16 is scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    /// How the scale moves.
    pub config: LossScaleConfig,
    /// The most that a rank's sum of the loss in one update is divided by: the scale is that of the mean,
    /// although gradients are sums. Rounded up to a power of two, so that scaling changes no bit.
    pub divisor: usize,
}

impl Default for Execution {
    fn default() -> Self {
        Self { ranks: 1, recompute: Recompute::default(), loss_scale: None, gpus: None }
    }
}
