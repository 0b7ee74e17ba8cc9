//! This module computes the decoder on a GPU: it holds the parameters in 16 bits and begins the
//! phases that compute with them.
//!
//! Contract: it is the twin of [`Decoder`] and its workspaces, in the same flat layout. Parameters,
//! activations and their gradients are [`Half`]; sums and statistics are f32. Memory that lasts
//! (parameters, rotary table) is taken when a model is made. A phase ([`Training`], [`Generation`])
//! takes the rest of the arena, so only one phase exists at a time, and nothing is allocated while
//! it works. All work is queued on the model's stream. The same inputs give the same bits. Left
//! out: families of sequences ([`Packed::cu_families`](super::Packed)), and head sizes for which
//! there are no kernels. None of this has run on a GPU yet.

mod attention;
mod batch;
mod buffers;
mod cache;
mod generation;
mod head;
mod layer;
mod matrix;
mod training;

use super::gpu_shape::check_shape;
use super::{BatchSize, Decoder, Precision, Recompute};
use crate::cuda::kernels::rms_norm::Norm;
use crate::cuda::kernels::rope::{Angles, Heads};
use crate::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, Half, HalfFormat};
use anyhow::Result;
use rayon::prelude::*;
use std::ops::Range;

pub use super::gpu_sizes::{GenerationSize, TrainingMemory};
use attention::PlanStore;
pub use generation::Generation;
pub use training::{Finished, Training};

/// So many parameters at a time are converted on their way to the device.
const UPLOAD: usize = 8 << 20;

/// A decoder with its parameters on one GPU.
pub struct DeviceModel {
    gpu: Gpu,
    decoder: Decoder,
    params: DeviceBuffer<'static, Half>,
    rope: RopeTable,
    plans: PlanStore,
}

/// The cosines and sines of every position, each of shape `[positions, head_dim / 2]`.
pub(crate) struct RopeTable {
    cosines: DeviceBuffer<'static, f32>,
    sines: DeviceBuffer<'static, f32>,
    positions: usize,
}

#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    params: DeviceSlice<'a, Half>,
    /// Every norm has this epsilon.
    eps: f32,
}

impl DeviceModel {
    /// Takes memory for the parameters of `decoder` and for the angles of positions below
    /// `max_positions`. The parameters are undefined until they are uploaded.
    pub fn new(mut gpu: Gpu, decoder: Decoder, max_positions: usize) -> Result<Self> {
        check_shape(decoder.config())?;
        let params = gpu.arena.lasting("parameters", decoder.layout().len)?;
        let rope = RopeTable::new(&mut gpu, &decoder, max_positions.max(1))?;
        Ok(Self { gpu, decoder, params, rope, plans: PlanStore::default() })
    }

    /// Replaces the parameters from element `at` of the layout on, rounded to the GPU's 16-bit
    /// format.
    pub fn upload(&mut self, at: usize, params: &[f32]) -> Result<()> {
        let format = self.gpu.device.half_format();
        let mut rounded = vec![Half::ZERO; params.len().min(UPLOAD)];
        for (index, params) in params.chunks(UPLOAD).enumerate() {
            let start = at + index * UPLOAD;
            let rounded = &mut rounded[..params.len()];
            rounded.par_iter_mut().zip(params).for_each(|(to, &from)| *to = format.narrow(from));
            let mut target = self.params.slice_mut();
            let target = target.range(start..start + params.len());
            self.gpu.tools.transfer.upload(&self.gpu.stream, rounded, target)?;
        }
        Ok(())
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Returns the parameters, flat in the layout, and the GPU that they are on. The optimizer
    /// needs both, and takes its own lasting memory from the GPU.
    pub fn split(&mut self) -> (DeviceSliceMut<'_, Half>, &mut Gpu) {
        (self.params.slice_mut(), &mut self.gpu)
    }

    /// Begins a phase of scoring and training on batches of at most `size`. It fails where the
    /// arena has too little memory; [`TrainingMemory::new`] says beforehand how much it takes.
    pub fn training(&mut self, size: BatchSize, recompute: Recompute) -> Result<Training<'_>> {
        Training::new(self, size, recompute).map(|(training, _)| training)
    }

    /// Begins the same phase, with memory for the gradients of all parameters, which are undefined
    /// at first.
    pub fn training_with_gradients(
        &mut self,
        size: BatchSize,
        recompute: Recompute,
    ) -> Result<(Training<'_>, DeviceBuffer<'_, Half>)> {
        let len = self.decoder.layout().len;
        let (training, mut phase) = Training::new(self, size, recompute)?;
        Ok((training, phase.take("gradients", len)?))
    }

    /// Begins a phase of generation, with passes of at most `size` and a cache of that size, or a
    /// smaller one where the arena has no room. It fails where the arena has no room for the rest.
    pub fn generation(&mut self, size: GenerationSize) -> Result<Generation<'_>> {
        Generation::new(self, size)
    }
}

impl RopeTable {
    fn new(gpu: &mut Gpu, decoder: &Decoder, positions: usize) -> Result<Self> {
        let mut rope = decoder.rope();
        rope.grow(positions);
        let (cos, sin) = rope.table();
        let mut table = |name, values: &[f32]| {
            let mut buffer = gpu.arena.lasting(name, values.len())?;
            gpu.tools.transfer.upload(&gpu.stream, values, buffer.slice_mut())?;
            anyhow::Ok(buffer)
        };
        Ok(Self { cosines: table("cosines", cos)?, sines: table("sines", sin)?, positions })
    }

    /// Returns the angles together with the position of each row.
    fn angles<'s>(&'s self, positions: DeviceSlice<'s, u32>) -> Angles<'s> {
        Angles { cosines: self.cosines.slice(), sines: self.sines.slice(), positions }
    }
}

impl<'a> Weights<'a> {
    /// Returns the norm whose weight lies in `range`.
    fn norm(self, range: &Range<usize>) -> Norm<'a> {
        Norm { weight: self.params.range(range.clone()), eps: self.eps }
    }
}

/// Returns the format of [`Half`] for `precision`; settings have refused f32 before.
pub fn half_format(precision: Precision) -> HalfFormat {
    match precision {
        Precision::Fp16 => HalfFormat::Fp16,
        Precision::Bf16 | Precision::F32 => HalfFormat::Bf16,
    }
}

/// Returns the heads of a decoder as kernels take them.
fn heads(decoder: &Decoder) -> Heads {
    let config = decoder.config();
    Heads { queries: config.num_heads, keys: config.num_kv_heads, dim: config.head_dim }
}
