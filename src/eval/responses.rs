//! The responses of an evaluation as a file for people and programs to read: a line each, with its grade.

use crate::base::fs::AtomicFile;
use crate::rollout::attempt::Answer;
use crate::tasks::{Grade, Task};
use anyhow::{Context, Result};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// A response, in the words of a reinforcement run's samples.
#[derive(Serialize)]
struct Line<'a> {
    problem_id: &'a str,
    sample: usize,
    passed: bool,
    /// Why it did not pass, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    response: &'a str,
    num_tokens: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_cut: bool,
    #[serde(flatten)]
    grade: &'a Grade,
}

/// Writes the answers to all problems of a task, in order.
pub fn write(path: &Path, task: &dyn Task, answers: &[Vec<Answer>]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    for (problem, answers) in answers.iter().enumerate() {
        for (sample, answer) in answers.iter().enumerate() {
            let line = Line {
                problem_id: task.about(problem).id,
                sample,
                passed: answer.grade.passed(),
                failure: answer.grade.failure(),
                response: &answer.text,
                num_tokens: answer.num_tokens,
                is_cut: answer.is_cut,
                grade: &answer.grade,
            };
            serde_json::to_writer(&mut file, &line).context("encoding a response")?;
            file.write_all(b"\n").with_context(|| format!("writing {}", path.display()))?;
        }
    }
    file.commit()
}
