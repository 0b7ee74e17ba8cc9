//! The arguments of every command that has a model attempt problems, and what they prepare.

use super::device::{Candidate, RankArgs};
use super::judge::JudgeArgs;
use crate::base::error::Interrupted;
use crate::base::fs::check_writable;
use crate::base::interrupt;
use crate::checkpoint::hub::{self, Needs};
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::eval::journal::{Identity, Journal};
use crate::rollout::attempts::{AttemptSettings, Task, check_fit};
use crate::sandbox::Judge;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Which model, which problems, how they are attempted and judged.
#[derive(Debug, clap::Args)]
pub struct AttemptArgs {
    /// A model directory in Hugging Face layout, or the name of a model on the Hub
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Problems (JSON Lines)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Rollouts for each problem
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub rollouts: usize,
    /// Sampling temperature
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Longest response, in tokens; with its prompt at most what the model was made for
    #[arg(long, value_name = "N", default_value_t = 10_240)]
    max_new_tokens: usize,
    /// Sequences that each rank generates at the same time
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_sequences: usize,
    #[command(flatten)]
    ranks: RankArgs,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue a run that was stopped; its journal lies beside --out
    #[arg(long, requires = "out")]
    resume: bool,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Everything that attempts need, checked.
pub struct Prepared {
    /// The problems.
    pub problems: Vec<Problem>,
    /// The model, and where it generates.
    pub candidate: Candidate,
    /// The judge of its programs.
    pub judge: Judge,
    /// How problems are attempted.
    pub settings: AttemptSettings,
    /// Where answers are kept until the result is written; none without a result to write.
    pub journal: Option<Journal>,
}

impl AttemptArgs {
    /// Reads and checks everything, so that whatever is wrong shows before any work is done.
    pub fn prepare(
        &self,
        out: Option<&Path>,
        check: fn(&[Problem]) -> Result<()>,
    ) -> Result<Prepared> {
        interrupt::install()?;
        let settings = self.settings();
        settings.check()?;
        self.ranks.check()?;
        out.map_or(Ok(()), |out| check_writable(out, &[&self.data]))?;
        let problems: Vec<Problem> = jsonl::read(&self.data)?;
        check(&problems).map_err(|e| e.context(self.data.display().to_string()))?;
        let dir = hub::resolve(&self.model, Needs::Model)?;
        let mut candidate = self.ranks.open(&dir)?;
        let prompt = GtgPrompt::bundled()?;
        let tasks: Vec<Task<'_>> =
            problems.iter().enumerate().map(|(place, p)| settings.task(place, p)).collect();
        let generator = candidate.generator();
        check_fit(&generator, &prompt, &tasks, &settings)?;
        let options = self.judge.options();
        let judge = Judge::start(options.clone())?;
        // What is written into a device or a pipe leaves nothing to go on from.
        let journal = out
            .filter(|out| !out.exists() || out.is_file())
            .map(|out| {
                let asked = (&*problems, &prompt, &settings);
                let identity = Identity::new((&dir, &self.ranks.device()), asked, &options)?;
                Journal::open(Journal::path_for(out), &identity, self.resume)
            })
            .transpose()?;
        Ok(Prepared { problems, candidate, judge, settings, journal })
    }

    fn settings(&self) -> AttemptSettings {
        AttemptSettings {
            num_samples: self.rollouts,
            temperature: self.temperature,
            max_new_tokens: self.max_new_tokens,
            max_prompt_tokens: None,
            max_sequences: self.max_sequences,
            kv_cache_tokens: None,
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
