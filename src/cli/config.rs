//! The arguments that every training command shares.

use crate::config::{self, Resolved};
use crate::run::Existing;
use anyhow::Result;
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// Where the configuration comes from and what to do with the run directory.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// A TOML file; give several to merge them left to right (lists replace)
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,

    /// Override one value, such as optim.lr=0.001
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Print the plan and every setting with its origin, then stop
    #[arg(long)]
    pub dry_run: bool,

    /// Go on from the run directory's latest checkpoint
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,

    /// Replace the run that is in the run directory
    #[arg(long)]
    pub overwrite: bool,
}

impl ConfigArgs {
    /// Reads and merges the configuration.
    pub fn load<T: DeserializeOwned + Serialize>(&self) -> Result<Resolved<T>> {
        config::load(&self.config, &self.set)
    }

    /// What to do with a run already in the run directory.
    pub fn existing(&self) -> Existing {
        match (self.resume, self.overwrite) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Overwrite,
            _ => Existing::Refuse,
        }
    }
}
