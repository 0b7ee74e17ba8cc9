//! This module launches the kernels of `kernels/`, with one file for each source.
//!
//! Contract: a launcher checks that its slices fit together, chooses grid and block, and queues the
//! kernel on a stream. The sources say what a kernel computes and how its arguments are laid out.
//! Every row has a multiple of eight elements, and a few kernels ask for more; a violation is an
//! error of the program and panics. Everything here is deterministic. These files use nothing of
//! this crate but `crate::cuda`, so that `tests/kernels` can compile them against an emulation of
//! the device.

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
use crate::cuda::module::{Fatbin, Function, Module};
use crate::cuda::sizes::VECTOR;
use anyhow::Result;
use bytemuck::Pod;
use std::sync::Arc;

#[derive(Debug)]
pub struct Kernels {
    pub adamw: adamw::AdamWKernels,
    /// It computes attention for training, where cuDNN is missing.
    pub attention: attention::Attention,
    pub column_sums: column_sums::ColumnSums,
    /// It attends from new tokens to the key-value cache.
    pub decode: decode::DecodeAttention,
    pub embedding: embedding::Embedding,
    pub flat: flat::Flat,
    pub head_norm: head_norm::HeadNorm,
    /// It scores targets.
    pub logprob: logprob::LogProb,
    /// It attends from the tokens of prompts to the key-value cache.
    pub prompt: prompt::PromptAttention,
    pub repetition: repetition::Repetition,
    pub rms_norm: rms_norm::RmsNorm,
    pub rope: rope::RopeKernels,
    pub sample: sample::Sampler,
    pub swiglu: swiglu::SwiGlu,
}

impl Kernels {
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

/// Returns the functions `names` of one compiled file.
fn functions<const N: usize>(
    device: &Arc<Device>,
    fatbin: Fatbin,
    names: [&'static str; N],
) -> Result<[Function; N]> {
    let module = Module::load(device, fatbin)?;
    let functions = names.into_iter().map(|name| module.function(name));
    let functions = functions.collect::<Result<Vec<_>>>()?;
    functions.try_into().map_err(|_| anyhow::Error::msg("as many functions as names"))
}

/// A number format of gradients, logits and products: f32 or 16 bits.
pub trait Float: Pod {
    /// The format is f32 if true, else 16 bits.
    const IS_WIDE: bool;
}

impl Float for Half {
    const IS_WIDE: bool = false;
}

impl Float for f32 {
    const IS_WIDE: bool = true;
}

/// A kernel that exists for 16-bit numbers and for f32.
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

/// Converts a size to the integer that kernels take.
fn int(size: usize) -> i32 {
    i32::try_from(size).expect("a size below 2^31")
}

/// Converts a number of blocks to what a launch takes.
fn blocks(count: usize) -> u32 {
    u32::try_from(count).expect("a grid below 2^31 blocks")
}

/// Returns how many rows of `width` elements `len` elements are.
fn rows_of(len: usize, width: usize) -> usize {
    assert!(width > 0 && width.is_multiple_of(VECTOR), "rows of {width}: a multiple of {VECTOR}");
    assert!(len.is_multiple_of(width), "{len} elements are whole rows of {width}");
    len / width
}
