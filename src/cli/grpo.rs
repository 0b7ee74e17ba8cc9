//! `train grpo`: reinforces a model with rewards from the judge.

use super::launch::{ConfigArgs, command_line, launch};
use super::print;
use crate::base::human;
use crate::data::rows;
use crate::nodes::Nodes;
use crate::sandbox::{Judge, Options};
use crate::train::rl;
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Create the run in this directory
    #[arg(long, value_name = "DIR", default_value = "runs/grpo")]
    out: PathBuf,
}

/// Reinforces, and prints the trained model's directory.
pub fn run(args: Args) -> Result<()> {
    let (resolved, plan) = args.config.prepare(|| {
        let resolved = rl::Config::load(&args.config.config, &args.config.set)?;
        // The other nodes read no data.
        if Nodes::from_env()?.rank == 0 {
            resolved.value.check_files()?;
        }
        let plan = args.config.plan(&resolved.value.workload()?)?;
        Ok((resolved, plan))
    })?;
    let config = &resolved.value;
    if args.config.dry_run {
        print(data_lines(config)?)?;
    }
    launch(&args.config, &resolved, &plan, &args.out, |run| {
        let limits = config.judge.clone();
        let judge = Judge::start(Options { limits, ..Options::default() })?;
        run.write_environment(&command_line(), judge.layers())?;
        rl::train(config, run, &judge, "grpo")
    })
}

/// Writes the lines of `--dry-run` about the data: how many problems there are.
fn data_lines(config: &rl::Config) -> Result<String> {
    let held_out = config.validation.as_ref();
    let held_out = held_out.map(|validation| data_line("validation.files", &validation.files));
    Ok(data_line("data.files", &config.data.files)? + &held_out.transpose()?.unwrap_or_default())
}

fn data_line(name: &str, files: &[PathBuf]) -> Result<String> {
    let count: u64 = files.iter().map(|file| rows::count(file)).sum::<Result<_>>()?;
    let label = format!("data: {name}");
    Ok(format!("{label:<40}{} problems\n", human::count(count)))
}
