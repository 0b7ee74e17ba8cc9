//! Answers: what of an attempt scores rest on, taken from a journal where an earlier run left them.

use super::journal::{Journal, Place};
use crate::base::progress::Progress;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::engine::generator::Generator;
use crate::rewards::{ParsedResponse, parse};
use crate::rollout::attempts::{
    Attempt, AttemptCost, AttemptSettings, ProblemAttempts, Task, attempt_each,
};
use crate::sandbox::{Judge, VerdictKind};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// One response and the verdict on its program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The response's text, without special tokens.
    pub text: String,
    /// Its length.
    pub num_tokens: usize,
    /// What the judge said.
    #[serde(flatten)]
    pub verdict: VerdictKind,
}

impl Answer {
    /// Whether the judge found anything out.
    pub fn is_judged(&self) -> bool {
        self.verdict != VerdictKind::Infra
    }

    /// Whether the format is kept and the program passes every test.
    pub fn passed(&self) -> bool {
        self.verdict == VerdictKind::Pass && self.parsed().format_ok()
    }

    /// The response in parts.
    pub fn parsed(&self) -> ParsedResponse {
        parse(&self.text)
    }
}

impl From<Attempt> for Answer {
    fn from(attempt: Attempt) -> Self {
        Self {
            num_tokens: attempt.rollout.tokens.len(),
            verdict: attempt.verdict.kind,
            text: attempt.text,
        }
    }
}

/// Who answers and who judges.
pub struct Exam<'a, 'g> {
    /// The model.
    pub generator: &'a mut Generator<'g>,
    /// The judge of its programs.
    pub judge: &'a Judge,
    /// How problems are shown.
    pub prompt: &'a GtgPrompt,
    /// How they are attempted.
    pub settings: &'a AttemptSettings,
}

/// Answers to each task, in order, from `journal` or else sampled and written there. `tasks` are
/// those of the `round`-th time of asking, each with its problem's place. Progress is counted in
/// responses.
pub fn collect(
    exam: Exam<'_, '_>,
    round: usize,
    tasks: &[(usize, Task<'_>)],
    progress: &Progress,
    mut journal: Option<&mut Journal>,
) -> Result<(Vec<Vec<Answer>>, AttemptCost)> {
    let mut answers: Vec<Option<Vec<Answer>>> = tasks
        .iter()
        .map(|&(problem, _)| journal.as_mut()?.take(Place { round, problem }))
        .collect();
    let todo: Vec<usize> = (0..tasks.len()).filter(|&i| answers[i].is_none()).collect();
    progress.skip(answers.iter().flatten().map(Vec::len).sum::<usize>() as u64);
    let left: Vec<Task<'_>> = todo.iter().map(|&i| tasks[i].1).collect();
    let Exam { generator, judge, prompt, settings } = exam;
    let mut on_done = |task: usize, group: ProblemAttempts| {
        let index = todo[task];
        let (problem, Task { problem: Problem { problem_id, .. }, .. }) = tasks[index];
        let group: Vec<Answer> = group.attempts.into_iter().map(Answer::from).collect();
        if let Some(journal) = &mut journal {
            journal.append(Place { round, problem }, problem_id, &group)?;
        }
        answers[index] = Some(group);
        Ok(())
    };
    let cost = if left.is_empty() {
        AttemptCost::default()
    } else {
        attempt_each(generator, judge, prompt, &left, settings, progress, &mut on_done)?
    };
    tracing::debug!(
        "sampled {} tokens in {:.1} s ({} preemptions); judging took {:.1} s more, {:.1} s of CPU in all",
        cost.engine.generated_tokens,
        cost.generation.as_secs_f64(),
        cost.engine.preemptions,
        cost.judging.as_secs_f64(),
        cost.judging_cpu.as_secs_f64()
    );
    let answers = answers.into_iter().map(|group| group.expect("every task was attempted"));
    Ok((answers.collect(), cost))
}
