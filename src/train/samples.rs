//! The rollouts of a step on disk: what was sampled, what the judge said, what it was worth.
//!
//! The file is the journal of verdicts, the one input that time can touch: it is written before
//! its verdicts are used, and a step that is run again after a kill takes its verdicts from here.

use crate::base::fs::AtomicFile;
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::eval::attempts::ProblemAttempts;
use crate::sandbox::Verdict;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// One response of a step.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    problem_id: String,
    sample: usize,
    response: String,
    num_tokens: usize,
    verdict: Verdict,
}

/// Writes the step's rollouts; problems and groups correspond by place.
pub fn record(path: &Path, problems: &[&Problem], groups: &[ProblemAttempts]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    for (problem, group) in problems.iter().zip(groups) {
        for (sample, attempt) in group.attempts.iter().enumerate() {
            let row = Row {
                problem_id: problem.problem_id.clone(),
                sample,
                response: attempt.text.clone(),
                num_tokens: attempt.rollout.tokens.len(),
                verdict: attempt.verdict.clone(),
            };
            serde_json::to_writer(&mut file, &row).context("encoding a rollout")?;
            file.write_all(b"\n").with_context(|| format!("writing {}", path.display()))?;
        }
    }
    file.commit()
}

/// Replaces verdicts by those recorded for the same responses, if this step was recorded before.
pub fn replay(path: &Path, problems: &[&Problem], groups: &mut [ProblemAttempts]) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let recorded: HashMap<(String, usize), Row> = jsonl::read::<Row>(path)?
        .into_iter()
        .map(|row| ((row.problem_id.clone(), row.sample), row))
        .collect();
    for (problem, group) in problems.iter().zip(groups) {
        for (sample, attempt) in group.attempts.iter_mut().enumerate() {
            if let Some(row) = recorded.get(&(problem.problem_id.clone(), sample))
                && row.response == attempt.text
            {
                attempt.verdict = row.verdict.clone();
            }
        }
    }
    Ok(())
}
