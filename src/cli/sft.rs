//! `train sft`: fine-tune on conversations.

use super::config::ConfigArgs;
use super::launch::{command_line, launch};
use crate::train::environment::{memory_bytes, peak_resident_bytes, resident_bytes};
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
        let before = resident_bytes();
        let model_dir = sft::train(config, run, "sft")?;
        if let (Some(before), Some(peak)) = (before, peak_resident_bytes()) {
            let [planned, taken] = [plan.total_bytes() as u64, peak.saturating_sub(before)];
            let [planned, taken] = [planned, taken].map(|bytes| bytes as f64 / 1e9);
            tracing::info!("memory: planned {planned:.3} GB, taken {taken:.3} GB at most");
        }
        Ok(model_dir)
    })
}
