//! Held-out problems that a run of reinforcement scores on the way.
//!
//! The untrained model is scored too, as step 0. A score belongs to the row of its step; a step that was
//! stopped before its score was known is scored when the run goes on.

use super::config::Config;
use crate::base::rng;
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::eval::gtg;
use crate::eval::problems;
use crate::rollout::attempts::AttemptSettings;
use crate::run::metrics::{Row, row};
use crate::sandbox::Judge;
use crate::train::session::Session;
use crate::trainer::Trainer;
use anyhow::{Context, Result};
use std::time::Instant;

/// The problems, and how often and how they are asked.
pub(crate) struct Validation {
    problems: Vec<Problem>,
    every: u64,
    settings: AttemptSettings,
}

const PASS_AT_1: &str = "val/pass_at_1";
/// Label of a third use of the run's seed.
const VALIDATION: u64 = 3;

impl Validation {
    /// Reads the problems of `[validation]`, if there is that table.
    pub(crate) fn read(config: &Config) -> Result<Option<Self>> {
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

    /// Scores the model that the session starts from, unless that was done before.
    pub(crate) fn begin(&self, session: &mut Session<'_>, judge: &Judge) -> Result<()> {
        if session.trainer.step > 0 {
            return self.score_step(session, judge);
        }
        let baseline = self.score(&mut session.trainer, judge)?;
        session.keep_baseline(baseline);
        Ok(())
    }

    /// Scores the step that the trainer has made, where that is due and was not done before.
    pub(crate) fn score_step(&self, session: &mut Session<'_>, judge: &Judge) -> Result<()> {
        let step = session.trainer.step;
        let is_due = step.is_multiple_of(self.every) || !session.has_next_step();
        if !is_due || session.metrics.has(step, PASS_AT_1)? {
            return Ok(());
        }
        let scores = self.score(&mut session.trainer, judge)?;
        session.metrics.amend(step, scores)
    }

    fn score(&self, trainer: &mut Trainer, judge: &Judge) -> Result<Row> {
        let started = Instant::now();
        let pass_at_1 =
            gtg::validate(&mut trainer.generator(), judge, &self.problems, &self.settings)?;
        Ok(row([(PASS_AT_1, pass_at_1), ("time/validation_secs", started.elapsed().as_secs_f64())]))
    }
}
