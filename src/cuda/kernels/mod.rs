//! Typed launchers of the kernels in `kernels/`: one file a family, beside the source it launches.
//!
//! Contract: a launcher checks that its slices fit together, chooses grid and block, and queues the
//! kernel on a stream. What a kernel computes, and its layouts, is said in its source. Rows are as
//! wide as slices say, so every width is a multiple of eight elements (a few are stricter, and say
//! so); violations are errors of the program and panic. Everything here is deterministic. The files
//! use nothing of this crate but `crate::cuda`, so that `tests/kernels` can compile them against an
//! emulation of the device.

pub mod adamw;
pub mod attention;
pub mod column_sums;
pub mod decode;
pub mod embedding;
pub mod flat;
pub mod head_norm;
pub mod logprob;
pub mod prompt;
pub mod repetition;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod swiglu;

use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::module::{Cubin, Function, Module};
use anyhow::Result;
use bytemuck::Pod;
use std::sync::Arc;

/// All kernels, loaded on one device.
#[derive(Debug)]
pub struct Kernels {
    /// AdamW.
    pub adamw: adamw::AdamWKernels,
    /// Training attention.
    pub attention: attention::Attention,
    /// Sums over rows.
    pub column_sums: column_sums::ColumnSums,
    /// Attention of new tokens over the cache.
    pub decode: decode::DecodeAttention,
    /// Token embedding.
    pub embedding: embedding::Embedding,
    /// Passes over flat buffers.
    pub flat: flat::Flat,
    /// Norms of heads.
    pub head_norm: head_norm::HeadNorm,
    /// Scores of targets.
    pub logprob: logprob::LogProb,
    /// Attention of prompts over the cache.
    pub prompt: prompt::PromptAttention,
    /// Repetition penalty.
    pub repetition: repetition::Repetition,
    /// RMS norm.
    pub rms_norm: rms_norm::RmsNorm,
    /// Rotary positions.
    pub rope: rope::RopeKernels,
    /// Sampling.
    pub sample: sample::Sampler,
    /// SwiGLU.
    pub swiglu: swiglu::SwiGlu,
}

impl Kernels {
    /// Loads every kernel to `device`.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        Ok(Self {
            adamw: adamw::AdamWKernels::load(device)?,
            attention: attention::Attention::load(device)?,
            column_sums: column_sums::ColumnSums::load(device)?,
            decode: decode::DecodeAttention::load(device)?,
            embedding: embedding::Embedding::load(device)?,
            flat: flat::Flat::load(device)?,
            head_norm: head_norm::HeadNorm::load(device)?,
            logprob: logprob::LogProb::load(device)?,
            prompt: prompt::PromptAttention::load(device)?,
            repetition: repetition::Repetition::load(device)?,
            rms_norm: rms_norm::RmsNorm::load(device)?,
            rope: rope::RopeKernels::load(device)?,
            sample: sample::Sampler::load(device)?,
            swiglu: swiglu::SwiGlu::load(device)?,
        })
    }
}

/// The functions of one compiled file.
fn functions<const N: usize>(
    device: &Arc<Device>,
    cubin: Cubin,
    names: [&'static str; N],
) -> Result<[Function; N]> {
    let module = Module::load(device, cubin)?;
    let functions = names.into_iter().map(|name| module.function(name));
    let functions = functions.collect::<Result<Vec<_>>>()?;
    functions.try_into().map_err(|_| anyhow::Error::msg("as many functions as names"))
}

/// A number format of gradients, logits and products that some kernels exist in.
pub trait Float: Pod {
    /// Whether it is fp32, not 16 bits.
    const IS_WIDE: bool;
}

impl Float for Half {
    const IS_WIDE: bool = false;
}

impl Float for f32 {
    const IS_WIDE: bool = true;
}

/// A kernel that exists for numbers of 16 bits and for fp32.
#[derive(Debug)]
struct ByFloat {
    narrow: Function,
    wide: Function,
}

impl ByFloat {
    fn of<T: Float>(&self) -> &Function {
        if T::IS_WIDE { &self.wide } else { &self.narrow }
    }
}

/// Elements of a vector access.
const VECTOR: usize = 8;

/// A size as kernels take it.
fn int(size: usize) -> i32 {
    i32::try_from(size).expect("a size below 2^31")
}

/// A number of blocks.
fn blocks(count: usize) -> u32 {
    u32::try_from(count).expect("a grid below 2^31 blocks")
}

/// How many rows of `width` elements make `len`.
fn rows_of(len: usize, width: usize) -> usize {
    assert!(width > 0 && width.is_multiple_of(VECTOR), "rows of {width}: a multiple of {VECTOR}");
    assert!(len.is_multiple_of(width), "{len} elements are whole rows of {width}");
    len / width
}
