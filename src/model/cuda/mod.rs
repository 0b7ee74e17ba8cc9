//! The decoder on a GPU: its parameters in 16 bits, and the phases that compute with them.
//!
//! Contract: the twin of [`Decoder`] and its workspaces, in the same flat layout. Parameters,
//! activations and their gradients are [`Half`], sums and statistics f32. What lasts (parameters, rotary
//! table) is taken when a model is made; a phase ([`Training`]) takes the rest of the arena in turn with
//! others, so only one of them exists at a time, and nothing is allocated while it works. All work is
//! queued on the model's stream. The same inputs give the same bits. Left out: families of sequences
//! ([`Packed::cu_families`](super::Packed)), and heads of other sizes than the kernels have.
//! Not yet run on a GPU.

mod attention;
mod batch;
mod buffers;
mod cache;
mod generation;
mod head;
mod layer;
mod matrix;
mod training;

use super::{BatchSize, Decoder, ModelConfig, Precision, Recompute};
use crate::base::error::usage;
use crate::cuda::kernels::decode::{DIMS, MOST_GROUP};
use crate::cuda::kernels::rms_norm::{MOST_WIDTH, Norm};
use crate::cuda::kernels::rope::{Angles, Heads};
use crate::cuda::kernels::sample::MOST_CHOICES;
use crate::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, Half, HalfFormat};
use anyhow::Result;
use rayon::prelude::*;
use std::ops::Range;

pub use super::gpu_sizes::{GenerationSize, TrainingMemory};
use attention::PlanStore;
pub use generation::Generation;
pub use training::{Finished, Training};

/// Widths are multiples of this many elements: a vector access of the kernels.
const VECTOR: usize = 8;

/// Parameters that are converted at a time on their way to the device.
const UPLOAD: usize = 8 << 20;

/// A decoder with its parameters on one GPU.
pub struct DeviceModel {
    gpu: Gpu,
    decoder: Decoder,
    params: DeviceBuffer<'static, Half>,
    rope: RopeTable,
    plans: PlanStore,
}

/// Cosines and sines of every position, `[positions, head_dim / 2]` each.
pub(crate) struct RopeTable {
    cosines: DeviceBuffer<'static, f32>,
    sines: DeviceBuffer<'static, f32>,
    positions: usize,
}

/// The parameters as operations read them.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    params: DeviceSlice<'a, Half>,
    /// Of every norm.
    eps: f32,
}

impl DeviceModel {
    /// Refuses, as a mistake of the user, a shape that the kernels do not compute.
    pub fn check(config: &ModelConfig) -> Result<()> {
        let ModelConfig { num_heads, num_kv_heads, head_dim, hidden_size, vocab_size, .. } = config;
        let refuse = |what: String| Err(usage(format!("device cuda: {what}")));
        if !DIMS.contains(head_dim) {
            return refuse(format!("heads of {head_dim} elements; there are kernels for {DIMS:?}"));
        }
        if num_heads / num_kv_heads > MOST_GROUP {
            return refuse(format!(
                "{num_heads} query heads on {num_kv_heads} key heads: at most {MOST_GROUP} share one"
            ));
        }
        if *hidden_size > MOST_WIDTH {
            return refuse(format!("`hidden_size` {hidden_size}: at most {MOST_WIDTH}"));
        }
        if *vocab_size > MOST_CHOICES {
            return refuse(format!("`vocab_size` {vocab_size}: at most {MOST_CHOICES}"));
        }
        for (key, width) in [
            ("hidden_size", hidden_size),
            ("intermediate_size", &config.intermediate_size),
            ("vocab_size", vocab_size),
        ] {
            if !width.is_multiple_of(VECTOR) {
                return refuse(format!("`{key}` {width} is not a multiple of {VECTOR}"));
            }
        }
        Ok(())
    }

    /// Takes room for the parameters of `decoder` and for positions below `max_positions`; the
    /// parameters are undefined until uploaded.
    pub fn new(mut gpu: Gpu, decoder: Decoder, max_positions: usize) -> Result<Self> {
        Self::check(decoder.config())?;
        let params = gpu.arena.lasting("parameters", decoder.layout().len)?;
        let rope = RopeTable::new(&mut gpu, &decoder, max_positions.max(1))?;
        Ok(Self { gpu, decoder, params, rope, plans: PlanStore::default() })
    }

    /// Replaces the parameters from element `at` of the layout on, rounded to the GPU's format.
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

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The parameters, flat in the layout, and the GPU they are on: for the optimizer, and to take
    /// what else lasts.
    pub fn split(&mut self) -> (DeviceSliceMut<'_, Half>, &mut Gpu) {
        (self.params.slice_mut(), &mut self.gpu)
    }

    /// Begins a phase of scoring and training on batches of at most `size`. What the arena lacks for
    /// it is an error; [`TrainingMemory::new`] says before what it takes.
    pub fn training(&mut self, size: BatchSize, recompute: Recompute) -> Result<Training<'_>> {
        Training::new(self, size, recompute).map(|(training, _)| training)
    }

    /// The same, with room for the gradients of all parameters, which are undefined.
    pub fn training_with_gradients(
        &mut self,
        size: BatchSize,
        recompute: Recompute,
    ) -> Result<(Training<'_>, DeviceBuffer<'_, Half>)> {
        let len = self.decoder.layout().len;
        let (training, mut phase) = Training::new(self, size, recompute)?;
        Ok((training, phase.take("gradients", len)?))
    }

    /// Begins a phase of generation, with passes of at most `size` and a cache as large as it, or
    /// smaller where the arena has no room. What it lacks for the rest is an error.
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

    /// With the position of each row.
    fn angles<'s>(&'s self, positions: DeviceSlice<'s, u32>) -> Angles<'s> {
        Angles { cosines: self.cosines.slice(), sines: self.sines.slice(), positions }
    }
}

impl<'a> Weights<'a> {
    /// The norm whose weight lies in `range`.
    fn norm(self, range: &Range<usize>) -> Norm<'a> {
        Norm { weight: self.params.range(range.clone()), eps: self.eps }
    }
}

/// What [`Half`] is on a GPU that computes in `precision`; f32 is refused where settings enter.
pub fn half_format(precision: Precision) -> HalfFormat {
    match precision {
        Precision::Fp16 => HalfFormat::Fp16,
        Precision::Bf16 | Precision::F32 => HalfFormat::Bf16,
    }
}

/// The heads of a decoder as the kernels take them.
fn heads(decoder: &Decoder) -> Heads {
    let config = decoder.config();
    Heads { queries: config.num_heads, keys: config.num_kv_heads, dim: config.head_dim }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn a_shape_without_kernels_is_a_mistake_that_names_its_key() {
        let check = |key: &str, value: usize| {
            let text = r#"{"model_type": "llama", "vocab_size": 96, "hidden_size": 64,
                "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 16,
                "num_key_value_heads": 4, "head_dim": 32}"#;
            let mut config: serde_json::Value = serde_json::from_str(text).unwrap();
            config[key] = value.into();
            DeviceModel::check(&ModelConfig::from_json(&config.to_string()).unwrap())
        };
        check("num_hidden_layers", 2).unwrap();
        for (key, value, said) in [
            ("head_dim", 40, "heads of 40 elements"),
            ("num_key_value_heads", 1, "16 query heads on 1 key heads"),
            ("hidden_size", 8200, "`hidden_size` 8200: at most 8192"),
            ("hidden_size", 68, "`hidden_size` 68 is not a multiple of 8"),
            ("intermediate_size", 81, "`intermediate_size` 81"),
            ("vocab_size", 97, "`vocab_size` 97 is not"),
            ("vocab_size", 300_000, "`vocab_size` 300000: at most"),
        ] {
            let refusal = check(key, value).unwrap_err();
            assert!(format!("{refusal:#}").contains(said), "{refusal:#}");
            assert_eq!(exit_code(&refusal), 2);
        }
    }
}
