//! Attempts for tests.

use super::attempt::{Attempt, ProblemAttempts};
use crate::engine::{FinishReason, Rollout};
use crate::sandbox::VerdictKind;
use crate::tasks::tests::graded;
use crate::tasks::{Grade, program};

/// Makes a group with one attempt for each text and verdict.
pub(crate) fn group(attempts: &[(&str, VerdictKind)]) -> ProblemAttempts {
    let attempt = |&(text, kind): &(&str, VerdictKind)| Attempt {
        rollout: Rollout {
            tokens: vec![7, 8],
            logprobs: vec![-0.5, -0.25],
            top_logprobs: Vec::new(),
            finish_reason: FinishReason::Stop,
        },
        text: text.to_owned(),
        grade: Grade { format_error: program(text).err(), ..graded(kind, &[]) },
    };
    ProblemAttempts { prompt: vec![5, 6], attempts: attempts.iter().map(attempt).collect() }
}
