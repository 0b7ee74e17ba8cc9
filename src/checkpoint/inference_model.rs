//! A model directory opened to score and to generate: its weights keep their stored number format.
//!
//! Contract: takes about as much memory as the files are long. Weights are packed straight from the
//! maps, tensor by tensor, and the pages are given back. Left out: training, which needs flat f32
//! ([`super::LanguageModel`]).

use super::language_model::stop_ids;
use super::shards::{Loading, Shards};
use crate::base::memory;
use crate::model::{Decoder, ModelConfig, TensorSpec, Weights};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// Everything that turns messages into tokens and tokens into probabilities.
pub struct InferenceModel {
    /// The graph.
    pub decoder: Decoder,
    /// The weights, laid out.
    pub weights: Weights<'static>,
    /// Text and conversations to tokens and back.
    pub tokenizer: Tokenizer,
}

impl InferenceModel {
    /// Opens a directory in Hugging Face layout.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = ModelConfig::from_dir(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        tokenizer.check_fits(config.vocab_size)?;
        let decoder = Decoder::new(config);
        let weights = load(dir, &decoder)?;
        Ok(Self { decoder, weights, tokenizer })
    }

    /// Ids that end a response: those of the model's config and of its generation config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }
}

fn load(dir: &Path, decoder: &Decoder) -> Result<Weights<'static>> {
    let shards = Shards::open(dir, &decoder.layout().tensors)?;
    memory::check(shards.bytes(), &format!("{}", dir.display()), "choose a smaller model")?;
    let loading = Loading::of(&shards);
    let tensor = |spec| {
        let tensor = shards.tensor(spec);
        shards.prepare(spec, tensor);
        tensor
    };
    let done = |spec: &TensorSpec| {
        let tensor = shards.tensor(spec);
        shards.release(spec, tensor);
        loading.add(tensor.bytes.len());
    };
    let weights = decoder.pack_stored(tensor, done);
    loading.finish();
    Ok(weights)
}
