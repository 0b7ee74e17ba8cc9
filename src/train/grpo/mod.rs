//! Group relative policy optimization with rewards from the judge.
//!
//! A step: sample a group of responses to each prompt with the weights being trained, judge them,
//! turn rewards into advantages within each group, and update (paper Table 7, where the mini-batch
//! is the whole batch). With one update a step every ratio is 1, which is logged. Ranks share the
//! sampling of a step by prompt and its updates by row.

mod config;
mod line_process;
mod metrics;
#[cfg(test)]
mod parity;
mod reward_process;
mod rewarder;
mod rollout;
mod update;

pub use config::{
    AdvantageConfig, Config, DataConfig, FilterMetric, OverlongPrompts, RolloutConfig, TrainConfig,
    ValidationConfig,
};
pub use reward_process::ExternalReward;

use super::metrics::{Metrics, Row, mebibytes, row};
use super::run::RunDir;
use super::trainer::Trainer;
use super::{resume_or_open, save_checkpoint, stopped, unusable};
use crate::base::error::Interrupted;
use crate::base::{interrupt, progress::Progress, rng};
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::eval::attempts::AttemptSettings;
use crate::eval::gtg;
use crate::sandbox::Judge;
use anyhow::{Context, Result};
use metrics::{mismatch_metrics, policy_metrics, rollout_metrics, time_metrics};
use rewarder::Rewarder;
use rollout::{Cursor, Rollouts, Task, collect, read_tasks};
use std::path::PathBuf;
use std::time::Instant;
use update::improve;

/// Trains by `config` in `run`, from its last checkpoint if there is one, and returns the model's
/// directory.
pub fn train(config: &Config, run: &RunDir, judge: &Judge, label: &str) -> Result<PathBuf> {
    config.check()?;
    let total_steps = config.train.total_steps;
    let (model, resumed) = resume_or_open(run, &config.model, config.seed)?;
    let execution = config.execution();
    let mut trainer = Trainer::new(model, config.optim, config.schedule, total_steps, execution)?;
    let cursor = match resumed {
        Some(dir) => trainer.restore::<Cursor>(&dir).with_context(|| unusable(&dir))?,
        None => Cursor::default(),
    };
    let prompt = GtgPrompt::bundled()?;
    let tasks = read_tasks(config, &trainer.model, &prompt)?;
    let mut rewarder = Rewarder::start(config, judge)?;
    let mut metrics = Metrics::open(run.path())?;
    metrics.truncate_after(trainer.step)?;
    let validation = Validation::read(config)?;
    if config.policy.needs_reference() {
        trainer.keep_reference(config.model.open(config.seed)?.params)?;
    }
    let mut state = State { trainer, cursor };
    let progress = Progress::new(label, total_steps, "steps");
    progress.skip(state.trainer.step);
    // Logged with the first step: a run directory without one counts as unused.
    let mut untrained = None;
    if let Some(validation) = &validation
        && state.trainer.step == 0
    {
        let score = validation.score(&mut state.trainer, judge)?;
        let pass_at_1 = score["val/pass_at_1"].as_f64().unwrap_or(f64::NAN);
        tracing::info!("validation before training: pass@1 {pass_at_1:.3}");
        untrained = Some(score);
    }
    while state.trainer.step < total_steps {
        let sampled = state.sample(config, run, &mut rewarder, &prompt, &tasks);
        let rollouts = match sampled {
            Ok(rollouts) => rollouts,
            Err(e) => {
                // The weights are still those of the last update, which may have been saved then.
                if state.is_worth_saving(run, &e) {
                    metrics.sync()?;
                    save_checkpoint(run, &mut state.trainer, &state.cursor, &config.checkpoint)?;
                }
                return Err(if e.is::<Interrupted>() { stopped(state.trainer.step) } else { e });
            }
        };
        let mut row = state.learn(config, rollouts)?;
        let step = state.trainer.step;
        if let Some(validation) = validation.as_ref().filter(|v| v.is_due(step, total_steps)) {
            row.extend(validation.score(&mut state.trainer, judge)?);
        }
        progress.set_message(describe(&row));
        if let Some(score) = untrained.take() {
            metrics.log(0, score)?;
        }
        metrics.log(step, row)?;
        run.forget_replaced()?;
        progress.inc(1);
        let is_last = step == total_steps;
        let is_interrupted = interrupt::requested();
        if is_last || is_interrupted || config.checkpoint.is_due(step) {
            metrics.sync()?;
            save_checkpoint(run, &mut state.trainer, &state.cursor, &config.checkpoint)?;
        }
        if is_interrupted && !is_last {
            return Err(stopped(step));
        }
    }
    progress.finish();
    Ok(run.checkpoints().step_dir(total_steps))
}

/// What changes from step to step.
struct State {
    trainer: Trainer,
    cursor: Cursor,
}

impl State {
    /// The rollouts of the next step, judged and rewarded.
    fn sample<'t>(
        &mut self,
        config: &Config,
        run: &RunDir,
        rewarder: &mut Rewarder<'_>,
        prompt: &GtgPrompt,
        tasks: &'t [Task],
    ) -> Result<Sampled<'t>> {
        let journal = run.samples(self.trainer.step);
        // Sampling and updating take their memory in turn.
        self.trainer.release_memory();
        // Only a whole step moves the cursor.
        let mut cursor = self.cursor;
        let mut generator = self.trainer.generator();
        let rewarding = (&mut generator, rewarder);
        let rollouts = collect(config, rewarding, prompt, tasks, &mut cursor, &journal)?;
        Ok(Sampled { rollouts, cursor })
    }

    /// Updates once by rollouts.
    fn learn(&mut self, config: &Config, sampled: Sampled<'_>) -> Result<Row> {
        let Sampled { rollouts, cursor } = sampled;
        let started = Instant::now();
        let updates = improve(&mut self.trainer, config, &rollouts.groups)?;
        self.cursor = cursor;
        let mut row = rollout_metrics(&rollouts.groups);
        row.extend(policy_metrics(&updates));
        row.extend(mismatch_metrics(&config.policy, &updates));
        row.extend(time_metrics(&rollouts.cost, started.elapsed().as_secs_f64()));
        row.insert("rollout/replaced_groups".into(), rollouts.replaced.len().into());
        if let Some(bytes) = self.trainer.gpu_peak_bytes()? {
            row.insert("time/gpu_peak_mib".into(), mebibytes(bytes).into());
        }
        Ok(row)
    }

    /// Whether what a failed step leaves would otherwise be lost.
    fn is_worth_saving(&self, run: &RunDir, error: &anyhow::Error) -> bool {
        let is_saved = run.checkpoints().step_dir(self.trainer.step).exists();
        !is_saved && (self.trainer.step > 0 || error.is::<Interrupted>())
    }
}

/// What one step learns from.
struct Sampled<'t> {
    rollouts: Rollouts<'t>,
    /// Behind the problems that were used.
    cursor: Cursor,
}

fn describe(row: &Row) -> String {
    let value = |key: &str| row.get(key).and_then(serde_json::Value::as_f64);
    match (value("reward/pass_rate"), value("reward/mean")) {
        (Some(pass), Some(reward)) => format!("pass {pass:.2}, reward {reward:.2}"),
        _ => "nothing to learn from".to_owned(),
    }
}

/// Held-out problems that are scored on the way.
struct Validation {
    problems: Vec<Problem>,
    every: u64,
    settings: AttemptSettings,
}

/// Label of a third use of the run's seed.
const VALIDATION: u64 = 3;

impl Validation {
    fn read(config: &Config) -> Result<Option<Self>> {
        let Some(validation) = &config.validation else { return Ok(None) };
        let mut problems = Vec::new();
        for file in &validation.files {
            problems.extend(jsonl::read::<Problem>(file)?);
        }
        problems.truncate(validation.num_problems.unwrap_or(usize::MAX));
        let settings = AttemptSettings {
            num_samples: validation.rollouts,
            temperature: validation.temperature as f32,
            max_new_tokens: config.rollout.max_new_tokens,
            max_sequences: config.rollout.max_sequences,
            kv_cache_tokens: config.rollout.kv_cache_tokens,
            // The same draws every time: scores of different steps differ by the weights alone.
            key: rng::key(config.seed, &[VALIDATION]),
        };
        Ok(Some(Self { problems, every: validation.every, settings }))
    }

    fn is_due(&self, step: u64, total_steps: u64) -> bool {
        step.is_multiple_of(self.every) || step == total_steps
    }

    fn score(&self, trainer: &mut Trainer, judge: &Judge) -> Result<Row> {
        let started = Instant::now();
        let pass_at_1 =
            gtg::validate(&mut trainer.generator(), judge, &self.problems, &self.settings)?;
        Ok(row([
            ("val/pass_at_1", pass_at_1),
            ("time/validation_secs", started.elapsed().as_secs_f64()),
        ]))
    }
}
