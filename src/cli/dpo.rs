//! `train dpo`: learn from pairs of answers.

use super::launch::{ConfigArgs, command_line, launch};
use super::print;
use crate::base::human;
use crate::data::rows;
use crate::plan::Plan;
use crate::train::dpo;
use anyhow::Result;
use std::path::PathBuf;

/// Arguments of `train dpo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// The run directory
    #[arg(long, value_name = "DIR", default_value = "runs/dpo")]
    out: PathBuf,
}

/// Learns from pairs, and prints the trained model's directory.
pub fn run(args: Args) -> Result<()> {
    let (resolved, plan) = args.config.prepare(|| {
        let resolved = args.config.load::<dpo::Config>()?;
        let plan = Plan::new(&resolved.value.workload()?);
        if args.config.dry_run {
            plan.check_shape()?;
        }
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

/// The line of `--dry-run` about the data: how many pairs there are, and how often the run sees each.
fn data_line(config: &dpo::Config) -> Result<String> {
    let count: u64 = config.data.files.iter().map(|file| rows::count(file)).sum::<Result<_>>()?;
    let drawn = config.train.total_steps as f64 * config.train.pairs_per_step as f64;
    let passes = drawn / count.max(1) as f64;
    Ok(format!("{:<40}{} pairs, {passes:.2} passes\n", "data: data.files", human::count(count)))
}
