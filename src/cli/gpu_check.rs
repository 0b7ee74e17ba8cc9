//! `train gpu-check` compares what a GPU computes with what the CPU computes. It exits with code 1 if they
//! differ.

use super::print;
use crate::gpu_check::{self, Outcome, Shapes};
use anyhow::{Context, Result, ensure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check the GPU of this number
    #[arg(long, value_name = "ORDINAL", default_value_t = 0)]
    gpu: usize,
    /// Use inputs of this size for single operations
    #[arg(long, value_enum, default_value_t = Shapes::Full)]
    shapes: Shapes,
    /// Print the checks as one JSON array
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let checks = gpu_check::run(args.gpu, args.shapes)?;
    if args.json {
        print(serde_json::to_string_pretty(&checks).context("encoding the checks")? + "\n")?;
    } else {
        for check in &checks {
            let outcome = match check.outcome {
                Outcome::Right => "right",
                Outcome::Wrong => "WRONG",
                Outcome::Skipped => "SKIPPED",
            };
            print(format!("{outcome:<9}{:<52}{}\n", check.name, check.found))?;
        }
    }
    let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let (wrong, skipped) = (count(Outcome::Wrong), count(Outcome::Skipped));
    if skipped > 0 {
        tracing::warn!("{skipped} of {} checks were skipped and say nothing", checks.len());
    }
    ensure!(wrong == 0, "{wrong} of {} checks are wrong on this GPU", checks.len());
    Ok(())
}
