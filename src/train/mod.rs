//! The loops, and what they share.

pub mod rehearsal;
pub mod rl;
pub mod settings;
pub mod sft;

use crate::base::error::Interrupted;
use crate::checkpoint::{LanguageModel, ModelSource};
use crate::config::limits::{refuse_outside, refuse_sizes};
use crate::optim::{AdamWConfig, Schedule, Warmup};
use crate::plan::PlanConfig;
use crate::run::{CheckpointConfig, Ending, RunDir, metrics};
use crate::trainer::Trainer;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

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

/// The model of the run's last checkpoint with that checkpoint's directory, or else of `source`.
fn resume_or_open(
    run: &RunDir,
    source: &ModelSource,
    seed: u64,
) -> Result<(LanguageModel, Option<PathBuf>)> {
    match run.checkpoints().latest()? {
        Some((_, dir)) => {
            let model = LanguageModel::open(&dir).with_context(|| unusable(&dir))?;
            Ok((model, Some(dir)))
        }
        None => {
            if run.path().join(metrics::FILE).exists() {
                tracing::warn!("there is no checkpoint to go on from: the run starts at step 0");
            }
            Ok((source.open(seed)?, None))
        }
    }
}

/// The end of a run that the user stopped, which says how it goes on.
fn stopped(step: u64) -> anyhow::Error {
    anyhow::Error::new(Interrupted).context(Ending::saved_at(step))
}

/// What to do where a run cannot go on from its last checkpoint.
fn unusable(dir: &Path) -> Ending {
    Ending(format!(
        "cannot go on from {0}; without {0}, --resume takes the one before",
        dir.display()
    ))
}

/// Writes the checkpoint of the trainer's step and removes those that are not kept.
fn save_checkpoint<S: Serialize>(
    run: &RunDir,
    trainer: &mut Trainer,
    state: &S,
    config: &CheckpointConfig,
) -> Result<()> {
    let checkpoints = run.checkpoints();
    trainer.save(&checkpoints.step_dir(trainer.step), state)?;
    match config.keep_last {
        Some(keep_last) => checkpoints.retain(keep_last, config.keep_every),
        None => Ok(()),
    }
}
