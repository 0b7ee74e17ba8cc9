//! The records of attempts: what is asked, what was sampled and how it was graded, what that took.

use crate::engine::{FinishReason, Rollout, Stats};
use crate::tasks::Grade;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A problem of a task, and the responses that are wanted of it.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    pub problem: usize,
    /// At least one.
    pub num_samples: usize,
    /// Key of the responses' randomness.
    pub key: u64,
}

/// A sampled response and its grade.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub rollout: Rollout,
    /// The response's text, without special tokens.
    pub text: String,
    pub grade: Grade,
}

/// All attempts at one problem, in sample order.
#[derive(Debug, Clone)]
pub struct ProblemAttempts {
    /// The prompt that was shown.
    pub prompt: Vec<u32>,
    pub attempts: Vec<Attempt>,
}

/// What of an attempt a score rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The response's text, without special tokens.
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

/// What attempts took.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptCost {
    pub engine: Stats,
    /// Wall time of generation; grading goes on meanwhile.
    pub generation: Duration,
    /// Wall time from the last response to the last grade.
    pub grading: Duration,
    /// CPU time of all judged programs.
    pub judging_cpu: Duration,
}
