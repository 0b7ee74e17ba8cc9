//! What a model is asked, and how its responses are graded: one type that reinforcement, evaluation and the
//! selection of problems share, so that a reward, a score and a selection never disagree about a response.
//!
//! Contract: equal problems, prompts and responses give equal grades, but for what only time decides (programs
//! that the judge ran out of time on). A grade keeps every case. Left out: sampling responses (`rollout`), and
//! what a grade is worth (`rewards`).

mod arc;
mod bbh;
mod benchmark;
mod code;
mod extract;
mod gaokao;
mod grade;
mod mmlu;
mod next_number;
mod number_sequences;
mod problems;
mod python_block;
mod quiz;
mod response;

pub use arc::{ArcPreset, arc};
pub use bbh::{BbhPreset, bbh};
pub use benchmark::{Preset, Settings};
pub use code::{
    Coding, HumanEvalPreset, LiveCodeBenchPreset, MbppPreset, Window, humaneval, humaneval_limits,
    livecodebench, livecodebench_limits, mbpp, mbpp_limits,
};
pub use gaokao::{GaokaoPreset, gaokao};
pub use grade::{FormatError, Grade, OwnCase};
pub use mmlu::{Letter, MmluPreset, mmlu};
pub use next_number::NextNumber;
pub use number_sequences::{NumberSequences, StatedCase};
pub use quiz::Quiz;
pub use response::{opens_thought, program, with_opened_thought};

use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::sandbox::Judge;
use crate::tokenizer::Message;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::path::Path;

/// Problems of one kind, their prompt, and the way to grade a response to one of them.
///
/// Problems are numbered from 0. `docs/extending.md` shows how to add a task.
pub trait Task: Sync {
    /// The task's name, as it is written in commands and configurations.
    fn name(&self) -> &'static str;

    /// The number of problems, at least one.
    fn num_problems(&self) -> usize;

    /// What is known of a problem besides its text.
    fn about(&self, problem: usize) -> About<'_>;

    /// The conversation that asks for a response.
    fn messages(&self, problem: usize) -> Result<Vec<Message>>;

    /// Grades a response. Several threads call this while others sample. Once `is_cancelled` returns true
    /// nobody needs the grade any more, so that any will do.
    fn grade(
        &self,
        problem: usize,
        response: &str,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Grade>;

    /// The number of threads that grade at the same time.
    fn num_graders(&self) -> usize {
        1
    }

    /// The problem as its file has it.
    fn problem_json(&self, problem: usize) -> Result<Box<RawValue>>;

    /// SHA-256 of the prompt's template, in hex.
    fn prompt_sha256(&self) -> &str;

    /// The name of the rules by which is asked and graded, for a task that has several.
    fn preset(&self) -> &str {
        "ours"
    }

    /// How a response is sampled where nobody says otherwise.
    fn sampling(&self) -> Sampling {
        Sampling::default()
    }

    /// The settings that grades depend on, as text; empty where there are none.
    fn grading(&self) -> Result<String> {
        Ok(String::new())
    }
}

/// How responses are sampled where nobody says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Rollouts for each problem.
    pub rollouts: usize,
    pub temperature: f32,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
}

impl Default for Sampling {
    /// Those of Table 8 of the paper.
    fn default() -> Self {
        Self { rollouts: 32, temperature: 1.0, max_new_tokens: 10_240 }
    }
}

/// The tasks that a configuration can name.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// General-term generation: a program for every term of a sequence.
    #[default]
    Gtg,
    /// The next term of a sequence whose first terms are shown.
    NextNumber,
}

impl TaskKind {
    /// Refuses a prompt that the task could not be asked with.
    pub fn check_prompt(self, prompt: Option<&Path>) -> Result<()> {
        match self {
            Self::NextNumber => next_number::open_prompt(prompt).map(drop),
            Self::Gtg => GtgPrompt::open(prompt).map(drop),
        }
    }

    /// The task with these problems and the prompt of a user's file, or else its own.
    pub fn open<'j>(
        self,
        problems: Vec<Problem>,
        prompt: Option<&Path>,
        judge: &'j Judge,
    ) -> Result<Box<dyn Task + 'j>> {
        Ok(match self {
            Self::NextNumber => Box::new(NextNumber::open(problems, prompt)?),
            Self::Gtg => Box::new(NumberSequences::open(problems, prompt, judge)?),
        })
    }
}

/// What is known of a problem besides its text.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The problem's name, unique within the task.
    pub id: &'a str,
    /// The group that a table of scores counts the problem in.
    pub family: Option<&'a str>,
    /// What the problem counts in an average over problems, above 0.
    pub weight: f64,
    /// The share of rollouts that solve the problem, where that was estimated.
    pub solvability: Option<f64>,
    /// Whether cases that a response makes itself can be checked.
    pub checks_own_cases: bool,
}

impl<'a> About<'a> {
    fn of(problem: &'a Problem) -> Self {
        Self {
            id: &problem.problem_id,
            family: problem.family.as_deref(),
            weight: 1.0,
            solvability: problem.solvability,
            checks_own_cases: false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sandbox::{Verdict, VerdictKind};

    /// Problems without anybody who could grade an answer to them.
    pub(crate) struct Given(pub(crate) Vec<Problem>);

    impl Task for Given {
        fn name(&self) -> &'static str {
            "given"
        }

        fn num_problems(&self) -> usize {
            self.0.len()
        }

        fn about(&self, problem: usize) -> About<'_> {
            let problem = &self.0[problem];
            About { checks_own_cases: !problem.terms.is_empty(), ..About::of(problem) }
        }

        fn messages(&self, problem: usize) -> Result<Vec<Message>> {
            Ok(vec![Message::new("user", &self.0[problem].description)])
        }

        fn grade(&self, _: usize, _: &str, _: &dyn Fn() -> bool) -> Result<Grade> {
            anyhow::bail!("nobody grades")
        }

        fn problem_json(&self, problem: usize) -> Result<Box<RawValue>> {
            Ok(serde_json::value::to_raw_value(&self.0[problem])?)
        }

        fn prompt_sha256(&self) -> &str {
            ""
        }
    }

    /// A grade with this verdict, in the right format, of a response whose own cases are so many truths.
    pub(crate) fn graded(kind: VerdictKind, own_cases: &[bool]) -> Grade {
        let verdict = Verdict {
            kind,
            cases: Vec::new(),
            cpu_ms: 0.1 + 0.2,
            failure: None,
            near_limit: false,
        };
        let case = |&is_true: &bool| OwnCase { is_true, is_copy: false };
        let own_cases = own_cases.iter().map(case).collect();
        Grade { own_cases, ..Grade::of_verdict(None, verdict) }
    }
}
