//! GGUF, the file format of llama.cpp: models of our families, and what their metadata says.
//!
//! Contract: candle reads the container, and turns blocks of quantized weights into numbers. What is read is checked before anything is allocated for it: a file that is damaged, or that could
//! not be computed exactly as llama.cpp means it, is refused in one line. Weights are read from the mapped
//! file; a tensor of floats is given as it is stored, one of quantized blocks becomes f16, so that a model
//! takes two bytes a weight in memory. Left out: writing ([`super::convert`]), files in several parts, and quantizations that candle does
//! not know (those whose names begin with IQ).

pub(crate) mod architecture;
mod header;
mod metadata;
pub(crate) mod names;
pub(crate) mod vocabulary;
mod weights;

pub(crate) use weights::GgufWeights;

use crate::model::{Decoder, ModelConfig};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use header::Header;
use std::path::Path;

/// A GGUF file, opened and checked.
pub(crate) struct Gguf(Header);

impl Gguf {
    /// Maps a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Header::read(path).map(Self)
    }

    /// Reads the shape of the model.
    pub(crate) fn config(&self) -> Result<ModelConfig> {
        let json = architecture::config_json(&self.0)?;
        ModelConfig::from_json(&json).with_context(|| self.0.path.display().to_string())
    }

    /// Builds the tokenizer in the file, or opens that of the directory `other`, whose tokens have to be the
    /// file's.
    pub(crate) fn tokenizer(&self, other: Option<&Path>) -> Result<Tokenizer> {
        match other {
            None => vocabulary::tokenizer(&self.0.path, &self.0.metadata),
            Some(dir) => {
                let tokenizer = Tokenizer::load(dir)?;
                vocabulary::check_agrees(&self.0.metadata, &tokenizer)?;
                Ok(tokenizer)
            }
        }
    }

    /// Finds the weights of the decoder, which is made of [`Gguf::config`].
    pub(crate) fn weights(self, decoder: &Decoder) -> Result<GgufWeights> {
        GgufWeights::new(self.0, decoder)
    }
}
