//! The command line: arguments, dispatch, and the only place that prints results.
//!
//! Results go to stdout, progress and logs to stderr. The exit code is 0 when the work is done, 1 when it
//! failed, 2 for wrong use, and 130 when it was interrupted and its state is saved.

pub mod agent;
pub mod attempts;
#[cfg(feature = "cuda")]
pub mod bench;
pub mod chat;
pub mod completions;
pub mod config;
pub mod convert;
pub mod data;
pub mod demo;
pub mod device;
pub mod doctor;
pub mod dpo;
pub mod eval;
pub mod generate;
#[cfg(feature = "cuda")]
pub mod gpu_check;
pub mod grpo;
pub mod judge;
pub mod launch;
pub mod model;
pub mod report;
pub mod score;
pub mod serve;
pub mod sft;

use crate::base::error::usage;
use crate::base::log::Verbosity;
use crate::base::threads;
use anyhow::{Context, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use std::fmt;
use std::io::{self, Write};

/// Fine-tunes, reinforces, runs and scores language models.
#[derive(Debug, clap::Parser)]
#[command(name = "train", version, about)]
pub struct Cli {
    /// Log more details
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Log only warnings and errors, and show no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,

    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line. Help, the version and most mistakes end the program here.
    pub fn read() -> Result<Self> {
        let mut command = accept_negative_values(Self::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        matches
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| negative_value(&error).unwrap_or_else(|| error.exit()))
    }

    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the whole loop on the bundled data: SFT, GRPO, scores and a report
    Demo(demo::Args),
    /// Fine-tune on conversations
    Sft(sft::Args),
    /// Learn from pairs of answers, one of them preferred
    Dpo(dpo::Args),
    /// Reinforce with rewards from the judge
    Grpo(grpo::Args),
    /// Score a model on problems
    Eval(eval::Args),
    /// Sample responses from a model
    Generate(generate::Args),
    /// Talk with a model in the terminal
    Chat(chat::Args),
    /// Serve a model over HTTP, by OpenAI's protocol, with a page to try it on
    Serve(serve::Args),
    /// Compute the log-probabilities of given tokens
    Score(score::Args),
    /// Write a model as a GGUF file, for llama.cpp
    Convert(convert::Args),
    /// Run untrusted programs on problems' tests
    Judge(judge::Args),
    /// Make, measure and show data
    #[command(subcommand)]
    Data(data::Command),
    /// Show what a configuration can hold
    #[command(subcommand)]
    Config(config::Command),
    /// Compare runs in the terminal, or (--out) as a page
    Report(report::Args),
    /// Show what this machine offers, and which protections the judge has here
    Doctor(doctor::Args),
    /// Measure this program on a GPU
    #[cfg(feature = "cuda")]
    #[command(subcommand)]
    Bench(bench::Command),
    /// Measure this program on a GPU (not in this build)
    #[cfg(not(feature = "cuda"))]
    Bench(NoGpu),
    /// Compare a GPU with the CPU
    #[cfg(feature = "cuda")]
    GpuCheck(gpu_check::Args),
    /// Compare a GPU with the CPU (not in this build)
    #[cfg(not(feature = "cuda"))]
    GpuCheck(NoGpu),
    /// Print a shell completion script
    Completions(completions::Args),
}

/// The arguments of a command that a build without CUDA knows only by name.
#[cfg(not(feature = "cuda"))]
#[derive(Debug, clap::Args)]
pub struct NoGpu {
    /// Accept any arguments
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<String>,
}

/// Makes options take a value such as `-1` instead of reading it as another option, so that each option
/// itself says what it accepts.
fn accept_negative_values(command: clap::Command) -> clap::Command {
    let accept = |arg: clap::Arg| {
        let takes_value = arg.get_action().takes_values();
        if takes_value { arg.allow_negative_numbers(true) } else { arg }
    };
    command.mut_args(accept).mut_subcommands(accept_negative_values)
}

/// Returns the mistake of a negative value where a whole number from 0 on is needed.
fn negative_value(error: &clap::Error) -> Option<anyhow::Error> {
    let text = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    };
    let (option, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let is_negative = error.kind() == ErrorKind::ValueValidation && value.parse::<i64>().ok()? < 0;
    is_negative.then(|| usage(format!("{option} is {value}: it must be a whole number, 0 or more")))
}

impl Command {
    /// Returns whether the command computes on threads of this process.
    fn computes(&self) -> bool {
        !matches!(
            self,
            Self::Judge(_)
                | Self::Config(_)
                | Self::Report(_)
                | Self::Doctor(_)
                | Self::Completions(_)
        )
    }
}

pub fn run(cli: Cli) -> Result<()> {
    if cli.command.computes() {
        threads::start()?;
    }
    match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Sft(args) => sft::run(args),
        Command::Dpo(args) => dpo::run(args),
        Command::Grpo(args) => grpo::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Score(args) => score::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Judge(args) => judge::run(args),
        Command::Data(command) => data::run(command),
        Command::Config(command) => config::run(command),
        Command::Report(args) => report::run(args),
        Command::Doctor(args) => doctor::run(args),
        #[cfg(feature = "cuda")]
        Command::Bench(command) => bench::run(command),
        #[cfg(not(feature = "cuda"))]
        Command::Bench(NoGpu { .. }) | Command::GpuCheck(NoGpu { .. }) => {
            Err(usage("this binary was built without GPUs: cargo build --release --features cuda"))
        }
        #[cfg(feature = "cuda")]
        Command::GpuCheck(args) => gpu_check::run(args),
        Command::Completions(args) => completions::run(args),
    }
}

/// Nobody reads stdout any more. There is nothing left to do, and nothing went wrong.
#[derive(Debug)]
pub struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// Writes a result to stdout.
pub fn print(text: impl fmt::Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        result => result.context("writing to stdout"),
    }
}
