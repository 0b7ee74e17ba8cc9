//! A model directory opened to bring its weights elsewhere: to GPUs.
//!
//! Contract: the weights stay in their mapped files until [`StoredModel::read`] goes through them, a part
//! at a time whose pages it gives back, so that a model of any size takes little memory of the host.

use super::hub::{self, Needs};
use super::language_model::stop_ids;
use super::shards::Shards;
use super::{derived, hf};
use crate::model::Decoder;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// A model whose weights are where they are stored.
pub struct StoredModel {
    /// The graph.
    pub decoder: Decoder,
    /// Text and conversations to tokens and back.
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

    /// Ids that end a response: those of the model's config and of its generation config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// Gives the weights to `take`, in f32 and in the order of the layout, with the element that each part
    /// begins at; refuses weights that are not finite.
    pub fn read(&self, take: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        hf::read_weights(&self.shards, &self.decoder.layout().tensors, hf::PART, take)
    }
}
