//! What is minimised, as pure functions of a few scalars per token.
//!
//! Contract: no model, no device, no I/O. An [`Objective`] reads the scores of target tokens and writes the
//! gradient of the loss by each score; the model's head carries that on. Losses and gradients are
//! unnormalised sums, divided once by the trainer, so neither packing nor micro-batches nor ranks change
//! them. `learn` sees one chunk of targets, which may end inside a sequence. A loss that needs whole sequences,
//! or another model's log-probabilities, gets them in its constructor: the loop calls `Trainer::score` first.

pub mod advantage;
mod aggregation;
pub mod dpo;
pub mod policy;
pub mod sft;
mod sums;

pub use aggregation::{Aggregation, Totals};
pub use sums::BatchSums;

use crate::ops::logprob::{ScoreGradient, TokenScores};
use std::ops::Range;

/// A loss over the targets of a step.
///
/// Ranks call it at the same time, each with its own micro-batches, and pass the chunks of a micro-batch in
/// order. What it gathers it keeps in [`BatchSums`], so that its totals do not depend on the ranks.
pub trait Objective: Sync {
    /// Adds the loss of a chunk to the objective's sums, and writes its gradients, which are zero before,
    /// one for each score.
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]);
}

/// Consecutive targets of one micro-batch and their scores.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Index of the micro-batch in the step.
    pub batch: usize,
    /// Index of the first target in the micro-batch.
    pub first: usize,
    pub scores: &'a [TokenScores],
}

impl Chunk<'_> {
    /// Places of the targets among those of the micro-batch.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.scores.len()
    }
}
