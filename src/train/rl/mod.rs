//! Reinforcement with rewards from the judge: GRPO, and what differs from it in how advantages are estimated.
//!
//! A step: sample a group of responses to each prompt with the weights being trained, judge them,
//! turn rewards into advantages (`objective::advantage`), and update (paper Table 7, where the mini-batch
//! is the whole batch). With one update a step every ratio is 1, which is logged. Ranks share the
//! sampling of a step by prompt and its updates by row.

mod config;
mod metrics;
#[cfg(test)]
mod parity;
mod reward_process;
mod rewarder;
mod rollout;
#[cfg(test)]
mod test_support;
mod training_set;
mod update;
mod validation;

pub use config::{
    Config, DataConfig, FilterMetric, OverlongPrompts, RolloutConfig, TrainConfig, ValidationConfig,
};
pub use reward_process::ExternalReward;

use super::session::{Session, Start, Terms};
use crate::run::RunDir;
use crate::run::metrics::{Row, mebibytes};
use crate::sandbox::Judge;
use crate::trainer::Trainer;
use anyhow::{Context, Result};
use metrics::{mismatch_metrics, policy_metrics, rollout_metrics, time_metrics};
use rewarder::Rewarder;
use rollout::{Rollouts, collect};
use std::path::{Path, PathBuf};
use std::time::Instant;
use training_set::{Cursor, TrainingSet};
use update::improve;
use validation::Validation;

/// Trains by `config` in `run`, from its last checkpoint if there is one, and returns the model's
/// directory.
pub fn train(config: &Config, run: &RunDir, judge: &Judge, label: &str) -> Result<PathBuf> {
    config.check()?;
    run.record_inputs(&config.inputs()?)?;
    let start = Start::find(run, &config.model, config.seed)?;
    let task = config.open_task(&config.data.files, None, judge).context("reading data.files")?;
    let set = TrainingSet::new(config, task.as_ref(), &start.model)?;
    let validation = Validation::read(config, judge)?;
    let mut rewarder = Rewarder::start(config)?;
    let (total_steps, execution) = (config.train.total_steps, config.execution());
    let (trainer, saved) = start.trainer(config.optim, config.schedule, total_steps, execution)?;
    let mut cursor = set.go_on(saved)?;
    let mut session = Session::open(run, trainer, terms(config, label))?;
    if config.policy.needs_reference() {
        session.trainer.keep_reference(config.model.open(config.seed)?.params)?;
    }
    if let Some(validation) = &validation {
        validation.begin(&mut session)?;
    }
    while session.has_next_step() {
        let journal = run.samples(session.trainer.step + 1);
        // Only a whole step moves the cursor.
        let mut next = cursor;
        let rollouts =
            sample(&mut session.trainer, &mut rewarder, config, &set, (&mut next, &journal))
                .map_err(|error| session.break_off(&cursor, error))?;
        let row = learn(&mut session.trainer, config, &rollouts)?;
        cursor = next;
        let (message, trouble) = (describe(&row), trouble(&row));
        session.log(row, message)?;
        if let Some(validation) = &validation {
            let scored = validation.score_step(&mut session);
            scored.map_err(|error| session.break_off(&cursor, error))?;
        }
        session.end_step(&cursor, trouble)?;
    }
    Ok(session.finish())
}

fn terms<'a>(config: &'a Config, label: &'a str) -> Terms<'a> {
    Terms {
        label,
        total_steps: config.train.total_steps,
        checkpoint: &config.checkpoint,
        max_skipped: config.train.max_nonfinite_updates,
        max_skipped_key: "train.max_nonfinite_updates",
    }
}

/// The rollouts of the next step, judged and rewarded.
fn sample(
    trainer: &mut Trainer,
    rewarder: &mut Rewarder,
    config: &Config,
    set: &TrainingSet<'_>,
    (cursor, journal): (&mut Cursor, &Path),
) -> Result<Rollouts> {
    // Sampling and updating take their memory in turn.
    trainer.release_memory();
    let mut generator = trainer.generator();
    collect(config, (&mut generator, rewarder), set, cursor, journal)
}

/// Makes the updates of a step, and returns what it logs.
fn learn(trainer: &mut Trainer, config: &Config, rollouts: &Rollouts) -> Result<Row> {
    let started = Instant::now();
    let updates = improve(trainer, config, &rollouts.groups)?;
    let mut row = rollout_metrics(&rollouts.groups);
    row.extend(policy_metrics(&config.policy, &updates));
    row.extend(mismatch_metrics(&config.policy, &updates));
    row.extend(time_metrics(&rollouts.cost, started.elapsed().as_secs_f64()));
    row.insert("rollout/replaced_groups".into(), rollouts.replaced.len().into());
    if let Some(bytes) = trainer.gpu_peak_bytes()? {
        row.insert("time/gpu_peak_mib".into(), mebibytes(bytes).into());
    }
    Ok(row)
}

fn describe(row: &Row) -> String {
    match (number(row, "reward/pass_rate"), number(row, "reward/mean")) {
        (Some(pass), Some(reward)) => format!("pass {pass:.2}, reward {reward:.2}"),
        _ => "nothing to learn from".to_owned(),
    }
}

/// What was wrong with a step of which updates were skipped.
fn trouble(row: &Row) -> Option<String> {
    let skipped = number(row, "optim/skipped").filter(|&skipped| skipped > 0.0)?;
    let updates = number(row, "optim/updates")?;
    Some(format!("{skipped} of {updates} updates had no finite loss and gradient"))
}

fn number(row: &Row, key: &str) -> Option<f64> {
    row.get(key)?.as_f64()
}
