//! A model directory opened to train: the decoder, flat f32 weights and the tokenizer.

use super::StoredModel;
use super::ends::{stop_ids, unended_turn};
use super::hf;
use super::place::ModelPlace;
use super::state::Model;
use crate::base::fs::read_text;
use crate::model::layout::init;
use crate::model::{Decoder, ModelConfig};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use std::path::Path;

/// A model whose parameters can be trained, with its tokenizer.
pub struct LanguageModel {
    pub decoder: Decoder,
    /// The parameters, in the decoder's layout.
    pub params: Vec<f32>,
    pub tokenizer: Tokenizer,
}

impl LanguageModel {
    /// Opens a directory in Hugging Face layout, a GGUF file, or a model by its name ([`super::hub`]).
    pub fn open<'a>(model: impl Into<ModelPlace<'a>>) -> Result<Self> {
        let StoredModel { decoder, tokenizer, weights } = StoredModel::open(model)?;
        let layout = decoder.layout();
        let mut params = vec![0.0; layout.len];
        hf::fill_weights(&weights, &layout.tensors, &mut params)?;
        Ok(Self { decoder, params, tokenizer })
    }

    /// Creates random weights: the shape is that of `config_path`, the tokenizer is read from its
    /// directory.
    pub fn init(config_path: &Path, tokenizer_dir: &Path, seed: u64) -> Result<Self> {
        let config = Self::read_config(config_path)?;
        let params = init(&config, seed);
        let tokenizer = Tokenizer::load(tokenizer_dir)?;
        tokenizer.check_fits(config.vocab_size)?;
        Ok(Self { decoder: Decoder::new(config), params, tokenizer })
    }

    /// Reads the shape of a model, given by its directory, GGUF file or name ([`super::hub`]).
    pub fn shape<'a>(model: impl Into<ModelPlace<'a>>) -> Result<ModelConfig> {
        StoredModel::shape(model.into())
    }

    /// Reads a single `config.json`.
    pub fn read_config(path: &Path) -> Result<ModelConfig> {
        ModelConfig::from_json(&read_text(path)?).with_context(|| path.display().to_string())
    }

    /// Returns the ids of the tokens that end a response, from the model's config and its generation
    /// config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// Makes the token that ends a turn of the chat template end responses, since training teaches to end
    /// there. Warns where the model's configuration does not do so.
    pub(crate) fn end_turns(&mut self) -> Result<()> {
        let config = self.decoder.config();
        let Some(id) = unended_turn(config, &self.tokenizer) else { return Ok(()) };
        tracing::warn!(
            "{}: the chat template ends a turn with token {id} ({}), which is no end of sequence in \
             config.json and generation_config.json: responses end there from now on, and the \
             generation_config.json of every checkpoint says so",
            self.tokenizer.dir().display(),
            self.tokenizer.decode_with_special_tokens(&[id]).unwrap_or_default(),
        );
        let ids = stop_ids(config, &self.tokenizer).into_iter().chain([id]).collect();
        self.tokenizer.set_eos_ids(ids)
    }

    /// Returns the model as a checkpoint saves it.
    pub fn as_saved(&self) -> Model<'_> {
        Model {
            config_json: self.decoder.config().to_json(),
            specs: &self.decoder.layout().tensors,
            weights: &self.params,
            tokenizer: &self.tokenizer,
        }
    }
}
