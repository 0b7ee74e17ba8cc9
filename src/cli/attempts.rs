//! The arguments of every command that has a model attempt problems, and what they prepare.

use super::agent::{AskedArgs, exact};
use super::device::RankArgs;
use crate::agents;
use crate::base::error::{Interrupted, usage};
use crate::base::fs::check_writable;
use crate::base::{hash, interrupt};
use crate::checkpoint::ModelPlace;
use crate::data::problem::Problem;
use crate::data::rows;
use crate::eval::journal::{Identity, Journal};
use crate::rollout::AttemptSettings;
use crate::rollout::attempts::check_fit;
use crate::rollout::candidate::Candidate;
use crate::tasks::{Sampling, Task, TaskKind};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Which problems of a file, in which words.
#[derive(Debug, clap::Args)]
pub struct ProblemArgs {
    /// Problems (JSON Lines)
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Prompt template [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
}

/// How problems are attempted.
#[derive(Debug, clap::Args)]
pub struct AttemptArgs {
    /// Rollouts for each problem [default: 32; 1 for a benchmark]
    #[arg(long, value_name = "N")]
    rollouts: Option<usize>,
    /// Sampling temperature [default: 1; 0 for a benchmark]
    #[arg(long)]
    temperature: Option<f32>,
    /// Longest response, in tokens; with its prompt at most what the model was made for [default: 10240; the
    /// preset's for a benchmark]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sequences that each rank generates at the same time, or calls made at the same time [default: 64, or
    /// what --api-config says]
    #[arg(long, value_name = "N")]
    max_sequences: Option<usize>,
    /// End a response with this token, too (may be given several times)
    #[arg(long, value_name = "ID")]
    stop_id: Vec<u32>,
    #[command(flatten)]
    ranks: RankArgs,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue a run that was stopped; its journal lies beside --out
    #[arg(long, requires = "out")]
    resume: bool,
}

/// Who can attempt a task.
pub struct Prepared {
    pub candidate: Box<dyn Candidate>,
    pub settings: AttemptSettings,
    /// What its answers depend on; not worked out without a result to write.
    pub identity: Option<Identity>,
    /// Where answers are kept until the result is written; none without a result to write.
    pub journal: Option<Journal>,
}

impl ProblemArgs {
    /// The task of this kind that `make` makes of the problems, and of the prompt where one is given.
    pub fn open<T>(
        &self,
        kind: TaskKind,
        make: impl FnOnce(Vec<Problem>, Option<&Path>) -> Result<T>,
    ) -> Result<T> {
        // What is wrong with it is not said of the problems.
        kind.check_prompt(self.prompt.as_deref())?;
        let problems = rows::read(&self.data)?;
        make(problems, self.prompt.as_deref()).with_context(|| self.data.display().to_string())
    }
}

impl AttemptArgs {
    /// Refuses arguments that are not possible, and files that could not be written or are `inputs`, before any
    /// work is done.
    pub fn check(&self, asked: Option<&AskedArgs>, outs: &[&Path], inputs: &[&Path]) -> Result<()> {
        interrupt::install()?;
        self.settings(Sampling::default()).check()?;
        match asked.map(AskedArgs::model).transpose()? {
            None | Some(Some(_)) => self.ranks.check()?,
            Some(None) if !self.stop_id.is_empty() => {
                return Err(usage(
                    "--stop-id is for a model of this machine: an endpoint has no ids",
                ));
            }
            Some(None) => self.ranks.expect_none()?,
        }
        outs.iter().try_for_each(|out| check_writable(out, inputs))
    }

    /// Opens who is asked and the journal of the result `out`, so that whatever is wrong shows before any work is
    /// done.
    pub fn prepare(
        &self,
        asked: &AskedArgs,
        task: &dyn Task,
        out: Option<&Path>,
    ) -> Result<Prepared> {
        let settings = self.settings(task.sampling());
        let model = asked.model()?;
        let candidate = match model {
            Some(model) => self.open_model(model, task, &settings)?,
            None => self.open_api(asked, &settings, out)?,
        };
        let identify = |_| match (model, candidate.answered_by()) {
            // The weights count, too, since two checkpoints of a run differ in nothing else.
            (Some(model), _) => {
                let contents = hash::of_files(&model.files()?)?;
                Identity::of_model((&contents, &self.ranks.device()), task, &settings)
            }
            (None, account) => {
                let account = account.context("an endpoint without an account")?;
                let url = account.endpoint.as_deref().unwrap_or_default();
                Identity::of_model((url, &account.settings_text()), task, &settings)
            }
        };
        let identity = out.map(identify).transpose()?;
        // What is written into a device or a pipe leaves nothing to go on from.
        let kept = out.filter(|out| !out.exists() || out.is_file()).zip(identity.as_ref());
        let journal = kept
            .map(|(out, identity)| Journal::open(Journal::path_for(out), identity, self.resume))
            .transpose()?;
        Ok(Prepared { candidate, settings, identity, journal })
    }

    fn open_model(
        &self,
        model: ModelPlace<'_>,
        task: &dyn Task,
        settings: &AttemptSettings,
    ) -> Result<Box<dyn Candidate>> {
        let mut model = self.ranks.open(model)?;
        let queries = settings.queries(task.num_problems());
        model.generator().warn_of_run_on(&settings.stop_ids);
        check_fit(&model.generator(), task, &queries, settings)?;
        Ok(Box::new(model))
    }

    fn open_api(
        &self,
        asked: &AskedArgs,
        settings: &AttemptSettings,
        out: Option<&Path>,
    ) -> Result<Box<dyn Candidate>> {
        let sampling = agents::Sampling {
            temperature: exact(settings.temperature),
            max_tokens: settings.max_new_tokens as u64,
        };
        Ok(Box::new(asked.open(sampling, self.max_sequences, out)?))
    }

    /// Rollouts for each problem of a task that says nothing of them.
    pub fn rollouts(&self) -> usize {
        self.settings(Sampling::default()).num_samples
    }

    fn settings(&self, default: Sampling) -> AttemptSettings {
        AttemptSettings {
            num_samples: self.rollouts.unwrap_or(default.rollouts),
            temperature: self.temperature.unwrap_or(default.temperature),
            max_new_tokens: self.max_new_tokens.unwrap_or(default.max_new_tokens),
            max_prompt_tokens: None,
            max_sequences: self.max_sequences.unwrap_or(64),
            kv_cache_tokens: None,
            stop_ids: self.stop_id.clone(),
            key: self.seed,
        }
    }
}

impl Prepared {
    /// Tells who interrupted the run how to go on.
    pub fn or_how_to_resume<R>(&self, result: Result<R>) -> Result<R> {
        let Some(journal) = &self.journal else { return result };
        result.map_err(|e| {
            if e.downcast_ref::<Interrupted>().is_none() {
                return e;
            }
            let (finished, path) = (journal.num_finished(), journal.path().display());
            e.context(format!("{finished} problems are kept in {path}; continue with --resume"))
        })
    }

    /// Deletes the journal, once the result is written.
    pub fn forget_journal(self) -> Result<()> {
        self.journal.map_or(Ok(()), Journal::remove)
    }
}
