//! Ranks on GPUs, one each: those of this process, and those of one process on every other node.
//!
//! Parameters, activations and gradients are bf16 or fp16; master weights and sums of gradients are f32;
//! moments have the configured number format. Gradients are summed over the ranks bucket by bucket while
//! the backward runs ([`GradientSums`]). Equal runs are equal to the bit, on any number of nodes. All
//! memory is taken when the ranks start; activations are laid out for the largest micro-batch that was
//! announced. Node 0 alone runs the loop, reads data, judges programs and writes files. The ranks of other
//! nodes do what it asks ([`serve`]), and gradients and parameters travel between GPUs. A rank or node that
//! fails makes the others fail. This has not yet run on a GPU.
//!
//! [`GradientSums`]: crate::trainer::device::GradientSums

mod exchange;
mod local;
mod protocol;
mod rank;
mod remote;
mod sampling;
mod serve;
mod shard;
mod spec;
mod ties;

use super::{Moments, Parameters, Reduced, Share, Workers};
use crate::checkpoint::LanguageModel;
use crate::cuda::nccl::UniqueId;
use crate::engine::Sampler;
use crate::engine::generator::Generator;
use crate::nodes::{Nodes, Pace};
use crate::objective::Objective;
use crate::ops::adamw::AdamW;
use crate::ranks::{self, Comm, Shards};
use crate::trainer::device::Gpus;
use crate::trainer::execution::Execution;
use crate::trainer::micro_batch::MicroBatch;
use anyhow::Result;
use exchange::Invitation;
use local::Local;
use protocol::End;
use rank::Rank;
use remote::Remote;
pub(crate) use serve::serve;
use spec::Spec;
use std::borrow::Cow;
use std::ops::Range;
use ties::{MEETING, Ties};

pub(crate) struct GpuWorkers {
    shards: Shards,
    ranks: Vec<Box<dyn Rank>>,
}

impl GpuWorkers {
    pub(crate) fn start(
        model: &LanguageModel,
        execution: Execution,
        gpus: Gpus,
        decayed: Vec<Range<usize>>,
    ) -> Result<Self> {
        let Execution { ranks: size, recompute, .. } = execution;
        let config = model.decoder.config().to_json().to_owned();
        let spec = Spec { model: config, size, gpus, recompute, decayed };
        let shards = spec.shards(model.decoder.layout());
        let nodes = Nodes::from_env()?;
        let here = nodes.share(size)?;
        let id = (size > 1).then(UniqueId::new).transpose()?;
        let message = id.map_or(Vec::new(), |id| id.as_bytes().to_vec());
        let meeting = nodes.meet(here, message, Pace::DEFAULT, MEETING)?;
        let ties = Ties::new(meeting)?;
        let start = |comm: &mut Box<dyn Comm>| -> Result<Box<dyn Rank>> {
            let (rank, ties) = (comm.rank(), ties.clone());
            let portions = shards.portions(rank);
            let pieces: Vec<&[f32]> =
                portions.iter().map(|portion| &model.params[portion.own.clone()]).collect();
            // A rank that joins cannot be called off, so none joins before all can.
            let ready = || comm.barrier();
            Ok(match rank.checked_sub(here) {
                None => {
                    let invitation = Invitation { id, rank, size, ties };
                    Box::new(Local::start(rank, invitation, &spec, &pieces, ready)?)
                }
                Some(lane) => {
                    let end = End { rank, size, lane: ties.lanes[lane].clone(), ties };
                    Box::new(Remote::start(end, &spec, &pieces, ready)?)
                }
            })
        };
        let ranks = ranks::on_every_rank(ranks::group(size), |comm| &**comm, start);
        Ok(Self { shards, ranks: ranks.inspect_err(|_| ties.cut())? })
    }

    fn on_every<T: Send>(
        &mut self,
        work: impl Fn(&mut dyn Rank) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let ranks = self.ranks.iter_mut().collect();
        ranks::on_every_rank(ranks, |rank: &&mut Box<dyn Rank>| &***rank, |rank| work(&mut ***rank))
    }
}

impl Workers for GpuWorkers {
    fn shards(&self) -> Shards {
        self.shards
    }

    fn accumulate(
        &mut self,
        _: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()> {
        let rounds = Share::largest(batches.len(), self.ranks.len());
        self.on_every(|rank| {
            let share = Share::new(batches, rank.rank(), rank.size());
            rank.accumulate(share, rounds, temperature, objective)
        })?;
        Ok(())
    }

    fn update(
        &mut self,
        _: &mut LanguageModel,
        adamw: AdamW,
        scale: &(dyn Fn(f64) -> Option<f32> + Sync),
    ) -> Result<Vec<Reduced>> {
        self.on_every(|rank| {
            let reduced = rank.reduce()?;
            let scale = scale(reduced.norm);
            rank.step(scale.map(|gradient_scale| AdamW { gradient_scale, ..adamw }))?;
            Ok(reduced)
        })
    }

    fn score(
        &mut self,
        _: &LanguageModel,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let scores = self.on_every(|rank| {
            let share = Share::new(rows, rank.rank(), rank.size());
            rank.score(parameters, share.batches, temperature)
        })?;
        Ok(scores.into_iter().flatten().collect())
    }

    /// Each rank keeps its shard.
    fn keep_reference(&mut self, params: Vec<f32>) -> Result<()> {
        let shards = self.shards;
        self.on_every(|rank| {
            let own = shards.portions(rank.rank()).into_iter().map(|portion| &params[portion.own]);
            rank.keep_reference(&own.collect::<Vec<_>>().concat())
        })?;
        Ok(())
    }

    /// The parameters on the GPUs are the trained ones; only the tokenizer and the shape are taken from
    /// `model`.
    fn generator<'r>(&'r mut self, model: &'r LanguageModel) -> Generator<'r> {
        let gpus = self.ranks.iter_mut().map(|rank| Box::new(rank.sampler()) as Box<dyn Sampler>);
        Generator::on_gpus(&model.decoder, &model.tokenizer, gpus.collect())
    }

    fn fetch_params(&mut self, params: &mut [f32]) -> Result<()> {
        let workers = self.ranks.iter_mut().zip(self.shards.split_mut(params)).collect();
        ranks::on_every_rank(
            workers,
            |(rank, _): &(&mut Box<dyn Rank>, Vec<&mut [f32]>)| &***rank,
            |(rank, pieces)| rank.fetch_params(pieces),
        )?;
        Ok(())
    }

    fn moments(&mut self) -> Result<Vec<Moments<'_>>> {
        let moments = self.on_every(|rank| rank.moments())?;
        Ok(moments.into_iter().map(|both| both.map(Cow::Owned)).collect())
    }

    fn set_moments(&mut self, moments: Vec<[Vec<f32>; 2]>) -> Result<()> {
        self.on_every(|rank| rank.set_moments(moments[rank.rank()].each_ref().map(Vec::as_slice)))?;
        Ok(())
    }

    fn gpu_peak_bytes(&mut self) -> Result<Option<usize>> {
        Ok(self.on_every(|rank| rank.peak_bytes())?.into_iter().max())
    }

    /// The memory of a phase was given back when the phase ended.
    fn release_memory(&mut self) {}
}
