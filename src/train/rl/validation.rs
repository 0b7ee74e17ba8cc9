//! Scores of held-out problems during a run of reinforcement.
//!
//! The untrained model is scored too, as step 0. A score belongs to the row of its step. A step whose score
//! was not yet known when the run stopped is scored when the run is resumed.

use super::config::Config;
use crate::base::rng;
use crate::eval::score;
use crate::rollout::AttemptSettings;
use crate::run::metrics::{Row, row};
use crate::sandbox::Judge;
use crate::tasks::Task;
use crate::train::session::Session;
use crate::trainer::Trainer;
use anyhow::{Context, Result};
use std::time::Instant;

/// The problems, and how often and how they are asked.
pub(crate) struct Validation<'j> {
    task: Box<dyn Task + 'j>,
    every: u64,
    settings: AttemptSettings,
}

const PASS_AT_1: &str = "val/pass_at_1";
/// Labels one use of the run's seed.
const VALIDATION: u64 = 3;

impl<'j> Validation<'j> {
    /// Reads the problems of the table `[validation]`, if there is one.
    pub(crate) fn read(config: &Config, judge: &'j Judge) -> Result<Option<Self>> {
        let Some(validation) = &config.validation else { return Ok(None) };
        let task = config
            .open_task(&validation.files, validation.num_problems, judge)
            .context("reading validation.files")?;
        // The draws are the same every time, so the scores of two steps differ by the weights alone.
        let key = rng::key(config.seed, &[VALIDATION]);
        let settings = config.attempts(validation.rollouts, validation.temperature, key);
        Ok(Some(Self { task, every: validation.every, settings }))
    }

    /// Scores the model from which the session starts, unless it was scored before.
    pub(crate) fn begin(&self, session: &mut Session<'_>) -> Result<()> {
        if session.trainer.step > 0 {
            return self.score_step(session);
        }
        let baseline = self.score(&mut session.trainer)?;
        session.keep_baseline(baseline);
        Ok(())
    }

    /// Scores the step that the trainer has made, if that is due and was not done before.
    pub(crate) fn score_step(&self, session: &mut Session<'_>) -> Result<()> {
        let step = session.trainer.step;
        let is_due = step.is_multiple_of(self.every) || !session.has_next_step();
        if !is_due || session.metrics.has(step, PASS_AT_1)? {
            return Ok(());
        }
        let scores = self.score(&mut session.trainer)?;
        session.metrics.amend(step, scores)
    }

    fn score(&self, trainer: &mut Trainer) -> Result<Row> {
        let started = Instant::now();
        let pass_at_1 =
            score::validate(&mut trainer.generator(), self.task.as_ref(), &self.settings)?;
        Ok(row([(PASS_AT_1, pass_at_1), ("time/validation_secs", started.elapsed().as_secs_f64())]))
    }
}
