//! A model opened to score and to generate; its weights keep their stored number format.
//!
//! It takes about as much memory as its files are long; quantized weights of a GGUF file become f16, two bytes a
//! weight. Weights are packed from the memory maps, tensor by tensor, and the pages are given back. Training
//! needs flat f32 parameters ([`super::LanguageModel`]).

use super::StoredModel;
use super::ends::stop_ids;
use super::place::ModelPlace;
use super::shards::Loading;
use super::weight_files::WeightFiles;
use crate::base::memory;
use crate::model::{Decoder, TensorSpec, Weights};
use crate::ops::element::{Elements, Stored};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::sync::OnceLock;

/// A model whose weights are laid out for generation, with its tokenizer.
pub struct InferenceModel {
    pub decoder: Decoder,
    /// The weights, packed.
    pub weights: Weights<'static>,
    pub tokenizer: Tokenizer,
}

impl InferenceModel {
    /// Opens a directory in Hugging Face layout, a GGUF file, or a model by its name ([`super::hub`]).
    pub fn open<'a>(model: impl Into<ModelPlace<'a>>) -> Result<Self> {
        let place = model.into();
        let StoredModel { decoder, tokenizer, weights } = StoredModel::open(place)?;
        let what = place.model.display().to_string();
        memory::check(weights.bytes(), &what, "choose a smaller model")?;
        let weights = load(&weights, &decoder)?;
        Ok(Self { decoder, weights, tokenizer })
    }

    /// Returns the ids of the tokens that end a response, from the model's config and its generation
    /// config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }
}

/// Packs every tensor and gives its pages back; refuses weights that are not finite.
fn load(files: &WeightFiles, decoder: &Decoder) -> Result<Weights<'static>> {
    let loading = Loading::of(files.bytes());
    let failure = OnceLock::new();
    let tensor = |spec: &TensorSpec| {
        let stored = files.part(spec, 0, spec.range.len()).unwrap_or_else(|e| {
            failure.get_or_init(|| e);
            zeros(spec)
        });
        loading.add(stored.bytes.len());
        stored
    };
    let done = |spec: &TensorSpec| files.release(spec, 0, spec.range.len());
    let weights = decoder.pack_stored(tensor, done);
    loading.finish();
    failure.into_inner().map_or(Ok(weights), Err)
}

/// In the place of a tensor that cannot be read.
fn zeros(spec: &TensorSpec) -> Stored<'static> {
    let Elements { dtype, bytes } = Elements::from(&[0.0f32][..]);
    Stored { dtype, bytes: bytes.repeat(spec.range.len()).into() }
}
