//! The rollouts of a step on disk: what was sampled, what the judge found, and what it was worth.
//!
//! The file is the journal of verdicts, the one input that depends on time. It is written before its
//! verdicts are used, and a step that is run again after a kill takes its verdicts from it.

use crate::base::fs::AtomicFile;
use crate::data::jsonl;
use crate::rewards::Reward;
use crate::rollout::attempt::{Attempt, ProblemAttempts};
use crate::sandbox::Verdict;
use crate::tasks::FormatError;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// One response of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    pub problem_id: String,
    /// The number of the response among those to its problem, from 0.
    pub sample: usize,
    pub response: String,
    pub num_tokens: usize,
    /// The tokens that were sampled; a stop token counts. It is empty in runs of versions that did not
    /// record it.
    #[serde(default)]
    pub token_ids: Vec<u32>,
    /// The judge's verdict on its program.
    pub verdict: Verdict,
    /// What it was worth; `None` where the judge failed.
    #[serde(default)]
    pub reward: Option<Reward>,
    /// What breaks the format that the prompt asks for, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_error: Option<FormatError>,
}

/// Writes the rollouts of a step: for each problem its name, its attempts and their rewards.
pub fn record<'a>(
    path: &Path,
    groups: impl IntoIterator<Item = (&'a str, &'a ProblemAttempts, &'a [Option<Reward>])>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    for (problem_id, group, rewards) in groups {
        for (sample, (attempt, reward)) in group.attempts.iter().zip(rewards).enumerate() {
            let row = Sample {
                problem_id: problem_id.to_owned(),
                sample,
                response: attempt.text.clone(),
                num_tokens: attempt.rollout.tokens.len(),
                token_ids: attempt.rollout.tokens.clone(),
                verdict: attempt.grade.verdict.clone(),
                reward: reward.clone(),
                format_error: attempt.grade.format_error,
            };
            serde_json::to_writer(&mut file, &row).context("encoding a rollout")?;
            file.write_all(b"\n").with_context(|| format!("writing {}", path.display()))?;
        }
    }
    file.commit()
}

/// What was recorded of a step that was begun before. It is empty for a step that was not.
pub struct Recorded(HashMap<(String, usize), Sample>);

/// What was recorded of some groups.
pub struct Replayed {
    /// What each response was worth, as far as it is known.
    pub rewards: Vec<Vec<Option<Reward>>>,
    /// Whether every response was recorded.
    pub is_whole: bool,
}

impl Recorded {
    /// Reads what [`record`] wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let rows = if path.exists() { jsonl::read::<Sample>(path)? } else { Vec::new() };
        let keyed = rows.into_iter().map(|row| ((row.problem_id.clone(), row.sample), row));
        Ok(Self(keyed.collect()))
    }

    /// Replaces verdicts by those that were recorded for the same responses to the problems of these names.
    pub fn replay(&self, problem_ids: &[&str], groups: &mut [ProblemAttempts]) -> Replayed {
        let mut is_whole = true;
        let mut replay_one = |id: &str, (sample, attempt): (usize, &mut Attempt)| {
            let row = self.0.get(&(id.to_owned(), sample));
            let Some(row) = row.filter(|row| row.response == attempt.text) else {
                is_whole = false;
                return None;
            };
            attempt.grade.verdict = row.verdict.clone();
            row.reward.clone()
        };
        let mut rewards = Vec::new();
        for (id, group) in problem_ids.iter().zip(groups) {
            let attempts = group.attempts.iter_mut().enumerate();
            rewards.push(attempts.map(|attempt| replay_one(id, attempt)).collect());
        }
        Replayed { rewards, is_whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::test_support::group;
    use crate::sandbox::{Reason, VerdictKind};

    #[test]
    fn a_step_run_again_has_the_verdicts_of_the_first_time() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("samples/step-000003.jsonl");
        let problems = ["a", "b"];
        let slow = VerdictKind::Fail(Reason::CpuTime);
        let first = [group(&[("x", slow), ("y", VerdictKind::Pass)]), group(&[("x", slow)])];
        let rewards: Vec<_> = first.iter().map(|group| vec![None; group.attempts.len()]).collect();
        let groups = problems.into_iter().zip(&first).zip(&rewards);
        record(&journal, groups.map(|((problem, group), r)| (problem, group, &r[..]))).unwrap();

        let pass = VerdictKind::Pass;
        let mut again = vec![group(&[("x", pass), ("other", slow)]), group(&[("x", pass)])];
        let replayed = Recorded::read(&journal).unwrap().replay(&problems, &mut again);
        assert!(!replayed.is_whole);
        let verdict = |group: usize, sample: usize| &again[group].attempts[sample].grade.verdict;
        assert_eq!(verdict(0, 0), &first[0].attempts[0].grade.verdict);
        assert_eq!(verdict(0, 1).kind, slow, "another response keeps its own");
        assert_eq!(verdict(1, 0).kind, slow);
    }

    #[test]
    fn a_step_run_for_the_first_time_keeps_its_verdicts() {
        let mut groups = [group(&[("x", VerdictKind::Pass)])];
        let recorded = Recorded::read(Path::new("no/such.jsonl")).unwrap();
        assert!(!recorded.replay(&["a"], &mut groups).is_whole);
        assert_eq!(groups[0].attempts[0].grade.verdict.kind, VerdictKind::Pass);
    }
}
