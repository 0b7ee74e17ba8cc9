//! This file holds one rank's share of the optimizer, as a run has it on a GPU.
//!
//! Contract: it has the memory and the kernels of a rank of a run, for one range of the parameters,
//! and exchanges nothing. A run's own shard is not used here, because it belongs to a run: it takes
//! a checkpoint's weights from the host and communicates in every call.

use crate::cuda::kernels::adamw::{DecayRange, Shard, StepInputs};
use crate::cuda::kernels::flat::Flat;
use crate::cuda::{Arena, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, Half, Stream};
use crate::ops::adamw::AdamW;
use crate::ranks::piece;
use anyhow::Result;
use std::ops::Range;

/// Every measurement uses these settings of AdamW.
pub(crate) const ADAMW: AdamW = AdamW {
    learning_rate: 1e-6,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    gradient_scale: 1.0,
    step: 1,
};

/// The first rank's master weights, moments and sums of gradients.
pub(crate) struct Share {
    own: Range<usize>,
    master: DeviceBuffer<'static, f32>,
    first_moments: DeviceBuffer<'static, f32>,
    second_moments: DeviceBuffer<'static, f32>,
    sums: DeviceBuffer<'static, f32>,
    decays: DeviceBuffer<'static, DecayRange>,
    partials: DeviceBuffer<'static, f64>,
    total: DeviceBuffer<'static, f64>,
    not_finite: DeviceBuffer<'static, u32>,
    /// The share has these kernels of its own, so that it can add gradients while a training phase
    /// borrows the GPU's.
    flat: Flat,
}

impl Share {
    /// Takes memory for the share of one of `world` ranks in a model of `parameters` elements, and
    /// zeros it.
    pub(crate) fn new(gpu: &mut Gpu, parameters: usize, world: usize) -> Result<Self> {
        let flat = Flat::load(&gpu.device)?;
        let mut share = Self::take(&mut gpu.arena, piece(parameters, world, 0), flat)?;
        let all = DecayRange { start: 0, end: share.own.len() as u64 };
        let (stream, transfer) = (&gpu.stream, &mut gpu.tools.transfer);
        transfer.upload(stream, &[all], share.decays.slice_mut())?;
        let Self { master, first_moments, second_moments, sums, .. } = &mut share;
        for buffer in [master, first_moments, second_moments, sums] {
            stream.fill(buffer.slice_mut(), 0)?;
        }
        Ok(share)
    }

    fn take(arena: &mut Arena, own: Range<usize>, flat: Flat) -> Result<Self> {
        let mut floats = |name| arena.lasting::<f32>(name, own.len());
        Ok(Self {
            master: floats("master weights")?,
            first_moments: floats("first moments")?,
            second_moments: floats("second moments")?,
            sums: floats("sums of gradients")?,
            decays: arena.lasting("decays", 1)?,
            partials: arena.lasting("sums of squares", Flat::square_parts(own.len()))?,
            total: arena.lasting("sum of squares", 1)?,
            not_finite: arena.lasting("a flag", 1)?,
            own,
            flat,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.own.len()
    }

    /// Adds its part of the `gradients` of all parameters to the sums.
    pub(crate) fn add(&mut self, stream: &Stream, gradients: DeviceSlice<'_, Half>) -> Result<()> {
        self.flat.accumulate(stream, gradients.range(self.own.clone()), self.sums.slice_mut())
    }

    /// Computes the norm of the sums, updates its part of the `parameters`, and zeros the sums.
    pub(crate) fn step(
        &mut self,
        gpu: &Gpu,
        mut parameters: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        self.flat.sum_of_squares(
            &gpu.stream,
            [self.sums.slice()],
            self.partials.slice_mut(),
            self.total.slice_mut(),
            self.not_finite.slice_mut(),
        )?;
        let mut shard = Shard {
            start: self.own.start as u64,
            master: self.master.slice_mut(),
            first_moments: self.first_moments.slice_mut(),
            second_moments: self.second_moments.slice_mut(),
            parameters: parameters.range(self.own.clone()),
        };
        let inputs = StepInputs {
            gradients: self.sums.slice(),
            decays: self.decays.slice(),
            not_finite: self.not_finite.slice(),
        };
        gpu.tools.kernels.adamw.step(&gpu.stream, ADAMW, &mut shard, inputs, 0)?;
        gpu.stream.fill(self.sums.slice_mut(), 0)
    }
}
