//! The records of attempts: what is asked, what was sampled, how it was graded, and the cost of it.

use crate::agents::{self, Finish};
use crate::engine::{FinishReason, Rollout, Stats};
use crate::tasks::Grade;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A problem of a task, and the responses that are wanted for it.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    pub problem: usize,
    /// The number of responses, at least 1.
    pub num_samples: usize,
    /// The key of the responses' randomness.
    pub key: u64,
}

/// A sampled response and its grade.
#[derive(Debug, Clone)]
pub struct Attempt<R = Rollout> {
    pub rollout: R,
    /// The text of the response, without special tokens.
    pub text: String,
    pub grade: Grade,
}

/// All attempts at one problem, in the order of samples.
#[derive(Debug, Clone)]
pub struct ProblemAttempts {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    pub attempts: Vec<Attempt>,
}

/// What a score depends on of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The text of the response, without special tokens.
    pub text: String,
    pub num_tokens: usize,
    /// Whether the limit of tokens ended it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
    #[serde(flatten)]
    pub grade: Grade,
}

impl From<Attempt> for Answer {
    fn from(Attempt { rollout, text, grade }: Attempt) -> Self {
        let is_cut = rollout.finish_reason == FinishReason::Length;
        Self { text, num_tokens: rollout.tokens.len(), is_cut, grade }
    }
}

impl From<Attempt<agents::Answer>> for Answer {
    /// Where an endpoint does not count, four bytes are taken for a token.
    fn from(Attempt { rollout, text, grade }: Attempt<agents::Answer>) -> Self {
        let counted = rollout.tokens.map(|tokens| tokens.completion as usize);
        let num_tokens = counted.unwrap_or(text.len().div_ceil(4));
        let is_cut = rollout.finish == Finish::Length;
        Self { text, num_tokens, is_cut, grade }
    }
}

/// The cost of attempts.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptCost {
    pub engine: Stats,
    /// The wall time of generation; grading goes on at the same time.
    pub generation: Duration,
    /// The wall time from the last response to the last grade.
    pub grading: Duration,
    /// The CPU time of all judged programs.
    pub judging_cpu: Duration,
}
