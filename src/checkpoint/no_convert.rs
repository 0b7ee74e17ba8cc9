//! Stands in for `convert` in a build without candle: no GGUF file is written.

use super::StoredModel;
use super::gguf::refusal;
use anyhow::Result;
use std::path::Path;

/// A number format of a GGUF file.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Format {
    /// Not in this build
    None,
}

/// Refuses to write a file.
pub fn write(_model: &StoredModel, _format: Format, to: &Path) -> Result<()> {
    Err(refusal(to))
}
