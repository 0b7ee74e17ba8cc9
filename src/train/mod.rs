//! The loops, and what they share.

pub mod rehearsal;
pub mod rl;
mod session;
pub mod settings;
pub mod sft;

use crate::config::limits::{refuse_outside, refuse_sizes};
use crate::optim::{AdamWConfig, Schedule, Warmup};
use crate::plan::PlanConfig;
use crate::run::CheckpointConfig;
use anyhow::Result;

/// Refuses settings of the optimizer, its schedule and the checkpoints that no run can have.
fn check_shared(
    optim: &AdamWConfig,
    schedule: &Schedule,
    checkpoint: &CheckpointConfig,
    plan: &PlanConfig,
) -> Result<()> {
    let below_one = 1.0 - f64::EPSILON;
    let warmup = match schedule.warmup {
        Warmup::Ratio(ratio) => ratio,
        Warmup::Steps(_) => 0.0,
    };
    refuse_outside(&[
        ("optim.lr", optim.lr, 0.0..=f64::MAX),
        ("optim.betas[0]", optim.betas.0, 0.0..=below_one),
        ("optim.betas[1]", optim.betas.1, 0.0..=below_one),
        ("optim.eps", optim.eps, f64::MIN_POSITIVE..=1e9),
        ("optim.weight_decay", optim.weight_decay, 0.0..=f64::MAX),
        ("optim.max_grad_norm", optim.max_grad_norm, 0.0..=f64::MAX),
        ("schedule.warmup.ratio", warmup, 0.0..=1.0),
        ("schedule.min_lr_ratio", schedule.min_lr_ratio, 0.0..=1.0),
        ("plan.gpu_memory_gb", plan.gpu_memory_gb.unwrap_or(1.0), 1e-3..=1e6),
    ])?;
    refuse_sizes(&[("checkpoint.keep_last", checkpoint.keep_last.unwrap_or(1))])
}
