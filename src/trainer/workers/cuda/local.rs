//! A rank on a GPU of this process.

use super::exchange::{Exchange, Invitation};
use super::rank::Rank;
use super::shard::Shard;
use super::spec::Spec;
use crate::cuda::{Gpu, Half};
use crate::engine::Sampler;
use crate::model::Layout;
use crate::model::cuda::{DeviceModel, half_format};
use crate::objective::{Chunk, Objective};
use crate::ops::adamw::AdamW;
use crate::ranks::{Member, Portion, Shards};
use crate::trainer::micro_batch::MicroBatch;
use crate::trainer::workers::{Parameters, Reduced, Share};
use anyhow::Result;

pub(crate) struct Local {
    pub(crate) model: DeviceModel,
    shard: Shard,
    exchange: Exchange,
    /// The rank's shard of the reference model's parameters, on the host; empty if none is kept.
    reference: Vec<Half>,
    layout: Layout,
    shards: Shards,
    spec: Spec,
}

impl Local {
    /// Starts on the GPU `ordinal` with the rank's pieces of the parameters, by portion. Calls `ready`
    /// before it joins the others, since joining cannot be called off.
    pub(crate) fn start(
        ordinal: usize,
        invitation: Invitation,
        spec: &Spec,
        pieces: &[&[f32]],
        ready: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let decoder = spec.decoder()?;
        let layout = decoder.layout().clone();
        let shards = spec.shards(&layout);
        let portions = shards.portions(invitation.rank);
        let mut gpu = Gpu::open(ordinal, half_format(spec.gpus.precision), None)?;
        let starts = portions.iter().map(|portion| portion.own.start).collect::<Vec<_>>();
        let shard =
            Shard::new(&mut gpu, &layout, portions, pieces, &spec.decayed, spec.gpus.config)?;
        let device = gpu.device.clone();
        let mut model = DeviceModel::new(gpu, decoder, spec.gpus.largest.longest)?;
        for (start, piece) in starts.into_iter().zip(pieces) {
            model.upload(start, piece)?;
        }
        // An update that does not fit into memory is refused now, not after the first rollouts.
        drop(model.training_with_gradients(spec.gpus.largest, spec.recompute)?);
        ready()?;
        let exchange = Exchange::join(&device, invitation)?;
        let (params, gpu) = model.split();
        exchange.gather(shards, params, &gpu.stream)?;
        let (reference, spec) = (Vec::new(), spec.clone());
        Ok(Self { model, shard, exchange, reference, layout, shards, spec })
    }

    /// Returns the rank's part of every bucket.
    pub(crate) fn portions(&self) -> Vec<Portion> {
        self.shards.portions(self.rank())
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

impl Rank for Local {
    fn accumulate(
        &mut self,
        share: Share<'_>,
        rounds: usize,
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()> {
        let Self { model, shard, exchange, spec, .. } = self;
        let (mut training, mut gradients) =
            model.training_with_gradients(spec.gpus.largest, spec.recompute)?;
        for (batch, MicroBatch { packed, targets }) in share.numbered() {
            training.forward_backward(
                packed,
                targets,
                temperature,
                &mut |first, scores, gradients| {
                    objective.learn(Chunk { batch, first, scores }, gradients);
                },
                gradients.slice_mut(),
                &mut |range, gradients, stream| shard.take(exchange, range, gradients, stream),
            )?;
        }
        for _without_a_batch in share.batches.len()..rounds {
            let all = 0..gradients.len();
            training.stream().fill(gradients.slice_mut(), 0)?;
            shard.take(exchange, all, gradients.slice_mut(), training.stream())?;
        }
        Ok(())
    }

    fn reduce(&mut self) -> Result<Reduced> {
        let Self { model, shard, exchange, layout, .. } = self;
        let (_, gpu) = model.split();
        exchange.follow(&gpu.stream)?;
        shard.reduce(exchange, &mut gpu.tools.transfer, layout)
    }

    fn step(&mut self, adamw: Option<AdamW>) -> Result<()> {
        let Self { model, shard, exchange, .. } = self;
        let (params, gpu) = model.split();
        if let Some(adamw) = adamw {
            shard.step(exchange, &gpu.tools.kernels.adamw, adamw, params)?;
        }
        shard.clear(exchange)?;
        exchange.precede(&gpu.stream)
    }

    /// The parameters of the reference model, which all ranks gather, lie where gradients otherwise do.
    fn score(
        &mut self,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let Self { model, exchange, reference, shards, spec, .. } = self;
        let (mut training, mut gathered);
        match parameters {
            Parameters::Trained => {
                training = model.training(spec.gpus.largest, spec.recompute)?;
            }
            Parameters::Reference => {
                (training, gathered) =
                    model.training_with_gradients(spec.gpus.largest, spec.recompute)?;
                for Portion { own, in_shard, .. } in shards.portions(exchange.rank()) {
                    training.upload(&reference[in_shard], gathered.slice_mut().into_range(own))?;
                }
                exchange.gather(*shards, gathered.slice_mut(), training.stream())?;
                training = training.with_params(gathered.slice());
            }
        }
        let mut score_row = |row: &MicroBatch| {
            let scores = training.score(&row.packed, &row.targets, temperature)?;
            Ok(scores.iter().map(|score| score.logp).collect())
        };
        rows.iter().map(&mut score_row).collect()
    }

    fn keep_reference(&mut self, shard: &[f32]) -> Result<()> {
        let format = half_format(self.spec.gpus.precision);
        self.reference = shard.iter().map(|&x| format.narrow(x)).collect();
        Ok(())
    }

    fn sampler(&mut self) -> &mut dyn Sampler {
        &mut self.model
    }

    fn fetch_params(&mut self, pieces: &mut [&mut [f32]]) -> Result<()> {
        let transfer = &mut self.model.split().1.tools.transfer;
        self.shard.fetch_params(self.exchange.stream(), transfer, pieces)
    }

    fn moments(&mut self) -> Result<[Vec<f32>; 2]> {
        let transfer = &mut self.model.split().1.tools.transfer;
        self.shard.moments(self.exchange.stream(), transfer)
    }

    fn set_moments(&mut self, moments: [&[f32]; 2]) -> Result<()> {
        let transfer = &mut self.model.split().1.tools.transfer;
        self.shard.set_moments(self.exchange.stream(), transfer, moments)
    }

    fn peak_bytes(&mut self) -> Result<usize> {
        Ok(self.model.split().1.arena.peak_bytes())
    }
}
