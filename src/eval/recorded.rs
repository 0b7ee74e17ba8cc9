//! Responses that were made elsewhere, graded without a model.
//!
//! A line is `{"id": "..", "response": ".."}`; a problem with several responses has several lines, in any place of
//! the file. Lines that `--save-responses` wrote are read too (`problem_id`, `num_tokens`, `is_cut`). Problems
//! without a response are left out of the score, and counted.

use super::score::{self, Evaluation};
use crate::base::error::{Interrupted, usage};
use crate::base::hash;
use crate::base::interrupt;
use crate::base::json::text;
use crate::base::progress::Progress;
use crate::data::rows;
use crate::rollout::attempt::{Answer, AttemptCost};
use crate::tasks::{Task, with_opened_thought};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The responses of a file, by problem.
pub struct Recorded {
    responses: Vec<Vec<Line>>,
    /// Whether each continues a thought that its prompt began.
    thought_opened: bool,
    sha256: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "problem_id", deserialize_with = "text")]
    id: String,
    response: String,
    #[serde(default)]
    num_tokens: usize,
    #[serde(default)]
    is_cut: bool,
}

impl Recorded {
    /// Reads the responses to a task's problems. A line that is none, and an id that no problem has, is named.
    pub fn read(path: &Path, task: &dyn Task, thought_opened: bool) -> Result<Self> {
        let num_problems = task.num_problems();
        let places: HashMap<&str, usize> =
            (0..num_problems).map(|problem| (task.about(problem).id, problem)).collect();
        let mut responses: Vec<Vec<Line>> = (0..num_problems).map(|_| Vec::new()).collect();
        for row in rows::numbered::<Line>(path, None)? {
            let (number, line) = row?;
            let &problem = places.get(line.id.as_str()).ok_or_else(|| {
                usage(format!(
                    "{}:{number}: {} has no problem {:?}",
                    path.display(),
                    task.name(),
                    line.id
                ))
            })?;
            responses[problem].push(line);
        }
        if responses.iter().all(Vec::is_empty) {
            return Err(usage(format!("{}: there are no responses", path.display())));
        }
        Ok(Self { responses, thought_opened, sha256: hash::of_files(&[path.to_owned()])? })
    }

    /// Tells this file's contents apart from others'.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Problems without a response.
    pub fn num_unanswered(&self) -> usize {
        self.responses.iter().filter(|responses| responses.is_empty()).count()
    }

    /// Grades and scores all responses.
    pub fn evaluate(&self, task: &dyn Task) -> Result<Evaluation> {
        let todo: Vec<(usize, &Line)> = self
            .responses
            .iter()
            .enumerate()
            .flat_map(|(problem, lines)| lines.iter().map(move |line| (problem, line)))
            .collect();
        let progress = Progress::new(task.name(), todo.len() as u64, "responses");
        let started = Instant::now();
        let graded = self.grade_all(task, &todo, &progress)?;
        progress.finish();
        let mut answers: Vec<Vec<Answer>> = vec![Vec::new(); self.responses.len()];
        let mut judging_cpu = Duration::ZERO;
        for ((problem, _), answer) in todo.into_iter().zip(graded) {
            judging_cpu += Duration::from_secs_f64(answer.grade.verdict.cpu_ms.max(0.0) / 1e3);
            answers[problem].push(answer);
        }
        let cost =
            AttemptCost { grading: started.elapsed(), judging_cpu, ..AttemptCost::default() };
        Ok(Evaluation { score: score::score(task, &answers, &cost)?, answers })
    }

    /// The answers in the order of `todo`, graded by as many threads as the task can use.
    fn grade_all(
        &self,
        task: &dyn Task,
        todo: &[(usize, &Line)],
        progress: &Progress,
    ) -> Result<Vec<Answer>> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Answer)>> {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((problem, line)) = todo.get(at) else { return Ok(done) };
                let answer = self.grade(task, *problem, line)?;
                if interrupt::requested() {
                    return Err(Interrupted.into());
                }
                progress.inc(1);
                done.push((at, answer));
            }
        };
        let mut done: Vec<(usize, Answer)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..task.num_graders()).map(|_| scope.spawn(work)).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?
        .concat();
        done.sort_unstable_by_key(|(at, _)| *at);
        Ok(done.into_iter().map(|(_, answer)| answer).collect())
    }

    fn grade(&self, task: &dyn Task, problem: usize, line: &Line) -> Result<Answer> {
        let Line { response, num_tokens, is_cut, .. } = line;
        let text = with_opened_thought(response, self.thought_opened);
        let grade = task
            .grade(problem, &text, &interrupt::requested)
            .with_context(|| format!("grading a response to {}", line.id))?;
        Ok(Answer { text: response.clone(), num_tokens: *num_tokens, is_cut: *is_cut, grade })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tasks::NextNumber;
    use serde_json::json;

    fn task() -> NextNumber {
        let problem = |id: &str| {
            let terms = ["2", "4", "6", "8"];
            serde_json::from_value(json!({"problem_id": id, "tests": [], "terms": terms})).unwrap()
        };
        NextNumber::open(vec![problem("a"), problem("b"), problem("c")], None).unwrap()
    }

    fn read(lines: &str) -> Result<Recorded> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        std::fs::write(&path, lines).unwrap();
        Recorded::read(&path, &task(), false)
    }

    #[test]
    fn responses_to_a_problem_may_lie_anywhere_and_missing_ones_are_no_wrong_answers() {
        let lines = concat!(
            "{\"id\": \"a\", \"response\": \"8\"}\n",
            "{\"id\": \"c\", \"response\": \"7\", \"is_cut\": true}\n",
            "{\"problem_id\": \"a\", \"response\": \"9\", \"sample\": 1}\n",
        );
        let recorded = read(lines).unwrap();
        assert_eq!(recorded.num_unanswered(), 1);
        let Evaluation { score, answers } = recorded.evaluate(&task()).unwrap();
        let passed = |problem: usize| -> Vec<bool> {
            answers[problem].iter().map(|answer| answer.grade.passed()).collect()
        };
        assert_eq!((passed(0), passed(1), passed(2)), (vec![true, false], vec![], vec![false]));
        assert_eq!((score.num_problems, score.num_rollouts), (2, 2));
        assert_eq!((score.pass_at_1, score.cut), (0.25, 1.0 / 3.0));
        assert_eq!(score.mean_response_tokens, None, "nobody counted them");
    }

    #[test]
    fn a_line_that_answers_nothing_is_named() {
        let refusal = |lines: &str| {
            let error = read(lines).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        };
        let unknown =
            refusal("{\"id\": \"a\", \"response\": \"8\"}\n{\"id\": \"z\", \"response\": \"\"}\n");
        assert!(unknown.ends_with("r.jsonl:2: next-number has no problem \"z\""), "{unknown}");
        assert!(refusal("{\"id\": \"a\"}\n").contains("r.jsonl:1:"));
        assert!(refusal("\n").contains("no responses"));
    }
}
