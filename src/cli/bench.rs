//! `train bench`: measures this program on a GPU.

use super::launch::command_line;
use super::print;
use crate::base::fs::{check_writable, write_atomic};
use crate::bench::clock::Repeats;
use crate::bench::{Report, decode, ops, shapes, step};
use crate::cuda::{Device, Gpu, HalfFormat};
use crate::model::{ModelConfig, Recompute};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Copies, products and kernels by themselves, each against the limit of the device
    Ops(OpsArgs),
    /// The micro-step of training with a share of the optimizer: seconds, tokens per second, MFU
    Step(StepArgs),
    /// One step of decoding, for batches and contexts: milliseconds, tokens per second
    Decode(DecodeArgs),
}

/// What all have.
#[derive(Debug, clap::Args)]
struct Common {
    /// llama3-8b, qwen2.5-7b, tiny, or the path of a config.json
    #[arg(long, value_name = "MODEL", default_value = "llama3-8b")]
    model_config: String,
    /// Runs of which the median counts, after some to warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    repeats: usize,
    /// Which GPU
    #[arg(long, value_name = "ORDINAL", default_value_t = 0)]
    gpu: usize,
    /// Write the numbers as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `train bench ops`.
#[derive(Debug, clap::Args)]
pub struct OpsArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens of a batch, one sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 5120, value_parser = at_least_one)]
    seq: usize,
}

/// Arguments of `train bench step`.
#[derive(Debug, clap::Args)]
pub struct StepArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens of a batch, one sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 5120, value_parser = at_least_one)]
    seq: usize,
    /// GPUs that would share the optimizer state
    #[arg(long, value_name = "GPUS", default_value_t = 8, value_parser = at_least_one)]
    zero_world: usize,
    /// Keep only the input of each layer for the backward
    #[arg(long)]
    recompute_layers: bool,
}

/// Arguments of `train bench decode`.
#[derive(Debug, clap::Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    common: Common,
    /// Sequences of a step
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [64, 256],
          value_parser = at_least_one)]
    batch: Vec<usize>,
    /// Tokens that each sequence has
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [1024, 2048],
          value_parser = at_least_one)]
    context: Vec<usize>,
}

/// Measures and prints.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Ops(OpsArgs { common, seq }) => measure(&common, |mut gpu, config, report| {
            let sizes = ops::Sizes::new(config, seq);
            ops::run(&mut gpu, config, sizes, Repeats::new(common.repeats), report)
        }),
        Command::Step(StepArgs { common, seq, zero_world, recompute_layers }) => {
            let recompute = if recompute_layers { Recompute::Layer } else { Recompute::Selective };
            let sizes = step::Sizes { tokens: seq, world: zero_world, recompute };
            measure(&common, |gpu, config, report| {
                step::run(gpu, config, sizes, Repeats::new(common.repeats), report)
            })
        }
        Command::Decode(DecodeArgs { common, batch, context }) => {
            measure(&common, |gpu, config, report| {
                decode::run(gpu, config, (&batch, &context), Repeats::new(common.repeats), report)
            })
        }
    }
}

/// Opens the GPU, measures, and prints what was found.
fn measure(
    common: &Common,
    work: impl FnOnce(Gpu, &ModelConfig, &mut Report) -> Result<()>,
) -> Result<()> {
    let config = shapes::find(&common.model_config)?;
    if let Some(file) = &common.json {
        check_writable(file, &[])?;
    }
    let mut report =
        Report::new(command_line(), Device::open(common.gpu, HalfFormat::Bf16)?.properties())?;
    work(Gpu::open(common.gpu, HalfFormat::Bf16, None)?, &config, &mut report)?;
    if let Some(file) = &common.json {
        let text = serde_json::to_string_pretty(&report).context("encoding the report")?;
        write_atomic(file, format!("{text}\n").as_bytes())?;
    }
    print(report)
}

/// A number from 1 up.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text} is not a number from 1 up")),
        Ok(number) => Ok(number),
    }
}
