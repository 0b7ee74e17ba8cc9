//! A model opened to take its weights elsewhere: to GPUs, into panels, into a trainer's buffer, into a file.
//!
//! The weights stay in their mapped files until [`StoredModel::read`] goes through them part by part and
//! gives the pages of each part back. So a model of any size takes little memory of the host.

use super::ends::stop_ids;
use super::gguf::Gguf;
use super::hub::{self, Needs};
use super::place::ModelPlace;
use super::shards::Shards;
use super::weight_files::WeightFiles;
use super::{derived, hf};
use crate::model::{Decoder, ModelConfig};
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// A model whose weights are still in their files.
pub struct StoredModel {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    pub(crate) weights: WeightFiles,
}

impl StoredModel {
    /// Opens a directory in Hugging Face layout, a GGUF file, or a model by its name ([`super::hub`]).
    pub fn open<'a>(model: impl Into<ModelPlace<'a>>) -> Result<Self> {
        let place = model.into();
        let path = &hub::resolve(place.model, Needs::Model)?;
        let (decoder, weights) = if path.is_file() {
            let gguf = Gguf::open(path)?;
            let decoder = Decoder::new(gguf.config()?);
            let weights = gguf.weights(&decoder)?;
            (decoder, WeightFiles::Gguf(weights))
        } else {
            let decoder = Decoder::new(derived::read_config(path)?);
            let shards = Shards::open(path, &decoder.layout().tensors)?;
            (decoder, WeightFiles::Safetensors(shards))
        };
        let tokenizer = place.tokenizer_at(path)?;
        tokenizer.check_fits(decoder.config().vocab_size)?;
        Ok(Self { decoder, tokenizer, weights })
    }

    /// Reads the shape of such a model, for which its configuration is enough.
    pub(crate) fn shape(model: ModelPlace<'_>) -> Result<ModelConfig> {
        let path = &hub::resolve(model.model, Needs::Config)?;
        if path.is_file() { Gguf::open(path)?.config() } else { derived::read_config(path) }
    }

    /// Returns the ids of the tokens that end a response, from the model's config and its generation
    /// config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// Passes the weights to `take`, in f32 and in the order of the layout, part by part, each with the
    /// index of its first element. Refuses weights that are not finite.
    pub fn read(&self, take: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        hf::read_weights(&self.weights, &self.decoder.layout().tensors, hf::PART, take)
    }
}
