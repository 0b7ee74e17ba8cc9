//! Ranks on GPUs: one each, in one process.
//!
//! Contract: parameters, activations and gradients are bf16 or fp16, master weights and sums of gradients
//! f32, moments as the configuration says. A gradient is summed over the ranks bucket by bucket while the
//! backward goes on ([`GradientSums`]). Equal runs are equal to the bit. All memory is taken when the ranks
//! start, of which activations are laid out for the largest micro-batch that was announced. A rank that
//! fails makes the others fail. Left out: several nodes, for which `dist::rendezvous` and
//! [`nccl::guard`](crate::cuda::nccl::guard) are ready. Not yet run on a GPU.
//!
//! [`GradientSums`]: crate::train::device::GradientSums

mod exchange;
mod shard;

use super::{Chunk, GPU_BUCKET, MicroBatch, Moments, Reduced, share, within};
use crate::checkpoint::LanguageModel;
use crate::cuda::kernels::adamw::AdamW as DeviceAdamW;
use crate::cuda::nccl::UniqueId;
use crate::cuda::{Gpu, HalfFormat};
use crate::dist::{self, Comm, Member, Shards};
use crate::eval::generator::Generator;
use crate::model::cuda::DeviceModel;
use crate::model::{Layout, ScoreGradient};
use crate::ops::adamw::AdamW;
use crate::train::device::Gpus;
use crate::train::settings::Precision;
use crate::train::trainer::Execution;
use anyhow::Result;
use exchange::Exchange;
use shard::Shard;
use std::borrow::Cow;
use std::ops::Range;

/// All of them.
pub(in crate::train) struct Ranks {
    pub(super) shards: Shards,
    ranks: Vec<Rank>,
}

/// What a rank owns.
struct Rank {
    model: DeviceModel,
    shard: Shard,
    exchange: Exchange,
    execution: Execution,
    gpus: Gpus,
}

impl Ranks {
    pub(super) fn start(
        model: &LanguageModel,
        execution: Execution,
        gpus: Gpus,
        decayed: &[Range<usize>],
    ) -> Result<Self> {
        let size = execution.ranks;
        let shards = Shards::new(model.params.len(), size, GPU_BUCKET);
        let id = (size > 1).then(UniqueId::new).transpose()?;
        let start = |comm: &mut Box<dyn Comm>| -> Result<Rank> {
            let rank = comm.rank();
            let mut gpu = Gpu::open(rank, half_format(gpus.precision), None)?;
            let of_rank = (shards, rank);
            let shard = Shard::new(&mut gpu, of_rank, gpus.config, model, decayed)?;
            let device = gpu.device.clone();
            let positions = gpus.largest.longest;
            let mut on_gpu = DeviceModel::new(gpu, model.decoder.clone(), positions)?;
            on_gpu.upload(0, &model.params)?;
            // Joining cannot be called off, so nobody begins before everybody can.
            comm.barrier()?;
            let exchange = Exchange::join(&device, id, (rank, size))?;
            Ok(Rank { model: on_gpu, shard, exchange, execution, gpus })
        };
        let mut ranks = dist::on_every_rank(dist::group(size), |comm| &**comm, start)?;
        Exchange::tie(ranks.iter_mut().map(|rank| &mut rank.exchange));
        Ok(Self { shards, ranks })
    }

    /// The most bytes that were ever taken at once of the memory of a GPU.
    pub(super) fn peak_bytes(&mut self) -> usize {
        let peaks = self.ranks.iter_mut().map(|rank| rank.model.split().1.arena.peak_bytes());
        peaks.max().unwrap_or(0)
    }

    pub(super) fn accumulate<M: Default + Send>(
        &mut self,
        _: &LanguageModel,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &(impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync),
    ) -> Result<Vec<M>> {
        let rounds = batches.len().div_ceil(self.ranks.len());
        let gathered = self.on_every(|rank| {
            let own = share(batches, rank.exchange.rank(), rank.exchange.size());
            rank.accumulate(own, rounds, temperature, objective)
        })?;
        Ok(gathered.into_iter().flatten().collect())
    }

    pub(super) fn update(
        &mut self,
        model: &mut LanguageModel,
        adamw: AdamW,
        scale: &(impl Fn(f64) -> Option<f32> + Sync),
    ) -> Result<Vec<Reduced>> {
        let layout = model.decoder.layout();
        self.on_every(|rank| rank.update(layout, adamw, scale))
    }

    pub(super) fn score(
        &mut self,
        _: &LanguageModel,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let scores = self.on_every(|rank| {
            let (_, own) = share(rows, rank.exchange.rank(), rank.exchange.size());
            rank.score(own, temperature)
        })?;
        Ok(scores.into_iter().flatten().collect())
    }

    /// The parameters on the GPUs are the trained ones; of `model` it is the tokenizer and the shape that
    /// count.
    pub(super) fn generator<'r>(&'r mut self, model: &'r LanguageModel) -> Generator<'r> {
        Generator::on_gpus(model, self.ranks.iter_mut().map(|rank| &mut rank.model).collect())
    }

    pub(super) fn fetch_params(&mut self, params: &mut [f32]) -> Result<()> {
        let pieces = self.shards.split_mut(params);
        let fetch = |(rank, pieces): &mut (&mut Rank, Vec<&mut [f32]>)| {
            let transfer = &mut rank.model.split().1.tools.transfer;
            rank.shard.fetch_params(rank.exchange.stream(), transfer, pieces)
        };
        let workers = self.ranks.iter_mut().zip(pieces).collect();
        dist::on_every_rank(workers, |(rank, _)| &rank.exchange, fetch)?;
        Ok(())
    }

    pub(super) fn moments(&mut self) -> Result<Vec<Moments<'_>>> {
        let moments = self.on_every(|rank| {
            let transfer = &mut rank.model.split().1.tools.transfer;
            rank.shard.moments(rank.exchange.stream(), transfer)
        })?;
        Ok(moments.into_iter().map(|both| both.map(Cow::Owned)).collect())
    }

    pub(super) fn fill_moments<T>(
        &mut self,
        fill: impl FnOnce(Vec<[&mut [f32]; 2]>) -> Result<T>,
    ) -> Result<T> {
        let lens = (0..self.ranks.len()).map(|rank| self.shards.shard_len(rank));
        let mut by_rank: Vec<[Vec<f32>; 2]> =
            lens.map(|len| [vec![0.0; len], vec![0.0; len]]).collect();
        let slices = by_rank.iter_mut().map(|both| both.each_mut().map(Vec::as_mut_slice));
        let filled = fill(slices.collect())?;
        self.on_every(|rank| {
            let moments = by_rank[rank.exchange.rank()].each_ref().map(Vec::as_slice);
            let transfer = &mut rank.model.split().1.tools.transfer;
            rank.shard.set_moments(rank.exchange.stream(), transfer, moments)
        })?;
        Ok(filled)
    }

    /// What a phase of the arena took went with the phase.
    pub(super) fn release_memory(&mut self) {}

    fn on_every<T: Send>(
        &mut self,
        work: impl Fn(&mut Rank) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let ranks = self.ranks.iter_mut().collect();
        dist::on_every_rank(ranks, |rank: &&mut Rank| &rank.exchange, |rank| work(rank))
    }
}

impl Rank {
    /// Adds the gradients of `batches`, of which the first is number `first` of the step, in as many
    /// rounds as every rank makes, and returns what the objective gathered in each.
    fn accumulate<M: Default>(
        &mut self,
        (first, batches): (usize, &[MicroBatch]),
        rounds: usize,
        temperature: f32,
        objective: &impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M),
    ) -> Result<Vec<M>> {
        let Self { model, shard, exchange, execution, gpus } = self;
        let mut of_batches = Vec::new();
        let (mut training, mut gradients) =
            model.training_with_gradients(gpus.largest, execution.recompute)?;
        for (index, MicroBatch { packed, targets }) in batches.iter().enumerate() {
            let mut gathered = M::default();
            training.forward_backward(
                packed,
                targets,
                temperature,
                &mut |at, scores, gradients| {
                    let chunk = Chunk { batch: first + index, first: at, scores };
                    objective(chunk, gradients, &mut gathered);
                },
                gradients.slice_mut(),
                &mut |range, gradients, stream| shard.take(exchange, range, gradients, stream),
            )?;
            of_batches.push(gathered);
        }
        for _without_a_batch in batches.len()..rounds {
            let all = 0..gradients.len();
            training.stream().fill(gradients.slice_mut(), 0)?;
            shard.take(exchange, all, gradients.slice_mut(), training.stream())?;
        }
        Ok(of_batches)
    }

    /// Updates with the summed gradients and forgets them.
    fn update(
        &mut self,
        layout: &Layout,
        adamw: AdamW,
        scale: &impl Fn(f64) -> Option<f32>,
    ) -> Result<Reduced> {
        let Self { model, shard, exchange, .. } = self;
        let (params, gpu) = model.split();
        exchange.follow(&gpu.stream)?;
        let reduced = shard.reduce(exchange, &mut gpu.tools.transfer, layout)?;
        if let Some(gradient_scale) = scale(reduced.norm) {
            let adamw = on_device(AdamW { gradient_scale, ..adamw });
            shard.step(exchange, &gpu.tools.kernels.adamw, adamw, params)?;
        }
        shard.clear(exchange)?;
        exchange.precede(&gpu.stream)?;
        Ok(reduced)
    }

    /// Log-probabilities of the targets of each row.
    fn score(&mut self, rows: &[MicroBatch], temperature: f32) -> Result<Vec<Vec<f32>>> {
        let mut training = self.model.training(self.gpus.largest, self.execution.recompute)?;
        let mut of_row = |row: &MicroBatch| {
            let scores = training.score(&row.packed, &row.targets, temperature)?;
            Ok(scores.iter().map(|score| score.logp).collect())
        };
        rows.iter().map(&mut of_row).collect()
    }
}

fn half_format(precision: Precision) -> HalfFormat {
    match precision {
        Precision::Fp16 => HalfFormat::Fp16,
        // f32 is refused where settings enter.
        Precision::Bf16 | Precision::F32 => HalfFormat::Bf16,
    }
}

fn on_device(adamw: AdamW) -> DeviceAdamW {
    let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale, step } = adamw;
    DeviceAdamW { learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale, step }
}
