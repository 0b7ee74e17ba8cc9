//! Stands in for `gguf` in a build without candle: such files are known by name only.

use crate::base::error::usage;
use crate::model::{Decoder, ModelConfig, TensorSpec};
use crate::ops::element::Stored;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// A GGUF file, of which none is read.
pub(crate) enum Gguf {}

/// The weights of one.
pub(crate) enum GgufWeights {}

/// Says why a GGUF file is not opened.
pub(crate) fn refusal(path: &Path) -> anyhow::Error {
    usage(format!(
        "{} is a GGUF file, and this binary was built without candle, which reads them: cargo build --release",
        path.display()
    ))
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Err(refusal(path))
    }

    pub(crate) fn config(&self) -> Result<ModelConfig> {
        match *self {}
    }

    pub(crate) fn tokenizer(&self, _other: Option<&Path>) -> Result<Tokenizer> {
        match *self {}
    }

    pub(crate) fn weights(self, _decoder: &Decoder) -> Result<GgufWeights> {
        match self {}
    }
}

impl GgufWeights {
    pub(crate) fn part(&self, _: &TensorSpec, _: usize, _: usize) -> Result<Stored<'_>> {
        match *self {}
    }

    pub(crate) fn release(&self, _: &TensorSpec) {
        match *self {}
    }

    pub(crate) fn bytes(&self) -> u64 {
        match *self {}
    }
}
