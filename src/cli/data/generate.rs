//! `train data generate`: make procedural problems, reflection samples and splits.

use crate::data::prompt::GtgPrompt;
use crate::pipeline::procedural::{self, Config, card};
use crate::sandbox::{Ending, Judge, Limits, Options, Program};
use anyhow::Result;
use std::path::PathBuf;

/// Arguments of this command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value_t = 5500)]
    sft: usize,
    #[arg(long, default_value_t = 1500)]
    rl: usize,
    #[arg(long, default_value_t = 200)]
    test: usize,
    #[arg(long, default_value_t = 60)]
    unseen: usize,
    #[arg(long, default_value_t = 20000)]
    pretrain: usize,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let limits = Limits { cpu_ms_per_case: 500, cpu_ms_per_program: 1000, ..Limits::default() };
    let judge = Judge::start(Options { limits, ..Options::default() })?;
    let config = Config { seed: args.seed, sft: args.sft, sft_patterns: Config::paper_patterns(args.sft), rl: args.rl, test: args.test, unseen: args.unseen, pretrain: args.pretrain, rounds: Config::PAPER_ROUNDS.to_vec() };
    let mut run = |programs: &[procedural::Program]| -> Result<Vec<Vec<Option<String>>>> {
        let programs: Vec<Program> = programs.iter().map(|p| Program { code: p.code.clone(), inputs: p.inputs.clone() }).collect();
        Ok(judge.run(&programs).into_iter().map(|o| o.cases.into_iter().map(|c| match c.ending { Ending::Finished => Some(String::from_utf8_lossy(&c.output).trim().to_owned()), _ => None }).collect()).collect())
    };
    let dataset = procedural::generate(&config, &GtgPrompt::bundled()?, &mut run)?;
    card::write(&dataset, &args.out)?;
    Ok(())
}
