//! What every score takes and gives: a model or its responses in, a table and files out.

use super::text::score_text;
use crate::base::error::usage;
use crate::base::fs::write_json;
use crate::cli::agent::{AskedArgs, answered_by};
use crate::cli::attempts::AttemptArgs;
use crate::cli::print;
use crate::eval::journal::{Identity, Journal};
use crate::eval::recorded::Recorded;
use crate::eval::responses;
use crate::eval::score::{self, Evaluation, Score};
use crate::tasks::Task;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Who is scored, and what the score is written into.
#[derive(Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    asked: AskedArgs,
    /// Score these responses instead of a model's: id and response (JSON Lines)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "api", "api_config", "resume"])]
    responses: Option<PathBuf>,
    /// The prompts of --responses ended with <think>: a response without </think> has no answer
    #[arg(long, requires = "responses")]
    thought_opened: bool,
    #[command(flatten)]
    attempts: AttemptArgs,
    /// Write the whole result here (JSON)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write every response with its grade here (JSON Lines)
    #[arg(long, value_name = "FILE")]
    save_responses: Option<PathBuf>,
}

/// A score, and everything that decided it.
#[derive(Serialize)]
struct Outcome<'a> {
    made_with: BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    score: &'a Score,
}

impl ScoreArgs {
    /// Refuses arguments that are not possible before any work is done. `data` is what is asked.
    pub(crate) fn check(&self, data: &Path) -> Result<()> {
        let mut inputs = vec![data];
        inputs.extend(self.responses.as_deref());
        let asked = Some(&self.asked).filter(|_| self.responses.is_none());
        self.attempts.check(asked, &self.outs()?, &inputs)
    }

    /// Scores on a task, whatever it is, prints a table, and writes the files.
    pub(crate) fn run(&self, task: &dyn Task) -> Result<()> {
        match &self.responses {
            Some(responses) => self.score_responses(task, responses),
            None => self.score_model(task),
        }
    }

    fn score_model(&self, task: &dyn Task) -> Result<()> {
        let mut prepared = self.attempts.prepare(&self.asked, task, self.out.as_deref())?;
        let evaluation = score::evaluate(
            prepared.candidate.as_mut(),
            task,
            &prepared.settings,
            task.name(),
            prepared.journal.as_mut(),
        );
        let evaluation = prepared.or_how_to_resume(evaluation)?;
        self.write(task, prepared.identity.as_ref(), &evaluation)?;
        prepared.forget_journal()?;
        let answered_by = answered_by(evaluation.score.answered_by.as_ref());
        print(score_text(task, &evaluation.score) + &answered_by)
    }

    fn score_responses(&self, task: &dyn Task, path: &Path) -> Result<()> {
        let recorded = Recorded::read(path, task, self.thought_opened)?;
        if recorded.num_unanswered() > 0 {
            tracing::warn!(
                "{} of {} problems have no response in {}: they are left out of the score",
                recorded.num_unanswered(),
                task.num_problems(),
                path.display()
            );
        }
        let evaluation = recorded.evaluate(task)?;
        let identity = Identity::of_responses(recorded.sha256(), task)?;
        self.write(task, Some(&identity), &evaluation)?;
        print(score_text(task, &evaluation.score))
    }

    fn write(
        &self,
        task: &dyn Task,
        identity: Option<&Identity>,
        Evaluation { score, answers }: &Evaluation,
    ) -> Result<()> {
        if let Some(path) = &self.save_responses {
            responses::write(path, task, answers)?;
        }
        if let (Some(path), Some(identity)) = (&self.out, identity) {
            write_json(path, &Outcome { made_with: identity.to_map(), score })?;
        }
        Ok(())
    }

    /// The files that will be written, which must be different ones.
    fn outs(&self) -> Result<Vec<&Path>> {
        if let (Some(out), Some(responses)) = (&self.out, &self.save_responses) {
            let absolute = |path: &Path| std::path::absolute(path).ok();
            for (taken, what) in [(out.clone(), "result"), (Journal::path_for(out), "journal")] {
                if absolute(&taken) == absolute(responses) {
                    return Err(usage(format!(
                        "--save-responses is {}, where the {what} of --out goes: name another file",
                        responses.display()
                    )));
                }
            }
        }
        Ok(self.out.iter().chain(&self.save_responses).map(PathBuf::as_path).collect())
    }
}
