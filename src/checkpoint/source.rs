//! Where a run's first weights come from: the table `[model]` of a config.

use super::LanguageModel;
use super::hub::{self, Needs};
use crate::base::error::usage;
use crate::base::fs::children;
use crate::tokenizer::MORE_TEMPLATES;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a run starts from: a model directory, or random weights of a given shape.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// A directory in Hugging Face layout, or the name of a model on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A `config.json` whose shape gets random weights; it needs `tokenizer` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The directory of the tokenizer that goes with `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

/// A [`ModelSource`] after its check.
pub(crate) enum Origin<'a> {
    Directory(&'a Path),
    Random { config: &'a Path, tokenizer: &'a Path },
}

impl ModelSource {
    /// Refuses a source that names neither or both of the two ways.
    pub(crate) fn origin(&self) -> Result<Origin<'_>> {
        match (&self.path, &self.init, &self.tokenizer) {
            (Some(path), None, None) => Ok(Origin::Directory(path)),
            (None, Some(config), Some(tokenizer)) => Ok(Origin::Random { config, tokenizer }),
            _ => Err(usage(
                "model: give either `path` (a model directory) or both `init` (a config.json) and \
                 `tokenizer` (a directory)",
            )),
        }
    }

    /// Returns the directory of the tokenizer, if it is on this machine.
    pub fn tokenizer_here(&self) -> Option<PathBuf> {
        match self.origin().ok()? {
            Origin::Directory(path) => hub::resolve(path, Needs::Config).ok(),
            Origin::Random { tokenizer, .. } => Some(tokenizer.to_owned()),
        }
    }

    /// Returns the directory of the tokenizer. Where a model is given by its name, the tokenizer is
    /// downloaded if it is missing.
    pub fn tokenizer_dir(&self) -> Result<PathBuf> {
        match self.origin()? {
            Origin::Directory(path) => hub::resolve(path, Needs::Tokenizer),
            Origin::Random { tokenizer, .. } => Ok(tokenizer.to_owned()),
        }
    }

    /// Returns the files that make up the model, which is downloaded if it is missing.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        match self.origin()? {
            Origin::Directory(path) => model_files(&hub::resolve(path, Needs::Model)?),
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
            Origin::Directory(path) => LanguageModel::open(path)?,
            Origin::Random { config, tokenizer } => LanguageModel::init(config, tokenizer, seed)?,
        };
        model.end_turns()?;
        Ok(model)
    }
}

/// Returns the files of a model directory that make up the model: configuration, tokenizer and weights.
pub fn model_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let kinds = ["json", "jinja", "safetensors"];
    let mut files = children(dir)?;
    let templates = dir.join(MORE_TEMPLATES);
    if templates.is_dir() {
        files.extend(children(&templates)?);
    }
    files.retain(|path| path.extension().is_some_and(|e| kinds.iter().any(|kind| e == *kind)));
    files.sort();
    Ok(files)
}
