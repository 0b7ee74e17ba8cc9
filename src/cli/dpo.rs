//! `train dpo`: trains a model on pairs of answers, one of them preferred.

use super::launch::{ConfigArgs, command_line, launch};
use super::print;
use crate::base::human;
use crate::data::rows;
use crate::train::dpo;
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Create the run in this directory
    #[arg(long, value_name = "DIR", default_value = "runs/dpo")]
    out: PathBuf,
}

/// Trains on pairs, and prints the trained model's directory.
pub fn run(args: Args) -> Result<()> {
    let (resolved, plan) = args.config.prepare(|| {
        let resolved = args.config.load::<dpo::Config>()?;
        let plan = args.config.plan(&resolved.value.workload()?)?;
        Ok((resolved, plan))
    })?;
    let config = &resolved.value;
    if args.config.dry_run {
        print(data_line(config)?)?;
    }
    launch(&args.config, &resolved, &plan, &args.out, |run| {
        run.write_environment(&command_line(), &())?;
        dpo::train(config, run, "dpo")
    })
}

/// Writes the line of `--dry-run` about the data: the number of pairs, and how often the run sees each.
fn data_line(config: &dpo::Config) -> Result<String> {
    let count: u64 = config.data.files.iter().map(|file| rows::count(file)).sum::<Result<_>>()?;
    let drawn = config.train.total_steps as f64 * config.train.pairs_per_step as f64;
    let passes = drawn / count.max(1) as f64;
    Ok(format!("{:<40}{} pairs, {passes:.2} passes\n", "data: data.files", human::count(count)))
}
