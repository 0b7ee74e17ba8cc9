//! The ranks of a run, on the cores of a CPU or on GPUs, as one object.
//!
//! Every rank has all parameters, computes the gradients of its share of the micro-batches, and updates its
//! shard of the optimizer (ZeRO-1, Rajbhandari et al. 2020): gradients are summed over ranks, each rank
//! updates its shard, and the shards are gathered. So all ranks hold the same parameters to the bit. On a
//! CPU the model's weights on the host are those of the first rank; on GPUs they are those of the last
//! [`Workers::fetch_params`].

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::execution::Execution;
use super::micro_batch::MicroBatch;
use crate::checkpoint::LanguageModel;
use crate::engine::generator::Generator;
use crate::objective::Objective;
use crate::ops::adamw::AdamW;
use crate::ranks::Shards;
use anyhow::Result;
#[cfg(feature = "cuda")]
pub(crate) use cuda::serve;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;

/// A bucket on GPUs has this many elements: 32 MiB of 16 bits each, enough for the full speed of NVLink.
pub(crate) const GPU_BUCKET: usize = 16 << 20;

/// The parameters under which tokens are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parameters {
    Trained,
    Reference,
}

/// All ranks of a run.
///
/// Each call gets the trainer's `model`: on a CPU it holds the parameters of the first rank.
pub(crate) trait Workers: Send {
    /// Returns how the flat buffers are divided among the ranks.
    fn shards(&self) -> Shards;

    /// Adds the gradients of micro-batches, which the ranks divide among themselves.
    fn accumulate(
        &mut self,
        model: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()>;

    /// Sums the gradients over the ranks, takes a step with them, and clears them. `scale` gets what the
    /// ranks found and returns the factor of the gradients; with `None` the weights stay as they are.
    /// Returns what each rank found.
    fn update(
        &mut self,
        model: &mut LanguageModel,
        adamw: AdamW,
        scale: &(dyn Fn(f64) -> Option<f32> + Sync),
    ) -> Result<Vec<Reduced>>;

    /// Returns the natural log-probabilities of the targets of each row.
    fn score(
        &mut self,
        model: &LanguageModel,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>>;

    /// Keeps the parameters of a reference model, which have the layout of the model's.
    fn keep_reference(&mut self, params: Vec<f32>) -> Result<()>;

    /// Returns the model, which generates on its own ranks.
    fn generator<'r>(&'r mut self, model: &'r LanguageModel) -> Generator<'r>;

    /// Copies the trained parameters to `params` on the host.
    fn fetch_params(&mut self, params: &mut [f32]) -> Result<()>;

    /// Returns the moments of every rank's shard.
    fn moments(&mut self) -> Result<Vec<Moments<'_>>>;

    /// Replaces the moments of every rank's shard.
    fn set_moments(&mut self, moments: Vec<[Vec<f32>; 2]>) -> Result<()>;

    /// Returns the most bytes of a GPU's memory that were ever taken at once; `None` on a CPU.
    fn gpu_peak_bytes(&mut self) -> Result<Option<usize>>;

    /// Gives back the memory that only accumulating gradients takes.
    fn release_memory(&mut self);
}

/// What a rank found in the summed gradients.
#[derive(Debug)]
pub(crate) struct Reduced {
    /// The norm of the whole gradient, unnormalised.
    pub(crate) norm: f64,
    /// The indices of tensors with a gradient in this rank's shard that is not finite. They are searched
    /// only if the norm is not finite.
    pub(crate) culprits: Vec<usize>,
}

/// The first and second moments of AdamW in a rank's shard.
pub(crate) type Moments<'m> = [Cow<'m, [f32]>; 2];

/// Starts ranks that hold the parameters of `model`; weight decay applies to the elements `decayed`.
pub(crate) fn start(
    model: &LanguageModel,
    execution: Execution,
    decayed: Vec<Range<usize>>,
) -> Result<Box<dyn Workers>> {
    match execution.gpus {
        None => Ok(Box::new(cpu::CpuWorkers::start(model, execution, decayed)?)),
        #[cfg(feature = "cuda")]
        Some(gpus) => Ok(Box::new(cuda::GpuWorkers::start(model, execution, gpus, decayed)?)),
        #[cfg(not(feature = "cuda"))]
        Some(_) => Err(crate::engine::device::refusal()),
    }
}

/// The micro-batches of a step that one rank computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'b> {
    /// The index of the first in the step.
    pub(crate) first: usize,
    pub(crate) batches: &'b [MicroBatch],
}

impl<'b> Share<'b> {
    /// Returns the share of rank number `rank` of `size` ranks.
    pub(crate) fn new(batches: &'b [MicroBatch], rank: usize, size: usize) -> Self {
        let count = Self::largest(batches.len(), size);
        let first = (rank * count).min(batches.len());
        Self { first, batches: &batches[first..batches.len().min(first + count)] }
    }

    /// Returns the number of micro-batches in the largest share.
    pub(crate) fn largest(num_batches: usize, size: usize) -> usize {
        num_batches.div_ceil(size)
    }

    /// Returns the micro-batches with their indices in the step.
    pub(crate) fn numbered(self) -> impl Iterator<Item = (usize, &'b MicroBatch)> {
        (self.first..).zip(self.batches)
    }
}

/// Returns the parts of `ranges` that are in `piece`, counted from its start.
fn within(ranges: &[Range<usize>], piece: &Range<usize>) -> Vec<Range<usize>> {
    ranges
        .iter()
        .map(|range| range.start.max(piece.start)..range.end.min(piece.end))
        .filter(|range| !range.is_empty())
        .map(|range| range.start - piece.start..range.end - piece.start)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_a_piece() {
        assert_eq!(within(&[0..4, 6..9, 20..30], &(2..8)), [0..2, 4..6]);
    }

    #[test]
    fn every_micro_batch_belongs_to_one_rank_in_order() {
        let batches = vec![MicroBatch::empty(); 7];
        for size in [1, 3, 5, 9] {
            let indices = (0..size).flat_map(|rank| {
                let share = Share::new(&batches, rank, size);
                assert!(share.batches.len() <= Share::largest(7, size));
                share.numbered().map(|(index, _)| index).collect::<Vec<_>>()
            });
            assert!(indices.eq(0..7), "{size} ranks");
        }
    }
}
