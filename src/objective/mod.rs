//! An objective is what training minimises: a pure function of a few scalars for each token.
//!
//! Objectives use no model, no device and no files. An [`Objective`] reads the scores of target tokens and
//! writes the gradient of the loss with respect to each score; the model's head continues from there.
//! Losses and gradients are unnormalised sums that the trainer divides once, so neither packing nor
//! micro-batches nor ranks change them. `learn` sees one chunk of targets, which may end inside a sequence.
//! A loss that needs whole sequences, or another model's log-probabilities, gets them in its constructor:
//! the loop calls `Trainer::score` first.

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
/// order. It keeps its sums in [`BatchSums`], so that the totals do not depend on the number of ranks.
pub trait Objective: Sync {
    /// Adds the loss of a chunk to the objective's sums. Writes the gradient with respect to each score
    /// into `gradients`, which are zero before.
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]);
}

/// Consecutive targets of one micro-batch, and their scores.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The index of the micro-batch in the step.
    pub batch: usize,
    /// The index of the first target in the micro-batch.
    pub first: usize,
    pub scores: &'a [TokenScores],
}

impl Chunk<'_> {
    /// Returns the indices of the targets in the micro-batch.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.scores.len()
    }
}
