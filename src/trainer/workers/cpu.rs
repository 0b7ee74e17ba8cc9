//! Ranks on a CPU: threads, each with a share of the cores.
//!
//! Gradients are summed bucket by bucket, in rank order. A rank waits for others on its own thread and
//! computes on its own cores. The first rank trains the weights of the model on the host.

use super::{Moments, Parameters, Reduced, Share, Workers, within};
use crate::base::threads;
use crate::checkpoint::LanguageModel;
use crate::engine::generator::Generator;
use crate::model::{Decoder, Layout, Recompute, Workspace};
use crate::objective::{Chunk, Objective};
use crate::ops::adamw::AdamW;
use crate::ops::reduce::sum_of_squares;
use crate::ranks::{self, Comm, Shards};
use crate::trainer::execution::Execution;
use crate::trainer::micro_batch::MicroBatch;
use anyhow::Result;
use rayon::ThreadPool;
use std::borrow::Cow;
use std::ops::Range;

pub(crate) struct CpuWorkers {
    shards: Shards,
    ranks: Vec<Rank>,
    /// The parameters of the other ranks.
    replicas: Vec<Vec<f32>>,
    /// The parameters of the reference model; empty if none is kept.
    reference: Vec<f32>,
    decayed: Vec<Range<usize>>,
}

impl CpuWorkers {
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
}

impl Workers for CpuWorkers {
    fn shards(&self) -> Shards {
        self.shards
    }

    fn accumulate(
        &mut self,
        model: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()> {
        let params = std::iter::once(&model.params).chain(&self.replicas);
        let workers: Vec<_> = self.ranks.iter_mut().zip(params).collect();
        ranks::on_every_rank(
            workers,
            |(rank, _)| &*rank.comm,
            |(rank, params)| {
                let share = Share::new(batches, rank.comm.rank(), rank.comm.size());
                rank.accumulate(&model.decoder, params, share, temperature, objective);
                Ok(())
            },
        )?;
        Ok(())
    }

    fn update(
        &mut self,
        model: &mut LanguageModel,
        adamw: AdamW,
        scale: &(dyn Fn(f64) -> Option<f32> + Sync),
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

    fn score(
        &mut self,
        model: &LanguageModel,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let params = match parameters {
            Parameters::Trained => &model.params,
            Parameters::Reference => &self.reference,
        };
        let mut workspace = Workspace::new();
        let mut score_row = |row: &MicroBatch| {
            let MicroBatch { packed, targets } = row;
            let scores = model.decoder.score(params, packed, targets, temperature, &mut workspace);
            scores.iter().map(|score| score.logp).collect()
        };
        Ok(rows.iter().map(&mut score_row).collect())
    }

    fn keep_reference(&mut self, params: Vec<f32>) -> Result<()> {
        self.reference = params;
        Ok(())
    }

    fn generator<'r>(&'r mut self, model: &'r LanguageModel) -> Generator<'r> {
        Generator::of_trained(model, self.ranks.len())
    }

    /// The host's parameters are those of the first rank, so there is nothing to copy.
    fn fetch_params(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn moments(&mut self) -> Result<Vec<Moments<'_>>> {
        let moments = self.ranks.iter().map(|rank| rank.moments.each_ref());
        Ok(moments.map(|both| both.map(|moments| Cow::Borrowed(moments.as_slice()))).collect())
    }

    fn set_moments(&mut self, moments: Vec<[Vec<f32>; 2]>) -> Result<()> {
        self.ranks.iter_mut().zip(moments).for_each(|(rank, moments)| rank.moments = moments);
        Ok(())
    }

    fn gpu_peak_bytes(&mut self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn release_memory(&mut self) {
        self.ranks.iter_mut().for_each(Rank::release_memory);
    }
}

/// What a rank owns besides its parameters.
struct Rank {
    comm: Box<dyn Comm>,
    /// The first and second moments of the rank's shard.
    moments: [Vec<f32>; 2],
    grads: Vec<f32>,
    /// Its share of the cores; `None` if it has all.
    pool: Option<ThreadPool>,
    workspace: Workspace,
    recompute: Recompute,
}

impl Rank {
    fn new(comm: Box<dyn Comm>, shards: Shards, recompute: Recompute) -> Result<Self> {
        let size = comm.size();
        let pool = (size > 1).then(|| threads::rank_pool(size)).transpose()?;
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

    /// Adds the gradients of the rank's share.
    fn accumulate(
        &mut self,
        decoder: &Decoder,
        params: &[f32],
        share: Share<'_>,
        temperature: f32,
        objective: &dyn Objective,
    ) {
        let Self { grads, workspace, pool, .. } = self;
        on_pool(pool.as_ref(), || {
            for (batch, MicroBatch { packed, targets }) in share.numbered() {
                decoder.forward_backward(
                    params,
                    packed,
                    targets,
                    temperature,
                    &mut |first, scores, gradients| {
                        objective.learn(Chunk { batch, first, scores }, gradients);
                    },
                    grads,
                    workspace,
                );
            }
        });
    }

    /// Sums the gradients over the ranks. After that, this rank's shard holds the sums.
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

    /// Updates this rank's shard, in which weight decay applies to the elements `decayed`, and gathers the
    /// other shards.
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

    /// Drops the buffers of forward and backward.
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

/// Returns the tensors with a gradient in `pieces` that is not finite.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::test_support::{Pull, batches, model};

    #[test]
    fn every_rank_holds_the_parameters_of_the_first_after_an_update() {
        let mut model = model();
        let before = model.params.clone();
        let execution = Execution { ranks: 3, ..Execution::default() };
        let mut workers = CpuWorkers::start(&model, execution, Vec::new()).unwrap();
        workers.accumulate(&model, &batches(0), 1.0, &Pull::by(1.0)).unwrap();
        let adamw = AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            gradient_scale: 1.0,
            step: 1,
        };
        workers.update(&mut model, adamw, &|_| Some(1.0)).unwrap();
        assert_ne!(model.params, before);
        assert!(workers.replicas.iter().all(|replica| *replica == model.params));
    }
}
