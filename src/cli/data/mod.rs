//! `train data`: makes, measures and shows data.

pub mod classify;
pub mod generate;
pub mod inspect;
pub mod pairs;
pub mod solvability;
pub mod stats;
mod stats_mixture;
pub mod tokenizer;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make procedural number-sequence problems, reflection samples and splits
    Generate(generate::Args),
    /// Estimate solvability by rollouts and select problems by range
    Solvability(solvability::Args),
    /// Make pairs of a passed and a failed response, for preference optimisation
    Pairs(pairs::Args),
    /// Ask a model which samples are code, and store its answers
    Classify(classify::Args),
    /// Show samples with their tokens coloured by loss mask
    Inspect(inspect::Args),
    /// Count samples, families, rounds and lengths, or the sources of a configuration
    Stats(stats::Args),
    /// Train a byte-level BPE tokenizer on a corpus
    Tokenizer(tokenizer::Args),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Solvability(args) => solvability::run(args),
        Command::Pairs(args) => pairs::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
    }
}
