//! `train data solvability`: estimate solvability by rollouts and select problems by range.
//!
//! Paper section 3, step 8: of N = 32 rollouts N_p pass all tests, Sov = N_p / N, and problems
//! with 1 to 15 are kept. Left out: resuming a run that was stopped.

use crate::base::error::usage;
use crate::base::interrupt;
use crate::checkpoint::LanguageModel;
use crate::cli::print;
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::eval::attempts::AttemptSettings;
use crate::eval::gtg;
use crate::sandbox::{Judge, Limits, Options};
use anyhow::Result;
use std::path::PathBuf;

/// Arguments of `train data solvability`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model that attempts the problems
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Problems (JSON Lines)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The problems that are kept, with their solvability (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Rollouts for each problem
    #[arg(long, default_value_t = 32)]
    rollouts: usize,
    /// Fewest passing rollouts of a problem that is kept
    #[arg(long, default_value_t = 1)]
    min_passed: usize,
    /// Most passing rollouts of a problem that is kept
    #[arg(long, default_value_t = 15)]
    max_passed: usize,
    /// Keep at most this many problems, the first ones
    #[arg(long, value_name = "N")]
    most: Option<usize>,
    /// Sampling temperature
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Longest response, in tokens
    #[arg(long, default_value_t = 10_240)]
    max_new_tokens: usize,
    /// Sequences generated at the same time
    #[arg(long, default_value_t = 64)]
    max_sequences: usize,
    /// CPU time of one program on one case, in milliseconds
    #[arg(long, default_value_t = Limits::default().cpu_ms_per_case)]
    cpu_ms: u64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Attempts every problem, writes those in range, prints statistics.
pub fn run(args: Args) -> Result<()> {
    interrupt::install()?;
    let problems: Vec<Problem> = jsonl::read(&args.data)?;
    let model = LanguageModel::open(&args.model)?;
    let limits = Limits { cpu_ms_per_case: args.cpu_ms, ..Limits::default() };
    let judge = Judge::start(Options { limits, ..Options::default() })?;
    let settings = AttemptSettings {
        num_samples: args.rollouts,
        temperature: args.temperature,
        max_new_tokens: args.max_new_tokens,
        max_sequences: args.max_sequences,
        key: args.seed,
    };
    let score = gtg::evaluate(&model, &judge, &problems, &settings, "solvability")?.score;
    let mut kept = Vec::new();
    for (mut problem, result) in problems.into_iter().zip(&score.problems) {
        let is_known = result.num_judged > 0;
        if is_known && (args.min_passed..=args.max_passed).contains(&result.num_passed) {
            problem.solvability = Some(result.pass_rate());
            kept.push(problem);
        }
    }
    let num_in_range = kept.len();
    kept.truncate(args.most.unwrap_or(usize::MAX));
    if kept.is_empty() {
        return Err(usage(format!(
            "no problem passes {} to {} of {} rollouts; choose another range or model",
            args.min_passed, args.max_passed, args.rollouts
        )));
    }
    jsonl::write(&args.out, &kept)?;
    let shares: Vec<f64> = kept.iter().filter_map(|p| p.solvability).collect();
    print(format_args!(
        "{} problems, {num_in_range} in range, {} kept; solvability {:.3} to {:.3}, mean {:.3}; \
         pass@1 of all {:.3}\n",
        score.num_problems,
        kept.len(),
        shares.iter().copied().fold(f64::INFINITY, f64::min),
        shares.iter().copied().fold(0.0, f64::max),
        shares.iter().sum::<f64>() / shares.len() as f64,
        score.pass_at_1,
    ))
}
