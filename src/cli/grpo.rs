//! `train grpo`: reinforce with rewards from the judge.

use super::config::ConfigArgs;
use super::launch::{command_line, launch};
use crate::sandbox::{Judge, Options};
use crate::train::{grpo, plan};
use anyhow::Result;

/// Arguments of `train grpo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Reinforces, and prints the trained model's directory.
pub fn run(args: Args) -> Result<()> {
    let resolved = grpo::Config::load(&args.config.config, &args.config.set)?;
    let config = &resolved.value;
    let plan = plan::Plan::of_grpo(config)?;
    launch(&args.config, &resolved, &plan, "runs/grpo", |run| {
        let limits = config.judge.clone();
        let judge = Judge::start(Options { limits, ..Options::default() })?;
        run.write_environment(&command_line(), judge.layers())?;
        grpo::train(config, run, &judge, "grpo")
    })
}
