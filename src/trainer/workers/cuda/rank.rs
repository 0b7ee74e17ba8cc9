//! A rank on a GPU, wherever it is.
//!
//! It does for one rank what [`super::GpuWorkers`] does for all. Collectives wait for all ranks, so all
//! ranks make the same calls in the same order.

use crate::engine::Sampler;
use crate::objective::Objective;
use crate::ops::adamw::AdamW;
use crate::ranks::Member;
use crate::trainer::micro_batch::MicroBatch;
use crate::trainer::workers::{Parameters, Reduced, Share};
use anyhow::Result;

pub(crate) trait Rank: Member {
    /// Adds the gradients of the rank's share of a step, in as many rounds as every other rank.
    fn accumulate(
        &mut self,
        share: Share<'_>,
        rounds: usize,
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()>;

    /// Sums the gradients over the ranks.
    fn reduce(&mut self) -> Result<Reduced>;

    /// Takes a step with the summed gradients, if there are settings to take it with, and clears the
    /// gradients.
    fn step(&mut self, adamw: Option<AdamW>) -> Result<()>;

    /// Returns the log-probabilities of the targets of each row.
    fn score(
        &mut self,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>>;

    /// Keeps the rank's shard of a reference model's parameters.
    fn keep_reference(&mut self, shard: &[f32]) -> Result<()>;

    /// Returns the rank as a sampler with the trained parameters.
    fn sampler(&mut self) -> &mut dyn Sampler;

    /// Copies the master weights of its shard to its pieces of the parameters, by portion.
    fn fetch_params(&mut self, pieces: &mut [&mut [f32]]) -> Result<()>;

    /// Returns the moments of its shard.
    fn moments(&mut self) -> Result<[Vec<f32>; 2]>;

    /// Replaces the moments of its shard.
    fn set_moments(&mut self, moments: [&[f32]; 2]) -> Result<()>;

    /// Returns the most bytes of the GPU's memory that were ever taken at once.
    fn peak_bytes(&mut self) -> Result<usize>;
}
