//! `train data solvability`.

use anyhow::Result;

/// Arguments of this command.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("not built yet")
}
