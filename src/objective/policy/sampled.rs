//! The sampled tokens of a row, and the objective that learns from such rows.

use super::{LossConfig, Metrics, Mismatch, Tokens, importance_weights, policy_loss};
use crate::objective::{BatchSums, Chunk, Objective};
use crate::ops::logprob::{ScoreGradient, TokenScores};
use std::ops::Range;

/// What the loss needs to know of the targets of a row besides their scores, with one entry for each
/// target.
#[derive(Debug, Clone, Default)]
pub struct SampledTokens {
    pub sampler_logp: Vec<f32>,
    /// The trainer's log-probabilities before the first update, if the sampler's are not used as old ones.
    pub trainer_logp: Option<Vec<f32>>,
    /// The weights that correct for the difference of the two.
    pub importance: Option<Vec<f32>>,
    pub reference_logp: Option<Vec<f32>>,
    pub advantage: Vec<f32>,
    /// The weights in the sum of the loss.
    pub weight: Vec<f32>,
}

impl SampledTokens {
    /// Uses the trainer's log-probabilities as old ones, and weights tokens by how far the sampler's are
    /// from them, by at most `cap`.
    pub fn correct(&mut self, trainer_logp: Vec<f32>, cap: f64) {
        self.importance = Some(importance_weights(&trainer_logp, &self.sampler_logp, cap));
        self.trainer_logp = Some(trainer_logp);
    }

    /// Returns the tokens in `range`, which have these scores.
    fn with_scores<'a>(&'a self, range: Range<usize>, scores: &'a [TokenScores]) -> Tokens<'a> {
        let part = |values: &'a Vec<f32>| &values[range.clone()];
        Tokens {
            scores,
            old_logp: part(self.trainer_logp.as_ref().unwrap_or(&self.sampler_logp)),
            importance: self.importance.as_ref().map(part),
            reference_logp: self.reference_logp.as_ref().map(part),
            advantage: part(&self.advantage),
            weight: part(&self.weight),
        }
    }
}

/// The policy loss over the rows of a mini-batch, each of which is a micro-batch.
#[derive(Debug)]
pub struct PolicyObjective<'a> {
    config: &'a LossConfig,
    rows: &'a [SampledTokens],
    sums: BatchSums<PolicySums>,
}

/// Sums over targets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PolicySums {
    pub metrics: Metrics,
    pub mismatch: Mismatch,
}

impl PolicySums {
    fn merge(&mut self, other: &Self) {
        self.metrics.merge(&other.metrics);
        self.mismatch.merge(&other.mismatch);
    }
}

impl<'a> PolicyObjective<'a> {
    pub fn new(config: &'a LossConfig, rows: &'a [SampledTokens]) -> Self {
        Self { config, rows, sums: BatchSums::new(rows.len()) }
    }

    /// Returns the sums over all rows.
    pub fn into_sums(self) -> PolicySums {
        let mut total = PolicySums::default();
        self.sums.into_iter().for_each(|sums| total.merge(&sums));
        total
    }
}

impl Objective for PolicyObjective<'_> {
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) {
        let row = &self.rows[chunk.batch];
        let tokens = row.with_scores(chunk.range(), chunk.scores);
        let sampler_logp = &row.sampler_logp[chunk.range()];
        let cap = self.config.importance_sampling_cap;
        let trainer_logp = chunk.scores.iter().map(|scores| scores.logp);
        let sums = PolicySums {
            metrics: policy_loss(self.config, &tokens, gradients),
            mismatch: Mismatch::between(trainer_logp, sampler_logp, cap),
        };
        self.sums.update(chunk.batch, |total| total.merge(&sums));
    }
}
