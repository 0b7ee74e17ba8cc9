//! A model directory opened to train: decoder, flat f32 weights and tokenizer together.

use super::hub::{self, Needs};
use super::state::Model;
use super::{derived, hf};
use crate::base::fs::read_text;
use crate::model::layout::init;
use crate::model::{Decoder, Layout, ModelConfig};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use std::path::Path;

/// Everything that turns messages into tokens and tokens into probabilities.
pub struct LanguageModel {
    /// The graph.
    pub decoder: Decoder,
    /// The weights, flat, in the decoder's layout.
    pub params: Vec<f32>,
    /// Text and conversations to tokens and back.
    pub tokenizer: Tokenizer,
}

impl LanguageModel {
    /// Opens a directory in Hugging Face layout, or a model by its name ([`super::hub`]).
    pub fn open(model: &Path) -> Result<Self> {
        let dir = &hub::resolve(model, Needs::Model)?;
        let config = derived::read_config(dir)?;
        let layout = Layout::new(&config);
        let mut params = vec![0.0; layout.len];
        hf::load_weights(dir, &layout.tensors, &mut params)?;
        Self::assemble(config, params, dir)
    }

    /// Starts from random weights: the shape from `config_path`, the tokenizer from its directory.
    pub fn init(config_path: &Path, tokenizer_dir: &Path, seed: u64) -> Result<Self> {
        let config = Self::read_config(config_path)?;
        let params = init(&config, seed);
        Self::assemble(config, params, tokenizer_dir)
    }

    /// Reads the shape of a model in a directory, or of one by its name ([`super::hub`]).
    pub fn shape(model: &Path) -> Result<ModelConfig> {
        derived::read_config(&hub::resolve(model, Needs::Config)?)
    }

    /// Reads a `config.json` that lies by itself.
    pub fn read_config(path: &Path) -> Result<ModelConfig> {
        ModelConfig::from_json(&read_text(path)?).with_context(|| path.display().to_string())
    }

    fn assemble(config: ModelConfig, params: Vec<f32>, tokenizer_dir: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::load(tokenizer_dir)?;
        tokenizer.check_fits(config.vocab_size)?;
        Ok(Self { decoder: Decoder::new(config), params, tokenizer })
    }

    /// Ids that end a response: those of the model's config and of its generation config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// Ends responses where the template's turns end, which is what training teaches, and says so where
    /// the model's configuration does not.
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

    /// The model as a checkpoint takes it.
    pub fn as_saved(&self) -> Model<'_> {
        Model {
            config_json: self.decoder.config().to_json(),
            specs: &self.decoder.layout().tensors,
            weights: &self.params,
            tokenizer: &self.tokenizer,
        }
    }
}

/// The token that ends the template's turns, where no response ends at it.
pub(crate) fn unended_turn(config: &ModelConfig, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.turn_end().filter(|id| !stop_ids(config, tokenizer).contains(id))
}

/// Says that responses will go on after their turn, unless `extra` ids end them.
pub(crate) fn warn_of_run_on(config: &ModelConfig, tokenizer: &Tokenizer, extra: &[u32]) {
    if let Some(id) = unended_turn(config, tokenizer).filter(|id| !extra.contains(id)) {
        tracing::warn!(
            "{}: the chat template ends a turn with token {id} ({}), which ends no response here: what \
             follows it counts as part of the response. --stop-id {id} ends responses there, and so does \
             eos_token_id in generation_config.json",
            tokenizer.dir().display(),
            tokenizer.decode_with_special_tokens(&[id]).unwrap_or_default(),
        );
    }
}

/// Ids that end a response: those of a model's config and of its generation config.
pub fn stop_ids(config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend_from_slice(tokenizer.eos_ids());
    ids.sort_unstable();
    ids.dedup();
    ids
}
