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

use super::{resume_or_open, save_checkpoint, stopped, unusable};
use crate::base::error::{Interrupted, usage};
use crate::base::{interrupt, progress::Progress, rng};
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::eval::gtg;
use crate::eval::problems;
use crate::rollout::attempts::AttemptSettings;
use crate::run::metrics::{Metrics, Row, mebibytes, row};
use crate::run::{Ending, RunDir};
use crate::sandbox::Judge;
use crate::trainer::Trainer;
use anyhow::{Context, Result};
use metrics::{mismatch_metrics, policy_metrics, rollout_metrics, time_metrics};
use rewarder::Rewarder;
use rollout::{Cursor, Rollouts, Task, collect, read_tasks};
use std::path::{Path, PathBuf};
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
    let saved = resumed.map(|dir| trainer.restore(&dir).with_context(|| unusable(&dir)));
    let prompt = GtgPrompt::bundled()?;
    let tasks = read_tasks(config, &trainer.model, &prompt)?;
    let start = Cursor::start(&tasks)?;
    let cursor = saved.transpose()?.unwrap_or(start);
    if cursor.problems != start.problems {
        return Err(usage(
            "data.files hold other problems than when this run began: give it those, or begin another",
        ));
    }
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
    // Of the untrained model: logged with the first step, before which there is no run to speak of.
    let mut baseline = None;
    if let Some(validation) = &validation {
        match state.trainer.step {
            0 => baseline = Some(validation.score(&mut state.trainer, judge)?),
            _ => validation.score_step(&mut state.trainer, judge, &mut metrics, total_steps)?,
        }
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
        let row = state.learn(config, rollouts)?;
        let step = state.trainer.step;
        progress.set_message(describe(&row));
        if let Some(score) = baseline.take() {
            metrics.log(0, score)?;
        }
        metrics.log(step, row)?;
        run.forget_replaced()?;
        progress.inc(1);
        let scored = validation.as_ref().map_or(Ok(()), |validation| {
            validation.score_step(&mut state.trainer, judge, &mut metrics, total_steps)
        });
        let skipped = state.trainer.skipped_in_a_row();
        let is_hopeless = skipped >= config.train.max_nonfinite_updates;
        let is_last = step == total_steps;
        // Asked once: who is told that the step is saved finds it saved.
        let is_interrupted = interrupt::requested();
        let is_ending = is_last || is_hopeless || is_interrupted || scored.is_err();
        if is_ending || config.checkpoint.is_due(step) {
            metrics.sync()?;
            save_checkpoint(run, &mut state.trainer, &state.cursor, &config.checkpoint)?;
        }
        match scored {
            Err(e) if !e.is::<Interrupted>() => return Err(e),
            Err(_) => return Err(stopped(step)),
            Ok(()) if is_hopeless => {
                return Err(diverged(skipped, &run.checkpoints().step_dir(step)));
            }
            Ok(()) if is_interrupted && !is_last => return Err(stopped(step)),
            Ok(()) => {}
        }
    }
    progress.finish();
    Ok(run.checkpoints().step_dir(total_steps))
}

/// Why the run stopped; the weights before the skipped updates lie in `kept`.
fn diverged(skipped: u64, kept: &Path) -> anyhow::Error {
    anyhow::Error::new(Ending(format!(
        "the last {skipped} updates had no finite loss and gradient and changed no weight \
         (train.max_nonfinite_updates); the weights before them are in {}. Try a lower optim.lr, or \
         look at the rewards",
        kept.display()
    )))
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
        let journal = run.samples(self.trainer.step + 1);
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
        row.extend(policy_metrics(&config.policy, &updates));
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

const PASS_AT_1: &str = "val/pass_at_1";
/// Label of a third use of the run's seed.
const VALIDATION: u64 = 3;

impl Validation {
    fn read(config: &Config) -> Result<Option<Self>> {
        let Some(validation) = &config.validation else { return Ok(None) };
        let mut problems = Vec::new();
        for file in &validation.files {
            problems.extend(jsonl::read::<Problem>(file)?);
        }
        problems::check(&problems).context("reading validation.files")?;
        problems.truncate(validation.num_problems.unwrap_or(usize::MAX));
        let settings = AttemptSettings {
            num_samples: validation.rollouts,
            temperature: validation.temperature as f32,
            max_new_tokens: config.rollout.max_new_tokens,
            max_prompt_tokens: Some(config.data.max_prompt_tokens),
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

    /// Scores the step that the trainer has made, where that is due and was not done yet.
    fn score_step(
        &self,
        trainer: &mut Trainer,
        judge: &Judge,
        metrics: &mut Metrics,
        total_steps: u64,
    ) -> Result<()> {
        let step = trainer.step;
        if !self.is_due(step, total_steps) || metrics.has(step, PASS_AT_1)? {
            return Ok(());
        }
        metrics.amend(step, self.score(trainer, judge)?)
    }

    fn score(&self, trainer: &mut Trainer, judge: &Judge) -> Result<Row> {
        let started = Instant::now();
        let pass_at_1 =
            gtg::validate(&mut trainer.generator(), judge, &self.problems, &self.settings)?;
        Ok(row([(PASS_AT_1, pass_at_1), ("time/validation_secs", started.elapsed().as_secs_f64())]))
    }
}
