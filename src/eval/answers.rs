//! The answers that a score rests on: sampled and graded, or taken from the journal of an earlier run.

use super::journal::{Journal, Place};
use crate::base::progress::Progress;
use crate::rollout::AttemptSettings;
use crate::rollout::attempt::{Answer, AttemptCost, Query};
use crate::rollout::candidate::Candidate;
use crate::tasks::Task;
use anyhow::Result;

/// Who is asked what, and how.
pub struct Exam<'a> {
    pub candidate: &'a mut dyn Candidate,
    pub task: &'a dyn Task,
    pub settings: &'a AttemptSettings,
}

/// The answers to each query, in order, from `journal` or else sampled and written there. `queries` are those
/// of the `round`-th time of asking, each of another problem. Progress is counted in responses.
pub fn collect(
    exam: Exam<'_>,
    round: usize,
    queries: &[Query],
    progress: &Progress,
    mut journal: Option<&mut Journal>,
) -> Result<(Vec<Vec<Answer>>, AttemptCost)> {
    let place = |query: &Query| Place { round, problem: query.problem };
    let mut answers: Vec<Option<Vec<Answer>>> =
        queries.iter().map(|query| journal.as_mut()?.take(place(query))).collect();
    let todo: Vec<usize> = (0..queries.len()).filter(|&i| answers[i].is_none()).collect();
    progress.skip(answers.iter().flatten().map(Vec::len).sum::<usize>() as u64);
    let left: Vec<Query> = todo.iter().map(|&i| queries[i]).collect();
    let Exam { candidate, task, settings } = exam;
    let mut on_done = |query: usize, group: Vec<Answer>| {
        let index = todo[query];
        let query = &queries[index];
        if let Some(journal) = &mut journal {
            journal.append(place(query), task.about(query.problem).id, &group)?;
        }
        answers[index] = Some(group);
        Ok(())
    };
    let cost = if left.is_empty() {
        AttemptCost::default()
    } else {
        candidate.answer_each(task, &left, settings, progress, &mut on_done)?
    };
    tracing::debug!(
        "sampled {} tokens in {:.1} s ({} preemptions); grading took {:.1} s more, {:.1} s of CPU in all",
        cost.engine.generated_tokens,
        cost.generation.as_secs_f64(),
        cost.engine.preemptions,
        cost.grading.as_secs_f64(),
        cost.judging_cpu.as_secs_f64()
    );
    let answers = answers.into_iter().map(|group| group.expect("every query was attempted"));
    Ok((answers.collect(), cost))
}
