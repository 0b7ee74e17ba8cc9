//! A model directory opened to take its weights elsewhere: to GPUs.
//!
//! The weights stay in their mapped files until [`StoredModel::read`] goes through them part by part and
//! gives the pages of each part back. So a model of any size takes little memory of the host.

use super::hub::{self, Needs};
use super::language_model::stop_ids;
use super::shards::Shards;
use super::{derived, hf};
use crate::model::Decoder;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// A model whose weights are still in their files.
pub struct StoredModel {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    pub(crate) shards: Shards,
}

impl StoredModel {
    /// Opens a directory in Hugging Face layout, or a model by its name ([`super::hub`]).
    pub fn open(model: &Path) -> Result<Self> {
        let dir = &hub::resolve(model, Needs::Model)?;
        let decoder = Decoder::new(derived::read_config(dir)?);
        let shards = Shards::open(dir, &decoder.layout().tensors)?;
        let tokenizer = Tokenizer::load(dir)?;
        tokenizer.check_fits(decoder.config().vocab_size)?;
        Ok(Self { decoder, tokenizer, shards })
    }

    /// Returns the ids of the tokens that end a response, from the model's config and its generation
    /// config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// Passes the weights to `take`, in f32 and in the order of the layout, part by part, each with the
    /// index of its first element. Refuses weights that are not finite.
    pub fn read(&self, take: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        hf::read_weights(&self.shards, &self.decoder.layout().tensors, hf::PART, take)
    }
}
