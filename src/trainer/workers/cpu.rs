//! Ranks on a CPU: threads, each with a part of the cores.
//!
//! Contract: gradients are summed by bucket, in rank order. Waiting for others happens on the rank's own
//! thread, computing on its own part of the cores. What the host knows as the model's weights is what the
//! first rank trains.

use super::{Chunk, MicroBatch, Moments, Reduced, share, within};
use crate::base::threads;
use crate::checkpoint::LanguageModel;
use crate::engine::generator::Generator;
use crate::model::{Decoder, Layout, Recompute, ScoreGradient, Workspace};
use crate::ops::adamw::AdamW;
use crate::ops::reduce::sum_of_squares;
use crate::ranks::{self, Comm, Shards};
use crate::trainer::Execution;
use anyhow::Result;
use rayon::ThreadPool;
use std::borrow::Cow;
use std::ops::Range;

/// All of them.
pub(crate) struct Ranks {
    pub(crate) shards: Shards,
    ranks: Vec<Rank>,
    /// The parameters of the ranks but the first.
    replicas: Vec<Vec<f32>>,
    /// The parameters of the reference model; none where none is kept.
    reference: Vec<f32>,
    decayed: Vec<Range<usize>>,
}

impl Ranks {
    pub(crate) fn start(
        model: &LanguageModel,
        execution: Execution,
        decayed: Vec<Range<usize>>,
    ) -> Result<Self> {
        let Execution { ranks, recompute, .. } = execution;
        let shards = Shards::new(model.params.len(), ranks, Shards::BUCKET);
        let start = |comm| Rank::new(comm, shards, recompute);
        Ok(Self {
            shards,
            ranks: ranks::group(ranks).into_iter().map(start).collect::<Result<_>>()?,
            replicas: vec![model.params.clone(); ranks - 1],
            reference: Vec::new(),
            decayed,
        })
    }

    pub(crate) fn accumulate<M: Default + Send>(
        &mut self,
        model: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &(impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync),
    ) -> Result<Vec<M>> {
        let params = std::iter::once(&model.params).chain(&self.replicas);
        let workers: Vec<_> = self.ranks.iter_mut().zip(params).collect();
        let gathered = ranks::on_every_rank(
            workers,
            |(rank, _)| &*rank.comm,
            |(rank, params)| {
                let own = share(batches, rank.comm.rank(), rank.comm.size());
                Ok(rank.accumulate(&model.decoder, params, own, temperature, objective))
            },
        )?;
        Ok(gathered.into_iter().flatten().collect())
    }

    pub(crate) fn update(
        &mut self,
        model: &mut LanguageModel,
        adamw: AdamW,
        scale: &(impl Fn(f64) -> Option<f32> + Sync),
    ) -> Result<Vec<Reduced>> {
        let Self { shards, ranks, replicas, decayed, .. } = self;
        let layout = model.decoder.layout();
        let params = std::iter::once(&mut model.params).chain(replicas);
        let workers: Vec<_> = ranks.iter_mut().zip(params).collect();
        ranks::on_every_rank(
            workers,
            |(rank, _)| &*rank.comm,
            |(rank, params)| {
                let reduced = rank.reduce(*shards, layout)?;
                if let Some(gradient_scale) = scale(reduced.norm) {
                    rank.step(params, *shards, AdamW { gradient_scale, ..adamw }, decayed)?;
                }
                rank.grads.fill(0.0);
                Ok(reduced)
            },
        )
    }

    pub(crate) fn score(
        &self,
        model: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        Ok(score(&model.decoder, &model.params, rows, temperature))
    }

    pub(crate) fn keep_reference(&mut self, params: Vec<f32>) -> Result<()> {
        self.reference = params;
        Ok(())
    }

    pub(crate) fn score_reference(
        &self,
        model: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        Ok(score(&model.decoder, &self.reference, rows, temperature))
    }

    pub(crate) fn generator<'r>(&'r self, model: &'r LanguageModel) -> Generator<'r> {
        Generator::on_threads(model, self.ranks.len())
    }

    /// The host's parameters are the first rank's.
    pub(crate) fn fetch_params(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    pub(crate) fn moments(&self) -> Result<Vec<Moments<'_>>> {
        let moments = self.ranks.iter().map(|rank| rank.moments.each_ref());
        Ok(moments.map(|both| both.map(|moments| Cow::Borrowed(moments.as_slice()))).collect())
    }

    pub(crate) fn fill_moments<T>(
        &mut self,
        fill: impl FnOnce(Vec<[&mut [f32]; 2]>) -> Result<T>,
    ) -> Result<T> {
        let moments = self.ranks.iter_mut().map(|rank| rank.moments.each_mut());
        fill(moments.map(|both| both.map(Vec::as_mut_slice)).collect())
    }

    pub(crate) fn release_memory(&mut self) {
        self.ranks.iter_mut().for_each(Rank::release_memory);
    }

    #[cfg(test)]
    pub(crate) fn replicas(&self) -> &[Vec<f32>] {
        &self.replicas
    }
}

/// Log-probabilities of the targets of each row under `params`.
fn score(
    decoder: &Decoder,
    params: &[f32],
    rows: &[MicroBatch],
    temperature: f32,
) -> Vec<Vec<f32>> {
    let mut workspace = Workspace::new();
    let mut of_row = |row: &MicroBatch| {
        let MicroBatch { packed, targets } = row;
        let scores = decoder.score(params, packed, targets, temperature, &mut workspace);
        scores.iter().map(|score| score.logp).collect()
    };
    rows.iter().map(&mut of_row).collect()
}

/// What a rank owns besides its parameters.
struct Rank {
    comm: Box<dyn Comm>,
    /// First and second moments of the rank's shard.
    moments: [Vec<f32>; 2],
    grads: Vec<f32>,
    /// Its part of the cores; none where it has them all.
    pool: Option<ThreadPool>,
    workspace: Workspace,
    recompute: Recompute,
}

impl Rank {
    fn new(comm: Box<dyn Comm>, shards: Shards, recompute: Recompute) -> Result<Self> {
        let size = comm.size();
        let pool = (size > 1).then(|| threads::of_rank(size)).transpose()?;
        let shard = shards.shard_len(comm.rank());
        Ok(Self {
            moments: [vec![0.0; shard], vec![0.0; shard]],
            grads: vec![0.0; shards.total_len()],
            pool,
            workspace: Workspace::with_recompute(recompute),
            recompute,
            comm,
        })
    }

    /// Adds the gradients of `batches`, of which the first is number `first` of the step, and returns
    /// what the objective gathered in each.
    fn accumulate<M: Default + Send>(
        &mut self,
        decoder: &Decoder,
        params: &[f32],
        (first, batches): (usize, &[MicroBatch]),
        temperature: f32,
        objective: &(impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync),
    ) -> Vec<M> {
        let Self { grads, workspace, pool, .. } = self;
        let one = |(index, batch): (usize, &MicroBatch)| {
            let mut gathered = M::default();
            decoder.forward_backward(
                params,
                &batch.packed,
                &batch.targets,
                temperature,
                &mut |at, scores, gradients| {
                    let chunk = Chunk { batch: first + index, first: at, scores };
                    objective(chunk, gradients, &mut gathered);
                },
                grads,
                workspace,
            );
            gathered
        };
        on_pool(pool.as_ref(), || batches.iter().enumerate().map(one).collect())
    }

    /// Sums the gradients over the ranks; this rank's shard holds the sums then.
    fn reduce(&mut self, shards: Shards, layout: &Layout) -> Result<Reduced> {
        for bucket in shards.buckets() {
            self.comm.reduce_scatter(&mut self.grads[bucket])?;
        }
        let (grads, pieces) = (&self.grads, shards.pieces(self.comm.rank()));
        let squares = || pieces.iter().map(|own| sum_of_squares(&grads[own.clone()])).sum();
        let mut square = [on_pool(self.pool.as_ref(), squares)];
        self.comm.all_reduce(&mut square)?;
        let norm = square[0].sqrt();
        let culprits = if norm.is_finite() { Vec::new() } else { culprits(grads, &pieces, layout) };
        Ok(Reduced { norm, culprits })
    }

    /// Updates this rank's shard, of which `decayed` are the elements with weight decay, and
    /// gathers the others'.
    fn step(
        &mut self,
        params: &mut [f32],
        shards: Shards,
        adamw: AdamW,
        decayed: &[Range<usize>],
    ) -> Result<()> {
        let Self { moments: [first, second], grads, pool, comm, .. } = self;
        let pieces = shards.pieces(comm.rank());
        on_pool(pool.as_ref(), || {
            let mut at = 0;
            for own in pieces {
                let of_shard = at..at + own.len();
                at = of_shard.end;
                adamw.step(
                    &mut params[own.clone()],
                    &grads[own.clone()],
                    &mut first[of_shard.clone()],
                    &mut second[of_shard],
                    &within(decayed, &own),
                );
            }
        });
        for bucket in shards.buckets() {
            comm.all_gather(&mut params[bucket])?;
        }
        Ok(())
    }

    /// Drops the buffers of the forward and backward.
    fn release_memory(&mut self) {
        self.workspace = Workspace::with_recompute(self.recompute);
    }
}

fn on_pool<T: Send>(pool: Option<&ThreadPool>, work: impl FnOnce() -> T + Send) -> T {
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// The tensors whose gradient is not finite somewhere in `pieces`.
fn culprits(grads: &[f32], pieces: &[Range<usize>], layout: &Layout) -> Vec<usize> {
    let is_bad = |range: &Range<usize>| {
        pieces.iter().any(|piece| {
            within(std::slice::from_ref(range), piece)
                .into_iter()
                .any(|part| grads[piece.clone()][part].iter().any(|gradient| !gradient.is_finite()))
        })
    };
    (0..layout.tensors.len()).filter(|&index| is_bad(&layout.tensors[index].range)).collect()
}
