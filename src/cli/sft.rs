//! `train sft`: fine-tunes a model on conversations.

use super::launch::{ConfigArgs, command_line, launch};
use super::print;
use crate::data::outlook::{RunRows, outlook};
use crate::train::sft;
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Create the run in this directory
    #[arg(long, value_name = "DIR", default_value = "runs/sft")]
    out: PathBuf,
}

/// Fine-tunes, and prints the trained model's directory.
pub fn run(args: Args) -> Result<()> {
    let (resolved, plan) = args.config.prepare(|| {
        let resolved = args.config.load::<sft::Config>()?;
        let plan = args.config.plan(&resolved.value.workload()?)?;
        Ok((resolved, plan))
    })?;
    let config = &resolved.value;
    if args.config.dry_run {
        print(data_lines(config)?)?;
    }
    launch(&args.config, &resolved, &plan, &args.out, |run| {
        run.write_environment(&command_line(), &())?;
        sft::train(config, run, "sft")
    })
}

/// Writes the lines of `--dry-run` about the data, from headers and caches alone.
fn data_lines(config: &sft::Config) -> Result<String> {
    let tokenizer = config.model.tokenizer_here();
    let train = &config.train;
    let num_rows = train.total_steps as usize * train.rows_per_step();
    let rows = RunRows { num_rows, seq_len: train.seq_len, seed: config.seed };
    let sources = outlook(&config.data, tokenizer.as_ref(), rows)?;
    let lines = sources.iter().map(|source| {
        let label = format!("data: {}", source.name);
        format!("{label:<40}{}\n", source.describe())
    });
    Ok(lines.collect())
}
