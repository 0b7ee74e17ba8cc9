//! A rank on a GPU of this process.
//!
//! Contract: as of [`super::Ranks`], for one rank; collectives wait for all the others.

use super::exchange::Exchange;
use super::shard::Shard;
use super::ties::Ties;
use crate::cuda::nccl::UniqueId;
use crate::cuda::{Gpu, Half};
use crate::model::cuda::{DeviceModel, Training, half_format};
use crate::model::{Decoder, Layout, ModelConfig, Recompute, ScoreGradient};
use crate::ops::adamw::AdamW;
use crate::ranks::Member;
use crate::ranks::Portion;
use crate::ranks::Shards;
use crate::trainer::Chunk;
use crate::trainer::MicroBatch;
use crate::trainer::device::Gpus;
use crate::trainer::workers::{GPU_BUCKET, Reduced};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// What every rank is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The model's `config.json`.
    pub(crate) model: String,
    /// Ranks of all nodes.
    pub(crate) size: usize,
    pub(crate) gpus: Gpus,
    pub(crate) recompute: Recompute,
    /// Elements with weight decay.
    pub(crate) decayed: Vec<Range<usize>>,
}

impl Spec {
    pub(crate) fn decoder(&self) -> Result<Decoder> {
        Ok(Decoder::new(ModelConfig::from_json(&self.model)?))
    }

    /// How flat buffers in `layout` are divided.
    pub(crate) fn shards(&self, layout: &Layout) -> Shards {
        Shards::new(layout.len, self.size, GPU_BUCKET)
    }
}

/// What a rank owns.
pub(crate) struct Local {
    pub(crate) model: DeviceModel,
    shard: Shard,
    exchange: Exchange,
    /// Its pieces of the reference model's parameters, on the host; empty where none is kept.
    reference: Vec<Half>,
    layout: Layout,
    shards: Shards,
    spec: Spec,
}

impl Local {
    /// Rank `rank`, on the GPU `ordinal`, which brings its pieces of the parameters by portion. Calls
    /// `ready` before it joins the others, which cannot be called off.
    pub(crate) fn start(
        (ordinal, rank): (usize, usize),
        spec: &Spec,
        pieces: &[&[f32]],
        (id, ties): (Option<UniqueId>, &Arc<Ties>),
        ready: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let decoder = spec.decoder()?;
        let layout = decoder.layout().clone();
        let shards = spec.shards(&layout);
        let mut gpu = Gpu::open(ordinal, half_format(spec.gpus.precision), None)?;
        let (config, decayed) = (spec.gpus.config, &spec.decayed);
        let shard = Shard::new(&mut gpu, (shards, rank), config, (&layout, pieces), decayed)?;
        let device = gpu.device.clone();
        let mut model = DeviceModel::new(gpu, decoder, spec.gpus.largest.longest)?;
        for (Portion { own, .. }, piece) in shards.portions(rank).iter().zip(pieces) {
            model.upload(own.start, piece)?;
        }
        // What an update lacks is said now, not after the first rollouts.
        drop(model.training_with_gradients(spec.gpus.largest, spec.recompute)?);
        ready()?;
        let exchange = Exchange::join(&device, id, (rank, spec.size), ties)?;
        let (params, gpu) = model.split();
        exchange.gather(shards, params, &gpu.stream)?;
        let (reference, spec) = (Vec::new(), spec.clone());
        Ok(Self { model, shard, exchange, reference, layout, shards, spec })
    }

    /// What it has of every bucket.
    pub(crate) fn portions(&self) -> Vec<Portion> {
        self.shards.portions(self.rank())
    }

    /// The most bytes that were ever taken at once of the GPU's memory.
    pub(crate) fn peak_bytes(&mut self) -> usize {
        self.model.split().1.arena.peak_bytes()
    }

    /// Adds the gradients of `batches`, of which the first is number `first` of the step, in as many
    /// rounds as every rank makes, and returns what the objective gathered in each.
    pub(crate) fn accumulate<M: Default>(
        &mut self,
        (first, batches): (usize, &[MicroBatch]),
        rounds: usize,
        temperature: f32,
        objective: &impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M),
    ) -> Result<Vec<M>> {
        let Self { model, shard, exchange, spec, .. } = self;
        let mut of_batches = Vec::new();
        let (mut training, mut gradients) =
            model.training_with_gradients(spec.gpus.largest, spec.recompute)?;
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

    /// Sums the gradients over the ranks.
    pub(crate) fn reduce(&mut self) -> Result<Reduced> {
        let Self { model, shard, exchange, layout, .. } = self;
        let (_, gpu) = model.split();
        exchange.follow(&gpu.stream)?;
        shard.reduce(exchange, &mut gpu.tools.transfer, layout)
    }

    /// Updates with the summed gradients, if it has to, and forgets them.
    pub(crate) fn step(&mut self, adamw: Option<AdamW>) -> Result<()> {
        let Self { model, shard, exchange, .. } = self;
        let (params, gpu) = model.split();
        if let Some(adamw) = adamw {
            shard.step(exchange, &gpu.tools.kernels.adamw, adamw, params)?;
        }
        shard.clear(exchange)?;
        exchange.precede(&gpu.stream)
    }

    /// Log-probabilities of the targets of each row.
    pub(crate) fn score(&mut self, rows: &[MicroBatch], temperature: f32) -> Result<Vec<Vec<f32>>> {
        let training = self.model.training(self.spec.gpus.largest, self.spec.recompute)?;
        score(training, rows, temperature)
    }

    /// Keeps its `pieces` of a reference model's parameters.
    pub(crate) fn keep_reference(&mut self, pieces: &[f32]) {
        let format = half_format(self.spec.gpus.precision);
        self.reference = pieces.iter().map(|&x| format.narrow(x)).collect();
    }

    /// Log-probabilities under the reference model, whose parameters all ranks bring together where
    /// gradients are otherwise.
    pub(crate) fn score_reference(
        &mut self,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let Self { model, exchange, reference, shards, spec, .. } = self;
        let (mut training, mut params) =
            model.training_with_gradients(spec.gpus.largest, spec.recompute)?;
        for Portion { own, in_shard, .. } in shards.portions(exchange.rank()) {
            training.upload(&reference[in_shard], params.slice_mut().into_range(own))?;
        }
        exchange.gather(*shards, params.slice_mut(), training.stream())?;
        score(training.with_params(params.slice()), rows, temperature)
    }

    /// Copies its master weights to its pieces of the parameters, by portion.
    pub(crate) fn fetch_params(&mut self, pieces: &mut [&mut [f32]]) -> Result<()> {
        let transfer = &mut self.model.split().1.tools.transfer;
        self.shard.fetch_params(self.exchange.stream(), transfer, pieces)
    }

    /// The moments of its shard.
    pub(crate) fn moments(&mut self) -> Result<[Vec<f32>; 2]> {
        let transfer = &mut self.model.split().1.tools.transfer;
        self.shard.moments(self.exchange.stream(), transfer)
    }

    /// Replaces the moments of its shard.
    pub(crate) fn set_moments(&mut self, moments: [&[f32]; 2]) -> Result<()> {
        let transfer = &mut self.model.split().1.tools.transfer;
        self.shard.set_moments(self.exchange.stream(), transfer, moments)
    }
}

impl Member for Local {
    fn rank(&self) -> usize {
        self.exchange.rank()
    }

    fn size(&self) -> usize {
        self.exchange.size()
    }

    fn abort(&self) {
        self.exchange.abort();
    }
}

fn score(
    mut training: Training<'_>,
    rows: &[MicroBatch],
    temperature: f32,
) -> Result<Vec<Vec<f32>>> {
    let mut of_row = |row: &MicroBatch| {
        let scores = training.score(&row.packed, &row.targets, temperature)?;
        Ok(scores.iter().map(|score| score.logp).collect())
    };
    rows.iter().map(&mut of_row).collect()
}
