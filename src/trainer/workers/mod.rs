//! The ranks of a run, on the cores of a CPU or on GPUs, behind one face.
//!
//! Contract: every rank has all parameters, computes the gradients of its share of the micro-batches, and
//! updates its shard of the optimizer (ZeRO-1): gradients are summed over ranks, each updates its shard,
//! and the shards are gathered; so all ranks hold the same parameters to the bit. The model's weights on
//! the host are those of the first rank on a CPU; on GPUs they are as old as [`Ranks::fetch_params`].

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::Execution;
use super::micro_batch::{Chunk, MicroBatch};
use crate::checkpoint::LanguageModel;
use crate::engine::generator::Generator;
use crate::model::ScoreGradient;
use crate::ops::adamw::AdamW;
use crate::ranks::Shards;
use anyhow::Result;
#[cfg(feature = "cuda")]
pub(crate) use cuda::serve;
use std::borrow::Cow;
use std::ops::Range;

/// Elements of a bucket on GPUs: 32 MiB of 16 bits each, large enough for the full speed of NVLink.
pub(crate) const GPU_BUCKET: usize = 16 << 20;

/// All ranks of one kind.
pub(crate) enum Ranks {
    Cpu(cpu::Ranks),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Ranks),
}

/// What all ranks found of their summed gradients.
pub(crate) struct Reduced {
    /// Norm of the whole gradient, unnormalised.
    pub(crate) norm: f64,
    /// Tensors with a non-finite gradient in this rank's shard, by index; looked for only if the
    /// norm is not finite.
    pub(crate) culprits: Vec<usize>,
}

/// Both moments of AdamW that a rank has.
pub(crate) type Moments<'m> = [Cow<'m, [f32]>; 2];

/// Does the same with whichever ranks there are.
macro_rules! with {
    ($all:expr, $ranks:ident => $work:expr) => {
        match $all {
            Ranks::Cpu($ranks) => $work,
            #[cfg(feature = "cuda")]
            Ranks::Cuda($ranks) => $work,
        }
    };
}

impl Ranks {
    /// Ranks that hold the parameters of `model`, of which `decayed` are those with weight decay.
    pub(crate) fn start(
        model: &LanguageModel,
        execution: Execution,
        decayed: Vec<Range<usize>>,
    ) -> Result<Self> {
        match execution.gpus {
            None => Ok(Self::Cpu(cpu::Ranks::start(model, execution, decayed)?)),
            #[cfg(feature = "cuda")]
            Some(gpus) => Ok(Self::Cuda(cuda::Ranks::start(model, execution, gpus, decayed)?)),
            #[cfg(not(feature = "cuda"))]
            Some(_) => Err(crate::engine::device::refusal()),
        }
    }

    /// How the flat buffers are divided.
    pub(crate) fn shards(&self) -> Shards {
        with!(self, ranks => ranks.shards)
    }

    /// Adds the gradients of micro-batches, which the ranks divide among themselves, and returns what
    /// the objective gathered in each, in order.
    pub(crate) fn accumulate<M: Default + Send>(
        &mut self,
        model: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &(impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync),
    ) -> Result<Vec<M>> {
        with!(self, ranks => ranks.accumulate(model, batches, temperature, objective))
    }

    /// Sums the gradients over the ranks, updates with them, scaled by what `scale` says of their norm
    /// (nothing leaves the weights as they are), and forgets them. Returns what each rank found.
    pub(crate) fn update(
        &mut self,
        model: &mut LanguageModel,
        adamw: AdamW,
        scale: &(impl Fn(f64) -> Option<f32> + Sync),
    ) -> Result<Vec<Reduced>> {
        with!(self, ranks => ranks.update(model, adamw, scale))
    }

    /// Natural log-probabilities of the targets of each row.
    pub(crate) fn score(
        &mut self,
        model: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        with!(self, ranks => ranks.score(model, rows, temperature))
    }

    /// Keeps the parameters of a reference model, in the layout of the model's.
    pub(crate) fn keep_reference(&mut self, params: Vec<f32>) -> Result<()> {
        with!(self, ranks => ranks.keep_reference(params))
    }

    /// Natural log-probabilities of the targets of each row under the reference model that is kept.
    pub(crate) fn score_reference(
        &mut self,
        model: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        with!(self, ranks => ranks.score_reference(model, rows, temperature))
    }

    /// The model, generating where its ranks are.
    pub(crate) fn generator<'r>(&'r mut self, model: &'r LanguageModel) -> Generator<'r> {
        with!(self, ranks => ranks.generator(model))
    }

    /// Brings parameters on the host up to date.
    pub(crate) fn fetch_params(&mut self, params: &mut [f32]) -> Result<()> {
        with!(self, ranks => ranks.fetch_params(params))
    }

    /// The most bytes that were ever taken at once of the memory of a GPU.
    pub(crate) fn gpu_peak_bytes(&mut self) -> Result<Option<usize>> {
        match self {
            Self::Cpu(_) => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(ranks) => ranks.peak_bytes().map(Some),
        }
    }

    /// The moments of every rank's shard.
    pub(crate) fn moments(&mut self) -> Result<Vec<Moments<'_>>> {
        with!(self, ranks => ranks.moments())
    }

    /// Lets `fill` replace the moments of every rank's shard.
    pub(crate) fn fill_moments<T>(
        &mut self,
        fill: impl FnOnce(Vec<[&mut [f32]; 2]>) -> Result<T>,
    ) -> Result<T> {
        with!(self, ranks => ranks.fill_moments(fill))
    }

    /// Gives back the memory that only accumulating gradients takes.
    pub(crate) fn release_memory(&mut self) {
        with!(self, ranks => ranks.release_memory());
    }

    #[cfg(test)]
    pub(crate) fn on_cpu(&self) -> &cpu::Ranks {
        match self {
            Self::Cpu(ranks) => ranks,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => panic!("ranks on GPUs"),
        }
    }
}

/// The micro-batches of rank `rank` of `size`: the index of the first, and they.
fn share(batches: &[MicroBatch], rank: usize, size: usize) -> (usize, &[MicroBatch]) {
    let count = batches.len().div_ceil(size);
    let first = (rank * count).min(batches.len());
    (first, &batches[first..batches.len().min(first + count)])
}

/// The parts of `ranges` in `piece`, counted from its start.
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
}
