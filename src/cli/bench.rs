//! `train bench`: measures this program on a GPU.

use super::launch::command_line;
use super::print;
use crate::base::fs::{check_writable, write_atomic};
use crate::bench::Measurement;
use crate::bench::clock::Repeats;
use crate::bench::decode;
use crate::bench::grpo_step;
use crate::bench::ops;
use crate::bench::shapes;
use crate::bench::step;
use crate::cuda::{Device, Gpu, HalfFormat};
use crate::model::{ModelConfig, Recompute};
use anyhow::{Context, Result};
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Time copies, products and kernels one by one, each against the limit of the device
    Ops(OpsArgs),
    /// Time a micro-step of training with a share of the optimizer: seconds, tokens per second, MFU, and
    /// the time of each family of kernels against the limit of the device
    Step(StepArgs),
    /// Time one GPU's share of a step of GRPO without judging: seconds of generation and of the update
    GrpoStep(GrpoStepArgs),
    /// Time one step of decoding for batches and contexts: milliseconds, tokens per second
    Decode(DecodeArgs),
}

/// The arguments of every measurement.
#[derive(Debug, clap::Args)]
struct Common {
    /// Use this model: llama3-8b, qwen2.5-7b, tiny, or the path of a config.json
    #[arg(long, value_name = "MODEL", default_value = "llama3-8b")]
    model_config: String,
    /// Use the GPU of this number
    #[arg(long, value_name = "ORDINAL", default_value_t = 0)]
    gpu: usize,
    /// Write the numbers to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The number of repeats, for measurements that are repeated.
#[derive(Debug, clap::Args)]
struct Repeated {
    /// Measure this many times and report the median; a few runs before warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    repeats: usize,
}

impl Repeated {
    fn repeats(&self) -> Repeats {
        Repeats::new(self.repeats)
    }
}

#[derive(Debug, clap::Args)]
pub struct OpsArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    repeated: Repeated,
    /// Use a batch of one sequence with this many tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 5120, value_parser = at_least_one)]
    seq: usize,
}

#[derive(Debug, clap::Args)]
pub struct StepArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    repeated: Repeated,
    /// Use a batch of one sequence with this many tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 5120, value_parser = at_least_one)]
    seq: usize,
    /// Take the optimizer state to be shared by this many GPUs
    #[arg(long, value_name = "GPUS", default_value_t = 8, value_parser = at_least_one)]
    zero_world: usize,
    /// Keep only the input of each layer for the backward
    #[arg(long)]
    recompute_layers: bool,
}

#[derive(Debug, clap::Args)]
pub struct GrpoStepArgs {
    #[command(flatten)]
    common: Common,
    /// Use this many prompts; the paper's 64 prompts on 8 GPUs are 8 for each
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    prompts: usize,
    /// Generate this many responses to each prompt
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    samples: usize,
    /// Use prompts of this many tokens; the paper has 2048 at most
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_one)]
    prompt: usize,
    /// Generate responses of exactly this many tokens; the paper has 2048 at most
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = at_least_one)]
    response: usize,
    /// Compute this many responses in a micro-batch, which goes through the model in one row
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    micro_batch: usize,
    /// Take the optimizer state to be shared by this many GPUs
    #[arg(long, value_name = "GPUS", default_value_t = 8, value_parser = at_least_one)]
    zero_world: usize,
    /// Keep only the input of each layer for the backward, as the longest responses need
    #[arg(long)]
    recompute_layers: bool,
}

#[derive(Debug, clap::Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    repeated: Repeated,
    /// Sequences in a step
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [64, 256],
          value_parser = at_least_one)]
    batch: Vec<usize>,
    /// Tokens in each sequence
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [1024, 2048],
          value_parser = at_least_one)]
    context: Vec<usize>,
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Ops(OpsArgs { common, repeated, seq }) => {
            measure(&common, |mut gpu, config, measurement| {
                let sizes = ops::Sizes::new(config, seq);
                ops::run(&mut gpu, config, sizes, repeated.repeats(), measurement)
            })
        }
        Command::Step(StepArgs { common, repeated, seq, zero_world, recompute_layers }) => {
            let recompute = recompute(recompute_layers);
            let sizes = step::Sizes { tokens: seq, world: zero_world, recompute };
            measure(&common, |gpu, config, measurement| {
                step::run(gpu, config, sizes, repeated.repeats(), measurement)
            })
        }
        Command::GrpoStep(args) => grpo_step(&args),
        Command::Decode(DecodeArgs { common, repeated, batch, context }) => {
            measure(&common, |gpu, config, measurement| {
                decode::run(gpu, config, (&batch, &context), repeated.repeats(), measurement)
            })
        }
    }
}

fn grpo_step(args: &GrpoStepArgs) -> Result<()> {
    let GrpoStepArgs { prompts, samples, prompt, response, micro_batch, .. } = *args;
    let sizes = grpo_step::Sizes {
        prompts,
        samples,
        prompt,
        response,
        micro_batch,
        world: args.zero_world,
        recompute: recompute(args.recompute_layers),
    };
    measure(&args.common, |gpu, config, measurement| {
        grpo_step::run(gpu, config, sizes, measurement)
    })
}

fn recompute(layers: bool) -> Recompute {
    if layers { Recompute::Layer } else { Recompute::Selective }
}

/// Opens the GPU, measures, and prints the result.
fn measure(
    common: &Common,
    work: impl FnOnce(Gpu, &ModelConfig, &mut Measurement) -> Result<()>,
) -> Result<()> {
    let config = shapes::find(&common.model_config)?;
    if let Some(file) = &common.json {
        check_writable(file, &[])?;
    }
    let format = HalfFormat::Bf16;
    let device = Device::open(common.gpu, format)?;
    let mut measurement = Measurement::new(command_line(), device.properties())?;
    work(Gpu::open(common.gpu, format, None)?, &config, &mut measurement)?;
    if let Some(file) = &common.json {
        let text =
            serde_json::to_string_pretty(&measurement).context("encoding the measurement")?;
        write_atomic(file, format!("{text}\n").as_bytes())?;
    }
    print(measurement)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text} is not a number from 1 up")),
        Ok(number) => Ok(number),
    }
}
