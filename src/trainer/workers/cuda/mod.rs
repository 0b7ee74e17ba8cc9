//! Ranks on GPUs: one each, of this process and of one process on every other node.
//!
//! Contract: parameters, activations and gradients are bf16 or fp16, master weights and sums of gradients
//! f32, moments as the configuration says. A gradient is summed over the ranks bucket by bucket while the
//! backward goes on ([`GradientSums`]). Equal runs are equal to the bit, on however many nodes. All memory is
//! taken when the ranks start, of which activations are laid out for the largest micro-batch that was
//! announced. Node 0 alone runs the loop, draws data and writes files; the others' ranks do what it asks
//! ([`serve`]), and numbers of their GPUs travel between GPUs. A rank or node that fails makes the others
//! fail. Left out: judging on other nodes than node 0. Not yet run on a GPU.
//!
//! [`GradientSums`]: crate::trainer::device::GradientSums

mod exchange;
mod local;
mod remote;
mod sampling;
mod serve;
mod shard;
mod ties;

use super::{Chunk, MicroBatch, Moments, Reduced, share};
use crate::checkpoint::LanguageModel;
use crate::cuda::nccl::UniqueId;
use crate::engine::generator::{Generator, GpuRank};
use crate::model::ScoreGradient;
use crate::ops::adamw::AdamW;
use crate::ranks;
use crate::ranks::Comm;
use crate::ranks::Member;
use crate::ranks::Shards;
use crate::ranks::nodes::Nodes;
use crate::ranks::rendezvous::Pace;
use crate::trainer::Execution;
use crate::trainer::device::Gpus;
use anyhow::Result;
use local::{Local, Spec};
use remote::{End, Remote};
pub(crate) use serve::serve;
use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;
use ties::Ties;

/// How long nodes wait for each other at the start: node 0 may have data to prepare.
const MEETING: Duration = Duration::from_secs(30 * 60);

/// All of them.
pub(crate) struct Ranks {
    pub(crate) shards: Shards,
    ranks: Vec<Rank>,
}

/// One of them.
enum Rank {
    Local(Box<Local>),
    Remote(Remote),
}

/// Does the same with a rank wherever it is.
macro_rules! with {
    ($rank:expr, $inner:ident => $work:expr) => {
        match $rank {
            Rank::Local($inner) => $work,
            Rank::Remote($inner) => $work,
        }
    };
}

impl Member for Rank {
    fn rank(&self) -> usize {
        match self {
            Self::Local(local) => local.rank(),
            Self::Remote(remote) => remote.end().rank(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Local(local) => local.size(),
            Self::Remote(remote) => remote.end().size(),
        }
    }

    fn abort(&self) {
        match self {
            Self::Local(local) => local.abort(),
            Self::Remote(remote) => remote.end().abort(),
        }
    }
}

impl Ranks {
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
        let start = |comm: &mut Box<dyn Comm>| -> Result<Rank> {
            let rank = comm.rank();
            let portions = shards.portions(rank);
            let pieces: Vec<&[f32]> =
                portions.iter().map(|portion| &model.params[portion.own.clone()]).collect();
            // Joining cannot be called off, so nobody begins before everybody can.
            let ready = || comm.barrier();
            Ok(match rank.checked_sub(here) {
                None => {
                    let local = Local::start((rank, rank), &spec, &pieces, (id, &ties), ready)?;
                    Rank::Local(Box::new(local))
                }
                Some(lane) => {
                    let (lane, ties) = (ties.lanes[lane].clone(), ties.clone());
                    let end = End { rank, size, lane, ties };
                    Rank::Remote(Remote::start(end, &spec, &pieces, ready)?)
                }
            })
        };
        let ranks = ranks::on_every_rank(ranks::group(size), |comm| &**comm, start);
        Ok(Self { shards, ranks: ranks.inspect_err(|_| ties.cut())? })
    }

    /// The most bytes that were ever taken at once of the memory of a GPU.
    pub(crate) fn peak_bytes(&mut self) -> Result<usize> {
        let peaks = self.on_every(|rank| match rank {
            Rank::Local(local) => Ok(local.peak_bytes()),
            Rank::Remote(remote) => remote.peak_bytes(),
        })?;
        Ok(peaks.into_iter().max().unwrap_or(0))
    }

    pub(crate) fn accumulate<M: Default + Send>(
        &mut self,
        _: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &(impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync),
    ) -> Result<Vec<M>> {
        let rounds = batches.len().div_ceil(self.ranks.len());
        let gathered = self.on_every(|rank| {
            let own = share(batches, rank.rank(), rank.size());
            with!(rank, rank => rank.accumulate(own, rounds, temperature, objective))
        })?;
        Ok(gathered.into_iter().flatten().collect())
    }

    pub(crate) fn update(
        &mut self,
        _: &mut LanguageModel,
        adamw: AdamW,
        scale: &(impl Fn(f64) -> Option<f32> + Sync),
    ) -> Result<Vec<Reduced>> {
        self.on_every(|rank| {
            let reduced = with!(rank, rank => rank.reduce())?;
            let scale = scale(reduced.norm);
            let adamw = scale.map(|gradient_scale| AdamW { gradient_scale, ..adamw });
            with!(rank, rank => rank.step(adamw))?;
            Ok(reduced)
        })
    }

    pub(crate) fn score(
        &mut self,
        _: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        self.score_each(rows, |rank, own| with!(rank, rank => rank.score(own, temperature)))
    }

    /// Each rank keeps its pieces.
    pub(crate) fn keep_reference(&mut self, params: Vec<f32>) -> Result<()> {
        let shards = self.shards;
        self.on_every(|rank| {
            let own = shards.portions(rank.rank()).into_iter().map(|portion| &params[portion.own]);
            let own = own.collect::<Vec<_>>().concat();
            match rank {
                Rank::Local(local) => local.keep_reference(&own),
                Rank::Remote(remote) => remote.keep_reference(&own)?,
            }
            Ok(())
        })?;
        Ok(())
    }

    pub(crate) fn score_reference(
        &mut self,
        _: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        self.score_each(
            rows,
            |rank, own| with!(rank, rank => rank.score_reference(own, temperature)),
        )
    }

    /// What `score` finds of the rows, of which every rank has its share.
    fn score_each(
        &mut self,
        rows: &[MicroBatch],
        score: impl Fn(&mut Rank, &[MicroBatch]) -> Result<Vec<Vec<f32>>> + Sync,
    ) -> Result<Vec<Vec<f32>>> {
        let scores = self.on_every(|rank| {
            let (_, own) = share(rows, rank.rank(), rank.size());
            score(rank, own)
        })?;
        Ok(scores.into_iter().flatten().collect())
    }

    /// The parameters on the GPUs are the trained ones; of `model` it is the tokenizer and the shape that
    /// count.
    pub(crate) fn generator<'r>(&'r mut self, model: &'r LanguageModel) -> Generator<'r> {
        let gpus = self.ranks.iter_mut().map(|rank| match rank {
            Rank::Local(local) => GpuRank::Here(&mut local.model),
            Rank::Remote(remote) => GpuRank::Elsewhere(remote),
        });
        Generator::on_gpus(&model.decoder, &model.tokenizer, gpus.collect())
    }

    pub(crate) fn fetch_params(&mut self, params: &mut [f32]) -> Result<()> {
        let pieces = self.shards.split_mut(params);
        let fetch = |(rank, pieces): &mut (&mut Rank, Vec<&mut [f32]>)| with!(rank, rank => rank.fetch_params(pieces));
        let workers = self.ranks.iter_mut().zip(pieces).collect();
        ranks::on_every_rank(workers, |(rank, _)| &**rank, fetch)?;
        Ok(())
    }

    pub(crate) fn moments(&mut self) -> Result<Vec<Moments<'_>>> {
        let moments = self.on_every(|rank| with!(rank, rank => rank.moments()))?;
        Ok(moments.into_iter().map(|both| both.map(Cow::Owned)).collect())
    }

    pub(crate) fn fill_moments<T>(
        &mut self,
        fill: impl FnOnce(Vec<[&mut [f32]; 2]>) -> Result<T>,
    ) -> Result<T> {
        let lens = (0..self.ranks.len()).map(|rank| self.shards.shard_len(rank));
        let mut by_rank: Vec<[Vec<f32>; 2]> =
            lens.map(|len| [vec![0.0; len], vec![0.0; len]]).collect();
        let slices = by_rank.iter_mut().map(|both| both.each_mut().map(Vec::as_mut_slice));
        let filled = fill(slices.collect())?;
        self.on_every(|rank| {
            let moments = by_rank[rank.rank()].each_ref().map(Vec::as_slice);
            with!(rank, rank => rank.set_moments(moments))
        })?;
        Ok(filled)
    }

    /// What a phase of the arena took went with the phase.
    pub(crate) fn release_memory(&mut self) {}

    fn on_every<T: Send>(
        &mut self,
        work: impl Fn(&mut Rank) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let ranks = self.ranks.iter_mut().collect();
        ranks::on_every_rank(ranks, |rank: &&mut Rank| &**rank, |rank| work(rank))
    }
}
