//! A model directory opened to score and to generate; its weights keep their stored number format.
//!
//! It takes about as much memory as its files are long. Weights are packed from the memory maps, tensor by
//! tensor, and the pages are given back. Training needs flat f32 parameters ([`super::LanguageModel`]).

use super::StoredModel;
use super::language_model::stop_ids;
use super::shards::{Loading, Shards};
use crate::base::memory;
use crate::model::{Decoder, TensorSpec, Weights};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;
use std::sync::OnceLock;

/// A model whose weights are laid out for generation, with its tokenizer.
pub struct InferenceModel {
    pub decoder: Decoder,
    /// The weights, packed.
    pub weights: Weights<'static>,
    pub tokenizer: Tokenizer,
}

impl InferenceModel {
    /// Opens a directory in Hugging Face layout, or a model by its name ([`super::hub`]). Refuses weights
    /// that are not finite.
    pub fn open(model: &Path) -> Result<Self> {
        let StoredModel { decoder, tokenizer, shards } = StoredModel::open(model)?;
        memory::check(shards.bytes(), &model.display().to_string(), "choose a smaller model")?;
        let weights = load(&shards, &decoder)?;
        Ok(Self { decoder, weights, tokenizer })
    }

    /// Returns the ids of the tokens that end a response, from the model's config and its generation
    /// config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }
}

/// Packs every tensor and gives its pages back. Refuses weights that are not finite.
fn load(shards: &Shards, decoder: &Decoder) -> Result<Weights<'static>> {
    let loading = Loading::of(shards);
    let failure = OnceLock::new();
    let tensor = |spec| {
        let tensor = shards.tensor(spec);
        shards.prepare(spec, tensor);
        if let Err(e) = shards.check_finite(spec, tensor) {
            failure.get_or_init(|| e);
        }
        tensor
    };
    let done = |spec: &TensorSpec| {
        let tensor = shards.tensor(spec);
        shards.release(spec, tensor);
        loading.add(tensor.bytes.len());
    };
    let weights = decoder.pack_stored(tensor, done);
    loading.finish();
    failure.into_inner().map_or(Ok(weights), Err)
}
