//! A session holds everything that a loop needs around its steps, from the first step or the last
//! checkpoint to the end.
//!
//! A loop finds its [`Start`], makes a trainer of it, opens a [`Session`], and then calls [`Session::log`]
//! and [`Session::end_step`] for each step. The metrics of a resumed run have neither gaps nor repeats. A
//! run that stops, for whatever reason, says which step is saved and how to continue. What `--overwrite`
//! replaces is deleted only when the new run has ended a step.

use crate::base::error::Interrupted;
use crate::base::{interrupt, progress::Progress};
use crate::checkpoint::{LanguageModel, ModelSource};
use crate::optim::{AdamWConfig, Schedule};
use crate::run::metrics::{self, Metrics, Row};
use crate::run::{CheckpointConfig, Ending, RunDir};
use crate::trainer::{Execution, Trainer};
use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// What a run starts from: its last checkpoint, or else the model that its configuration names.
pub(crate) struct Start {
    pub(crate) model: LanguageModel,
    last: Option<Last>,
}

/// The last checkpoint of a run.
struct Last {
    dir: PathBuf,
    is_only: bool,
}

impl Start {
    /// Opens the model of the run's last checkpoint, or else that of `source`.
    pub(crate) fn find(run: &RunDir, source: &ModelSource, seed: u64) -> Result<Self> {
        let mut checkpoints = run.checkpoints().list()?;
        if let Some((_, dir)) = checkpoints.pop() {
            let last = Last { dir, is_only: checkpoints.is_empty() };
            let model = LanguageModel::open(&last.dir).with_context(|| last.unusable())?;
            return Ok(Self { model, last: Some(last) });
        }
        if run.path().join(metrics::FILE).exists() {
            tracing::warn!("there is no checkpoint to go on from: the run starts at step 0");
        }
        Ok(Self { model: source.open(seed)?, last: None })
    }

    /// Makes the trainer. Returns with it what the loop saved in the checkpoint, if there is one.
    pub(crate) fn trainer<S: DeserializeOwned>(
        self,
        optim: AdamWConfig,
        schedule: Schedule,
        total_steps: u64,
        execution: Execution,
    ) -> Result<(Trainer, Option<S>)> {
        let mut trainer = Trainer::new(self.model, optim, schedule, total_steps, execution)?;
        let restore = |last: Last| trainer.restore(&last.dir).with_context(|| last.unusable());
        let saved = self.last.map(restore).transpose()?;
        Ok((trainer, saved))
    }
}

/// What a session needs to know of its run.
pub(crate) struct Terms<'a> {
    /// The name of the run in its progress.
    pub(crate) label: &'a str,
    pub(crate) total_steps: u64,
    pub(crate) checkpoint: &'a CheckpointConfig,
    /// The run ends after this many updates in a row without a finite loss and gradient.
    pub(crate) max_skipped: u64,
    /// The setting that gives that number.
    pub(crate) max_skipped_key: &'static str,
}

/// A run in progress.
pub(crate) struct Session<'a> {
    pub(crate) trainer: Trainer,
    pub(crate) metrics: Metrics,
    pub(crate) terms: Terms<'a>,
    run: &'a RunDir,
    progress: Progress,
    baseline: Option<Row>,
}

impl<'a> Session<'a> {
    /// Opens the metrics, and drops their rows of steps after the trainer's.
    pub(crate) fn open(run: &'a RunDir, trainer: Trainer, terms: Terms<'a>) -> Result<Self> {
        let mut metrics = Metrics::open(run.path())?;
        metrics.truncate_after(trainer.step)?;
        let progress = Progress::new(terms.label, terms.total_steps, "steps");
        progress.skip(trainer.step);
        run.begin_steps();
        Ok(Self { trainer, metrics, terms, run, progress, baseline: None })
    }

    pub(crate) fn has_next_step(&self) -> bool {
        self.trainer.step < self.terms.total_steps
    }

    /// Keeps what was measured before the first step. It is logged with that step, since a run counts as
    /// begun only then.
    pub(crate) fn keep_baseline(&mut self, row: Row) {
        self.baseline = Some(row);
    }

    /// Logs the step that the trainer has made. The progress shows `message`.
    pub(crate) fn log(&mut self, row: Row, message: String) -> Result<()> {
        if let Some(baseline) = self.baseline.take() {
            self.metrics.log(0, baseline)?;
        }
        self.metrics.log(self.trainer.step, row)?;
        self.run.forget_replaced()?;
        self.progress.set_message(message);
        self.progress.inc(1);
        Ok(())
    }

    /// Ends the step. It saves the step with the loop's `state` where a checkpoint is due. It ends the run
    /// with an error if the user asked for it, or if too many updates in a row were skipped. `trouble` says
    /// what was wrong with the step, if its update was skipped.
    pub(crate) fn end_step<S: Serialize>(
        &mut self,
        state: &S,
        trouble: Option<String>,
    ) -> Result<()> {
        let step = self.trainer.step;
        let is_last = !self.has_next_step();
        let skipped = self.trainer.skipped_in_a_row();
        let has_learnt_nothing = is_last && skipped > 0 && !self.trainer.has_learnt();
        let is_hopeless = skipped >= self.terms.max_skipped || has_learnt_nothing;
        // It is asked once: if the user is told that the step is saved, then it was saved.
        let is_interrupted = interrupt::requested();
        if is_last || is_hopeless || is_interrupted || self.terms.checkpoint.is_due(step) {
            self.save(state)?;
        }
        if let Some(trouble) = &trouble {
            tracing::warn!("step {step}: {trouble}");
        }
        if is_hopeless {
            return Err(self.diverged(&trouble.unwrap_or_default()));
        }
        if is_last && skipped > 0 {
            tracing::warn!(
                "the run ends with {skipped} updates in a row that had no finite loss and gradient and \
                 changed no weight"
            );
        }
        if is_interrupted && !is_last {
            return Err(stopped(step));
        }
        Ok(())
    }

    /// Returns the error that ends the run because of `error`, after saving weights that would otherwise be
    /// lost.
    pub(crate) fn break_off<S: Serialize>(
        &mut self,
        state: &S,
        error: anyhow::Error,
    ) -> anyhow::Error {
        let step = self.trainer.step;
        let is_saved = self.run.checkpoints().step_dir(step).exists();
        if !is_saved
            && (step > 0 || error.is::<Interrupted>())
            && let Err(unsaved) = self.save(state)
        {
            return unsaved;
        }
        if error.is::<Interrupted>() { stopped(step) } else { error }
    }

    /// Ends the run and returns the directory of its model.
    pub(crate) fn finish(self) -> PathBuf {
        self.progress.finish();
        self.run.checkpoints().step_dir(self.terms.total_steps)
    }

    /// Writes the checkpoint of the trainer's step, and deletes those that are not kept.
    fn save<S: Serialize>(&mut self, state: &S) -> Result<()> {
        self.metrics.sync()?;
        let checkpoints = self.run.checkpoints();
        self.trainer.save(&checkpoints.step_dir(self.trainer.step), state)?;
        match self.terms.checkpoint.keep_last {
            Some(keep_last) => checkpoints.retain(keep_last, self.terms.checkpoint.keep_every),
            None => Ok(()),
        }
    }

    /// Returns the error of a run that was given up; its last step is saved.
    fn diverged(&self, trouble: &str) -> anyhow::Error {
        let Terms { max_skipped, max_skipped_key: key, .. } = self.terms;
        anyhow::Error::new(Ending(format!(
            "{} updates in a row had no finite loss and gradient and changed no weight ({key} = \
             {max_skipped}); the weights before them are in {}. Try a lower optim.lr, or look at the data. \
             The last step: {trouble}",
            self.trainer.skipped_in_a_row(),
            self.run.checkpoints().step_dir(self.trainer.step).display(),
        )))
    }
}

/// Returns the error of a run that the user stopped; it says how to continue.
fn stopped(step: u64) -> anyhow::Error {
    anyhow::Error::new(Interrupted).context(Ending::saved_at(step))
}

impl Last {
    /// Returns what to do if a run cannot continue from it.
    fn unusable(&self) -> Ending {
        let dir = self.dir.display();
        Ending(match self.is_only {
            true => {
                format!("cannot go on from {dir}, the only checkpoint: --overwrite begins again")
            }
            false => format!("cannot go on from {dir}; without it, --resume takes the one before"),
        })
    }
}
