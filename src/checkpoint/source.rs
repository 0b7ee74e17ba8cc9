//! Where a run's first weights come from: the table `[model]` of a config.

use super::LanguageModel;
use super::hub::model_files;
use super::place::ModelPlace;
use crate::base::error::usage;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a run starts from: a model directory, or random weights of a given shape.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// A directory in Hugging Face layout, a GGUF file, or the name of a model on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A `config.json` whose shape gets random weights; it needs `tokenizer` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The directory of the tokenizer that goes with `init`, or that takes the place of a GGUF file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

/// A [`ModelSource`] after its check.
pub(crate) enum Origin<'a> {
    Stored(ModelPlace<'a>),
    Random { config: &'a Path, tokenizer: &'a Path },
}

impl ModelSource {
    /// Refuses a source that names neither or both of the two ways.
    pub(crate) fn origin(&self) -> Result<Origin<'_>> {
        match (&self.path, &self.init, &self.tokenizer) {
            (Some(path), None, tokenizer) => {
                Ok(Origin::Stored(ModelPlace { model: path, tokenizer: tokenizer.as_deref() }))
            }
            (None, Some(config), Some(tokenizer)) => Ok(Origin::Random { config, tokenizer }),
            _ => Err(usage(
                "model: give either `path` (a model directory or a GGUF file) or both `init` (a config.json) \
                 and `tokenizer` (a directory)",
            )),
        }
    }

    /// Returns the tokenizer, if it is on this machine.
    pub fn tokenizer_here(&self) -> Option<Tokenizer> {
        match self.origin().ok()? {
            Origin::Stored(place) => place.tokenizer_here(),
            Origin::Random { tokenizer, .. } => Tokenizer::load(tokenizer).ok(),
        }
    }

    /// Opens the tokenizer. Where a model is given by its name, the tokenizer is downloaded if it is missing.
    pub fn open_tokenizer(&self) -> Result<Tokenizer> {
        match self.origin()? {
            Origin::Stored(place) => place.open_tokenizer(),
            Origin::Random { tokenizer, .. } => Tokenizer::load(tokenizer),
        }
    }

    /// Returns the files that make up the model, which is downloaded if it is missing.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        match self.origin()? {
            Origin::Stored(place) => place.files(),
            Origin::Random { config, tokenizer } => {
                let mut files = model_files(tokenizer)?;
                files.push(config.to_owned());
                Ok(files)
            }
        }
    }

    /// Opens or initialises the model that is trained. Its responses end where the turns of its chat
    /// template end.
    pub fn open(&self, seed: u64) -> Result<LanguageModel> {
        let mut model = match self.origin()? {
            Origin::Stored(place) => LanguageModel::open(place)?,
            Origin::Random { config, tokenizer } => LanguageModel::init(config, tokenizer, seed)?,
        };
        model.end_turns()?;
        Ok(model)
    }
}
