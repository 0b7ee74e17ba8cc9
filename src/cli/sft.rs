//! `train sft`: fine-tune on conversations.

use super::config::ConfigArgs;
use super::launch::{command_line, launch};
use crate::train::environment::memory_bytes;
use crate::train::{plan, sft};
use anyhow::Result;

/// Arguments of `train sft`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Fine-tunes, and prints the trained model's directory.
pub fn run(args: Args) -> Result<()> {
    let resolved = args.config.load::<sft::Config>()?;
    let config = &resolved.value;
    let plan = plan::Plan::of_sft(config)?;
    if !args.config.dry_run {
        config.train.check_device()?;
        plan.check_fits(memory_bytes().unwrap_or(u64::MAX))?;
    }
    launch(&args.config, &resolved, &plan, "runs/sft", |run| {
        run.write_environment(&command_line(), &())?;
        sft::train(config, run, "sft")
    })
}
