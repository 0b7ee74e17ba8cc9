//! `train config`: shows what a configuration can hold.

use super::print;
use crate::config;
use crate::train::{dpo, rl, sft};
use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the JSON Schema of a command's configuration, with which editors complete and check it
    Schema {
        /// Print the schema for this command
        #[arg(value_enum)]
        of: Of,
    },
}

/// A command with a configuration.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Of {
    /// The configuration of `train sft`
    Sft,
    /// The configuration of `train dpo`
    Dpo,
    /// The configuration of `train grpo`
    Grpo,
}

pub fn run(command: Command) -> Result<()> {
    let Command::Schema { of } = command;
    print(match of {
        Of::Sft => config::schema::<sft::Config>()?,
        Of::Dpo => config::schema::<dpo::Config>()?,
        Of::Grpo => config::schema::<rl::Config>()?,
    })
}
