//! Which model is meant, as a user says it.

use super::gguf::Gguf;
use super::hub::{self, Needs, model_files};
use crate::base::error::usage;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// A model: a directory in Hugging Face layout, a GGUF file, or a name on the Hub.
#[derive(Clone, Copy, Debug)]
pub struct ModelPlace<'a> {
    /// The directory, file or name.
    pub model: &'a Path,
    /// The directory of the tokenizer to be used with a GGUF file, where not its own.
    pub tokenizer: Option<&'a Path>,
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for ModelPlace<'a> {
    fn from(model: &'a P) -> Self {
        Self { model: model.as_ref(), tokenizer: None }
    }
}

impl ModelPlace<'_> {
    /// Refuses a tokenizer that is given beside a directory, which has its own.
    fn expect_no_tokenizer(self) -> Result<()> {
        match self.tokenizer {
            None => Ok(()),
            Some(tokenizer) => Err(usage(format!(
                "tokenizer {}: only a GGUF file takes the tokenizer of another directory; {} has its own",
                tokenizer.display(),
                self.model.display()
            ))),
        }
    }

    /// Opens its tokenizer, whatever else of the model is there.
    pub fn open_tokenizer(self) -> Result<Tokenizer> {
        self.tokenizer_at(&hub::resolve(self.model, Needs::Tokenizer)?)
    }

    /// Opens its tokenizer, if it is on this machine.
    pub(crate) fn tokenizer_here(self) -> Option<Tokenizer> {
        self.tokenizer_at(&hub::resolve(self.model, Needs::Config).ok()?).ok()
    }

    /// Opens the tokenizer of the model that was found at `path`.
    pub(crate) fn tokenizer_at(self, path: &Path) -> Result<Tokenizer> {
        if path.is_file() {
            return Gguf::open(path)?.tokenizer(self.tokenizer);
        }
        self.expect_no_tokenizer()?;
        Tokenizer::load(path)
    }

    /// Returns the files that make up the model, which is downloaded if need be.
    pub fn files(self) -> Result<Vec<PathBuf>> {
        let mut files = model_files(&hub::resolve(self.model, Needs::Model)?)?;
        if let Some(tokenizer) = self.tokenizer {
            files.extend(model_files(tokenizer)?);
        }
        Ok(files)
    }
}
