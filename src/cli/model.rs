//! `--model` and `--tokenizer`: which model a command runs.

use crate::checkpoint::ModelPlace;
use std::path::PathBuf;

/// Which model a command runs.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A model directory in Hugging Face layout, a GGUF file, or the name of a model on the Hub
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// The directory of a tokenizer that takes the place of a GGUF file's own
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

impl ModelArgs {
    /// Returns the model that is meant.
    pub fn place(&self) -> ModelPlace<'_> {
        ModelPlace { model: &self.model, tokenizer: self.tokenizer.as_deref() }
    }
}
