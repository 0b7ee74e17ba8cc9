//! The weights of a model where they are stored: safetensors, or a GGUF file.
//!
//! Contract: whichever it is, tensors go by the names and shapes of [`crate::model::Layout`], each is there,
//! and numbers that are given out are finite. Left out: what a model's files are called ([`super::shards`],
//! [`super::gguf`]).

use super::gguf::GgufWeights;
use super::shards::Shards;
use crate::model::TensorSpec;
use crate::ops::element::Stored;
use anyhow::Result;

/// The files that hold a model's weights, opened and checked.
pub(crate) enum WeightFiles {
    Safetensors(Shards),
    Gguf(GgufWeights),
}

impl WeightFiles {
    /// Returns `len` numbers of a tensor from `first` on, whole rows of it. Refuses numbers that are not finite.
    pub(crate) fn part(&self, spec: &TensorSpec, first: usize, len: usize) -> Result<Stored<'_>> {
        match self {
            Self::Safetensors(shards) => {
                let part = shards.tensor(spec).slice(first, len);
                shards.prepare(spec, part);
                shards.check_finite(spec, part)?;
                Ok(part.into())
            }
            Self::Gguf(weights) => weights.part(spec, first, len),
        }
    }

    /// Gives the pages of such a part back; reading it again would map them again.
    pub(crate) fn release(&self, spec: &TensorSpec, first: usize, len: usize) {
        match self {
            Self::Safetensors(shards) => {
                shards.release(spec, shards.tensor(spec).slice(first, len))
            }
            Self::Gguf(weights) => weights.release(spec),
        }
    }

    /// Returns the bytes of all tensors as [`WeightFiles::part`] gives them.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Safetensors(shards) => shards.bytes(),
            Self::Gguf(weights) => weights.bytes(),
        }
    }
}
